import numpy as np
import pytest

from dit_video.evaluation.neighbours import diversity, nearest, novelty


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out and training features of one distribution, and others of it for samples; far from the origin."""
    rows = 1000 + np.random.default_rng(0).normal(size=(3, 200, 8))
    held_out, training, samples = rows.astype(np.float32)
    return held_out, training, samples


def test_the_nearest_row_is_the_one_a_loop_finds(clouds):
    held_out, training, _ = clouds
    index, distance = nearest(held_out[:20], training)
    every = np.linalg.norm(held_out[:20, None].astype(np.float64) - training[None], axis=-1)
    np.testing.assert_array_equal(index, every.argmin(axis=1))
    np.testing.assert_allclose(distance, every.min(axis=1), rtol=1e-6)


def test_copies_of_training_clips_have_no_novelty(clouds):
    held_out, training, _ = clouds
    assert novelty(training[::2], held_out, training) == 0
    assert novelty(training[::2] + np.float32(1e-3), held_out, training) < 0.01


def test_new_clips_of_the_same_kind_are_as_novel_and_as_diverse_as_held_out_ones(clouds):
    held_out, training, samples = clouds
    assert novelty(samples, held_out, training) == pytest.approx(1, abs=0.1)
    assert diversity(samples, held_out) == pytest.approx(1, abs=0.05)


def test_one_sample_over_and_over_has_no_diversity(clouds):
    held_out, _, samples = clouds
    assert diversity(np.repeat(samples[:1], 50, axis=0), held_out) == 0
    few_modes = np.concatenate([samples[:2]] * 25)
    assert diversity(few_modes, held_out) < 0.6


def test_held_out_clips_that_are_training_clips_leave_nothing_to_compare_with(clouds):
    _, training, samples = clouds
    assert novelty(samples, training, training) is None


def test_diversity_is_a_ratio_of_mean_distances_between_two_rows():
    """Of all ordered pairs of different rows, however many rows either set has."""
    pair, triple = np.array([[0.0], [2.0]]), np.array([[0.0], [1.0], [2.0]])
    assert diversity(pair, triple) == pytest.approx(2 / ((1 + 1 + 2) / 3), rel=1e-12)
    assert diversity(triple, pair) == pytest.approx((1 + 1 + 2) / 3 / 2, rel=1e-12)
