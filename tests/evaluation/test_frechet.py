import itertools
import math

import numpy as np
import pytest

from dit_video.evaluation.frechet import (
    FeatureMoments,
    FrechetTerms,
    _compressed,
    frechet_distance,
    frechet_terms,
    kernel_distance,
)


def features(seed, num_rows, size, *, decay=0.0):
    """Rows with standard deviation exp(-decay i) in direction i."""
    rows = np.random.default_rng(seed).normal(size=(num_rows, size))
    return rows * np.exp(-decay * np.arange(size))


def with_moments(rows, mean, deviation):
    """The rows moved so that their mean and (diagonal) N - 1 covariance are exactly these."""
    rows = rows - rows.mean(axis=0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return white * deviation + mean


@pytest.mark.parametrize("num_rows", [2, 30, 400])
def test_identical_sets_have_distance_zero(num_rows):
    x = features(0, num_rows, 64)
    assert abs(frechet_distance(x, x.copy())) < 1e-6
    assert abs(FeatureMoments.of(x).frechet_terms(FeatureMoments.of(x)).value) < 1e-6


def test_gaussians_with_diagonal_covariance_have_the_closed_form():
    mean_x, deviation_x = np.array([0.0, 3.0, -1.0]), np.array([1.0, 2.0, 0.5])
    mean_y, deviation_y = np.array([1.0, 1.0, -1.0]), np.array([3.0, 2.0, 1.0])
    x = with_moments(features(1, 50, 3), mean_x, deviation_x)
    y = with_moments(features(2, 70, 3), mean_y, deviation_y)
    terms = frechet_terms(x, y)
    assert terms.mean_term == pytest.approx(5.0, rel=1e-12)
    assert terms.covariance_term == pytest.approx(np.square(deviation_x - deviation_y).sum(), rel=1e-10)
    assert frechet_distance(x, y) == terms.value == terms.mean_term + terms.covariance_term


def test_full_covariances_agree_with_roots_of_the_product_s_eigenvalues():
    x, y = features(3, 300, 8) @ features(4, 8, 8), features(5, 200, 8) @ features(6, 8, 8)
    s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(s_x @ s_y).real).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s_x + s_y) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_symmetric_and_invariant_to_shift_and_rotation():
    x, y = features(7, 20, 12), 1 + 2 * features(8, 25, 12)
    rotation, _ = np.linalg.qr(features(9, 12, 12))
    expected = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(x @ rotation + 3, y @ rotation + 3) == pytest.approx(expected, rel=1e-10)


def test_a_large_offset_costs_no_more_than_the_rounding_of_the_features():
    x, y = features(10, 64, 8), 0.5 + 1.3 * features(11, 64, 8)
    expected = frechet_distance(x, y)
    assert frechet_distance(x + 1e5, y + 1e5) == pytest.approx(expected, rel=1e-8)
    moments = FeatureMoments.of(x + 1e5).frechet_terms(FeatureMoments.of(y + 1e5))
    assert moments.value == pytest.approx(expected, rel=1e-8)


def test_singular_covariances_give_the_distance_in_the_subspace():
    """Few rows, or directions that nothing varies in, change nothing."""
    x, y = features(12, 200, 4), 1 + 2 * features(13, 150, 4)
    wide = np.linalg.qr(features(14, 40, 4))[0].T
    assert frechet_distance(x @ wide, y @ wide) == pytest.approx(frechet_distance(x, y), rel=1e-10)
    assert frechet_distance(x[:3] @ wide, y[:3] @ wide) == pytest.approx(frechet_distance(x[:3], y[:3]), rel=1e-10)


def test_constant_features_leave_the_mean_term_alone():
    x, y = np.full((5, 7), 1.0), np.full((3, 7), 3.0)
    assert frechet_terms(x, y) == FrechetTerms(28.0, 0.0)


def test_kernel_distance_is_the_mean_over_pairs_of_different_rows():
    x, y = features(15, 4, 3), 1 + features(16, 5, 3)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i, j in itertools.permutations(range(4), 2)])
    within_y = np.mean([kernel(y[i], y[j]) for i, j in itertools.permutations(range(5), 2)])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)
    assert kernel_distance(x, y, block_size=5) == pytest.approx(kernel_distance(x, y), rel=1e-12)


@pytest.mark.slow
def test_kernel_distance_is_unbiased_in_blocks_and_at_once():
    values = np.array(
        [
            [kernel_distance(x, y), kernel_distance(x, y, block_size=8)]
            for x, y in ((features(i, 16, 6), features(1000 + i, 16, 6)) for i in range(300))
        ]
    )
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    assert (np.abs(values.mean(axis=0)) < 4 * error).all()
    assert values.min() < 0


def test_moments_merge_in_any_order_to_those_of_all_rows():
    x, y = 1e3 + features(17, 57, 9), features(18, 40, 9)
    chunks = [FeatureMoments.of(chunk) for chunk in np.split(x, [1, 2, 10, 31])]
    forward, backward = chunks[0], chunks[-1]
    for left, right in zip(chunks[1:], chunks[-2::-1]):
        forward, backward = forward.merge(left), backward.merge(right)
    for pooled in (forward, backward):
        assert pooled.count == 57
        np.testing.assert_allclose(pooled.mean, x.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(pooled.covariance, np.cov(x, rowvar=False), atol=1e-10)
        terms = pooled.frechet_terms(FeatureMoments.of(y))
        assert terms.value == pytest.approx(frechet_distance(x, y), rel=1e-9)


@pytest.mark.parametrize("num_rows", [12, 300])
def test_moments_reach_their_stated_tolerance_on_a_steep_spectrum(num_rows):
    """Variances over 34 orders of magnitude, with fewer rows than columns and with more."""
    x, y = features(19, num_rows, 40, decay=1.0), 1.1 * features(20, num_rows + 5, 40, decay=0.9)
    terms = FeatureMoments.of(x).frechet_terms(FeatureMoments.of(y))
    trace = np.trace(FeatureMoments.of(x).covariance + FeatureMoments.of(y).covariance)
    assert abs(terms.value - frechet_distance(x, y)) < 1e-6 * trace


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(4), r"shape \(4,\), must be \[N D\]"),
        (np.zeros((1, 4)), "N=1 rows, must be at least 2"),
        (np.zeros((5, 4), int), "are int64, must be floating point"),
        (np.array([[0.0] * 4, [0, np.nan, 0, 0], [0] * 4]), "1 of 3 rows are not finite, first row 1"),
        (np.zeros((5, 3)), "D=3 and D=4"),
    ],
)
def test_bad_features_are_named(x, message):
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=message):
            distance(x, np.zeros((5, 4)))


def test_bad_blocks_and_moments_are_named():
    x = np.zeros((5, 4))
    with pytest.raises(ValueError, match="block_size=1, must be at least 2"):
        kernel_distance(x, x, block_size=1)
    with pytest.raises(ValueError, match="some of fewer than 2 rows"):
        kernel_distance(x, np.zeros((40, 4)), block_size=4)
    with pytest.raises(ValueError, match="count=1, must be at least 2"):
        _ = FeatureMoments.of(x[:1]).covariance
    four, three = FeatureMoments.of(x), FeatureMoments.of(x[:, :3])
    for combine in (FeatureMoments.merge, FeatureMoments.frechet_terms):
        for one, other, message in ((four, three, "D=4 and D=3 differ"), (three, four, "D=3 and D=4 differ")):
            with pytest.raises(ValueError, match=message):
                combine(one, other)


@pytest.mark.parametrize("num_rows", [3, 6, 400])
def test_many_rows_are_compressed_to_as_many_as_directions(num_rows):
    """r^T r = x^T x: a product of two such has the singular values of that of all rows, at a fraction of its size."""
    x = features(0, num_rows, 6)
    r = _compressed(x)
    assert r is x if num_rows <= 6 else r.shape == (6, 6)
    np.testing.assert_allclose(r.T @ r, x.T @ x, atol=1e-10)
