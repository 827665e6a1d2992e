import jax
import numpy as np
import pytest
from toys import FitLines, judged_by, small_mesh

from dit_video.checkpoint import weights_digest
from dit_video.data.batch import Batch
from dit_video.evaluation import i3d, i3d_weights
from dit_video.evaluation.frechet import frechet_distance
from dit_video.evaluation.fvd import FVD
from dit_video.evaluation.i3d import ResizeRule
from dit_video.nn.module import define, params_of
from dit_video.sharding import place, replicated
from dit_video.tasks.task import Report, Subject

YARDSTICKS = ("training clips", "first frame held still", "codec reconstruction")


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Its samples are grey by label; its reconstructions are perfect."""
    definition = define(FitLines().init)
    subject = Subject(FitLines(), definition, None, small_mesh(), {"run": "toys", "sampler": "none"})
    return subject.hold(params_of(FitLines().init(jax.random.key(0))), step=7, ema=True)


@pytest.fixture(scope="module")
def stills() -> Batch:
    """Two clips of ten frames in which nothing moves."""
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8, 3), np.uint8)
    return Batch(video=np.repeat(images, 10, axis=1), label=np.array([0, 200], np.int32))


@pytest.fixture(scope="module")
def report(subject, stills) -> Report:
    """A batch of three has one row that only fills it up."""
    return FVD(every=1, num_clips=2, num_frames=9, batch_size=3)(subject, judged_by(stills), 5)


def test_fvd_is_the_distance_of_logits_of_real_rows(report, subject, stills):
    definition, weights = i3d.pretrained()

    def logits(video: np.ndarray) -> np.ndarray:
        # Placed as above, and as many rows: nothing is compiled again.
        rows = place(video[[0, 1, 0], :9], subject.mesh)
        with jax.set_mesh(subject.mesh):
            placed = jax.device_put(weights, replicated(subject.mesh))
            return np.asarray(i3d.forward(definition, placed, rows, ResizeRule.TF1))[:2]

    grey = np.broadcast_to(stills.label.astype(np.uint8)[:, None, None, None, None], stills.video.shape)
    expected = frechet_distance(logits(grey), logits(stills.video))
    assert report.scalars["fvd"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1


def test_yardsticks_are_zero_where_nothing_differs(report):
    """Training and held-out clips are the same here, a still is its first frame, and the codec loses nothing."""
    assert report.scalars.keys() == {"fvd", *(f"fvd {name}" for name in YARDSTICKS)}
    for name in YARDSTICKS:
        assert abs(report.scalars[f"fvd {name}"]) < 1e-3 * report.scalars["fvd"], name


def test_the_card_says_how_and_of_what(report, subject):
    card = report.cards["fvd"]
    assert card["value"] == report.scalars["fvd"] == pytest.approx(card["mean_term"] + card["covariance_term"])
    assert card["yardsticks"].keys() == set(YARDSTICKS)
    assert card["protocol"] == {
        "set": "toys",
        "split": "held_out",
        "num_clips": 2,
        "num_frames": 9,
        "fps": 8.0,
        "resize": "tf1",
        "weights": i3d_weights.SHA256,
    }
    assert card["subject"] == {
        "run": "toys",
        "sampler": "none",
        "step": 7,
        "weights": "ema",
        "digest": weights_digest(subject.params),
        "seed": 5,
    }


def test_clips_shorter_than_what_is_judged_are_refused(subject, stills):
    with pytest.raises(ValueError, match=r"FVD\.num_frames=16: clips have 10 frames"):
        FVD(every=1, num_clips=2)(subject, judged_by(stills), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 8}, r"FVD\.num_frames=8: I3D needs at least 9"),
        ({"num_clips": 1}, r"FVD\.num_clips=1: must be at least 2; 2048"),
    ],
)
def test_settings_that_give_no_distance_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FVD(every=1, **settings)
