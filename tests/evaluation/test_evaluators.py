import dataclasses

import jax
import numpy as np
import pytest
from toys import FitLines, judged_by, line_batch, small_mesh

from dit_video.data.batch import Batch
from dit_video.evaluation.evaluators import HeldOutError, Reconstruction, Samples
from dit_video.nn.module import define, params_of
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import Function, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flipped(FitLines):
    """Its reconstruction is off by one grey level everywhere."""

    def functions(self):
        return {"reconstruct": Function(lambda model, frozen, batch, keys, shape: batch.video ^ 1, Video)}


def subject_of(task: Task) -> Subject:
    definition = define(task.init)
    subject = Subject(task, definition, None, small_mesh(), {})
    return subject.with_weights(params_of(task.init(jax.random.key(0))), step=3, ema=True)


@pytest.fixture
def lines() -> Batch:
    return line_batch(0, size=10)


@pytest.fixture
def videos() -> Batch:
    """Ten clips that move, labelled by their number."""
    video = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16, 3), np.uint8)
    return Batch(video=video, signals={"label": np.arange(10, dtype=np.int32)})


@pytest.mark.parametrize("batch_size", [2, 4, 16])
def test_held_out_error_is_the_mean_over_clips_however_they_are_batched(lines, batch_size):
    """Rows that only fill up a batch do not count."""
    report = HeldOutError(every=1, num_clips=10, batch_size=batch_size)(subject_of(FitLines()), judged_by(lines), 0)
    model = FitLines().init(jax.random.key(0))
    x, y = np.split(lines.moments, 2, axis=-1)
    assert report.scalars["error"] == pytest.approx(float(np.square(np.asarray(model(x)) - y).mean()), rel=1e-5)


def test_the_noise_of_a_held_out_clip_is_its_own_however_clips_are_batched(lines):
    subject = subject_of(FitLines())

    def draw(seed, **sizes):
        return HeldOutError(every=1, **sizes)(subject, judged_by(lines), seed).scalars["draw"]

    first = draw(0, num_clips=10, batch_size=5)
    assert first == draw(0, num_clips=10, batch_size=5) == pytest.approx(draw(0, num_clips=10, batch_size=4))
    assert first != draw(1, num_clips=10, batch_size=5)
    assert first != draw(0, num_clips=5, batch_size=5)


def test_samples_stand_below_held_out_clips_of_their_label(videos):
    report = Samples(every=1, num_clips=4)(subject_of(FitLines()), judged_by(videos), 0)
    picture = report.media["samples"].frames
    # Two rows of four cells of 16x16, white lines of two pixels between.
    assert picture.shape == (3, 16 + 2 + 16, 4 * 16 + 3 * 2, 3)
    for clip in range(4):
        left = clip * 18
        np.testing.assert_array_equal(picture[:, :16, left : left + 16], videos.video[clip])
        np.testing.assert_array_equal(picture[:, 18:, left : left + 16], clip)
    assert report.scalars == {}


def test_reconstruction_is_judged_per_clip_beside_what_ignores_motion(videos):
    judge = Reconstruction(every=1, num_clips=10, batch_size=4, num_shown=3)
    report = judge(subject_of(Flipped()), judged_by(videos), 0)
    assert report.scalars["psnr"] == pytest.approx(20 * np.log10(255), rel=1e-5)
    assert 0.99 < report.scalars["ssim"] < 1
    video = videos.video.astype(np.float64)
    still = video.mean(axis=1, keepdims=True).round()
    error = np.square(video - still).mean(axis=(1, 2, 3, 4))
    assert report.scalars["psnr_mean_frame"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), rel=1e-4)
    picture = report.media["reconstruction"].frames
    np.testing.assert_array_equal(picture[:, 18:, :16], videos.video[0] ^ 1)
    assert picture.shape[2] == 3 * 16 + 2 * 2


def test_a_clip_without_error_does_not_make_the_mean_infinite(videos):
    still = videos._replace(video=np.repeat(videos.video[:, :1], 3, axis=1))
    scalars = Reconstruction(every=1, num_clips=10, batch_size=4)(subject_of(FitLines()), judged_by(still), 0).scalars
    assert (
        scalars["psnr"]
        == scalars["psnr_mean_frame"]
        == pytest.approx(10 * np.log10(255**2 * 3 * 16 * 16 * 3), rel=1e-6)
    )
