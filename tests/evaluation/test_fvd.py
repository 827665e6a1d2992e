import dataclasses

import jax
import numpy as np
import pytest
from toys import Brightness, FitLines, Videos, judged_by, small_mesh

from dit_video.data.batch import Batch
from dit_video.data.record import Split
from dit_video.data.transforms import ClipTransform
from dit_video.evaluation import i3d, i3d_weights
from dit_video.evaluation.card import differing_scale
from dit_video.evaluation.features import cache_folder
from dit_video.evaluation.frechet import frechet_distance
from dit_video.evaluation.fvd import FVD, Generated, numbered, shuffle_frames
from dit_video.nn.module import define, params_of
from dit_video.tasks.evaluator import EvaluationData, Report
from dit_video.tasks.subject import Subject
from dit_video.weights.digest import weights_digest

YARDSTICKS = {
    "training clips",
    "training clips, first frame held still",
    "training clips through the codec",
}
COMPANIONS = {"samples, frames shuffled", "samples against training clips"}
NUM_CLIPS = 20


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def subject_on(num_devices: int = 1, **axes: int) -> Subject:
    """Its samples are grey by label; its reconstructions are perfect."""
    definition = define(FitLines().init)
    subject = Subject(FitLines(), definition, None, small_mesh(num_devices, **axes), {"run": "toys", "sampler": "none"})
    return subject.with_weights(params_of(FitLines().init(jax.random.key(0))), step=7, ema=True)


@pytest.fixture(scope="module")
def stills() -> Batch:
    """Clips of ten frames in which nothing moves."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_CLIPS, 1, 8, 8, 3), np.uint8)
    return Batch(video=np.repeat(images, 10, axis=1), signals={"label": np.arange(NUM_CLIPS, dtype=np.int32) * 10})


@pytest.fixture
def report(stills) -> Report:
    return judge()(subject_on(), judged_by(stills), 5)


def judge(**settings) -> FVD:
    """A batch of three has rows that only fill up the last one."""
    return FVD(every=1, num_clips=NUM_CLIPS, num_frames=9, batch_size=3, extractor=Brightness(), **settings)


@pytest.mark.slow
def test_fvd_is_the_distance_of_logits(stills):
    report = FVD(every=1, num_clips=2, num_frames=9, batch_size=2, yardsticks=False)(subject_on(), judged_by(stills), 5)
    grey = np.broadcast_to(stills.signals["label"].astype(np.uint8)[:2, None, None, None, None], (2, 9, 8, 8, 3))
    real = np.asarray(stills.video)[:2, :9]
    expected = frechet_distance(*(i3d.logits(np.ascontiguousarray(x), batch_size=2) for x in (grey, real)))
    assert report.scalars["fvd"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1
    assert report.cards["fvd"]["protocol"]["weights"] == i3d_weights.SHA256


def test_yardsticks_are_zero_where_nothing_differs(report):
    """Training and held-out clips are the same here, a still is its first frame, and the codec loses nothing."""
    for name in YARDSTICKS:
        assert abs(report.scalars[f"fbd {name}"]) < 1e-6 * report.scalars["fbd"], name


def test_companions_are_the_same_samples_otherwise(report):
    """Nothing moves in a sample, so the order of its frames is all one; training clips are the held-out ones here."""
    for name in COMPANIONS:
        assert report.scalars[f"fbd {name}"] == pytest.approx(report.scalars["fbd"], rel=1e-6)


def test_the_card_says_how_and_of_what(report, stills):
    card = report.cards["fvd"]
    assert card["metric"] == "FBD"
    assert card["value"] == report.scalars["fbd"] == pytest.approx(card["mean_term"] + card["covariance_term"])
    assert card["kernel_distance"] == report.scalars["fbd kernel"] > 0
    assert card["interval"]["low"] < card["value"] < card["interval"]["high"]
    assert card["yardsticks"].keys() == YARDSTICKS
    assert card["companions"].keys() == COMPANIONS
    assert card["measures"].keys() == {"diversity"}
    assert "held-out clips are training clips" in card["notes"][-1]
    assert card["protocol"] == {
        "content": judged_by(stills).digest(Split.HELD_OUT, NUM_CLIPS),
        "num_clips": NUM_CLIPS,
        "num_frames": 9,
        "fps": 8.0,
        "cut": "whole",
        "features": "brightness",
        "gain": 1.0,
        "pairs": False,
    }
    training = judged_by(stills).digest(Split.TRAIN, NUM_CLIPS)
    assert card["references"] == {"set": "toys", "training clips": training}
    assert card["subject"] == {
        "run": "toys",
        "sampler": "none",
        "step": 7,
        "weights": "ema",
        "digest": weights_digest(subject_on().params),
        "seed": 5,
    }


@pytest.mark.parametrize(("num_devices", "axes"), [(2, {}), (4, {"fsdp": 4}), (8, {"fsdp": 2, "tensor": 2}), (8, {})])
def test_the_value_does_not_depend_on_devices_or_batches(report, stills, num_devices, axes, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    other = judge()(subject_on(num_devices, **axes), judged_by(stills), 5)
    for name, value in report.scalars.items():
        assert other.scalars[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_real_clips_are_extracted_once_and_again_when_a_byte_changes(stills, monkeypatch):
    rows = []
    on = Brightness.on

    def counting(self, mesh):
        extract = on(self, mesh)
        return lambda video: rows.append(len(video)) or extract(video)

    monkeypatch.setattr(Brightness, "on", counting)
    first = judge(yardsticks=False)(subject_on(), judged_by(stills), 0)
    real_and_fake = len(rows)
    again = judge(yardsticks=False)(subject_on(), judged_by(stills), 0)
    assert len(rows) == real_and_fake * 3 / 2
    assert again.scalars == first.scalars
    video = np.array(stills.video)
    video[0, 0, 0, 0, 0] ^= 255
    judge(yardsticks=False)(subject_on(), judged_by(stills._replace(video=video)), 0)
    assert len(rows) == real_and_fake * 5 / 2
    judge(yardsticks=False)(subject_on(), judged_by(stills), 0)
    assert len(list(cache_folder().iterdir())) == 2


def test_samples_stand_above_their_nearest_training_clips(stills):
    """Training clips are the grey samples themselves, in another order: each finds its own."""
    grey = np.broadcast_to(stills.signals["label"].astype(np.uint8)[:, None, None, None, None], stills.video.shape)
    order = np.random.default_rng(1).permutation(NUM_CLIPS)
    held_out, training = judged_by(stills), judged_by(stills._replace(video=np.ascontiguousarray(grey[order])))

    def batches(split, num_clips, batch_size):
        return (training if split is Split.TRAIN else held_out).batches(split, num_clips, batch_size)

    data = judged_by(stills)
    report = judge()(subject_on(), type(data)(**{**vars(data), "batches": batches}), 5)
    picture = report.media["nearest"].frames
    assert picture.shape == (10, 8 + 2 + 8, 8 * 8 + 7 * 2, 3)
    np.testing.assert_array_equal(picture[:, :8], picture[:, 10:])
    assert len(np.unique(picture[0, 0])) == 8 + 1, "eight different samples, and the white between"
    assert report.scalars["fbd novelty"] == pytest.approx(0, abs=1e-6)
    card = report.cards["fvd"]
    np.testing.assert_array_equal(order[card["nearest"]["clip"]], np.arange(NUM_CLIPS))
    np.testing.assert_allclose(card["nearest"]["distance"], 0, atol=1e-6)


def test_a_sample_is_made_again_as_it_was(stills):
    data = judged_by(stills)
    generated = Generated(subject_on(), data, 3)
    every = np.concatenate(list(generated.batches(NUM_CLIPS, 6)))
    some = np.array([17, 2, 2, 11])
    np.testing.assert_array_equal(generated.numbered(some, NUM_CLIPS, 6), every[some])
    np.testing.assert_array_equal(numbered(data, Split.TRAIN, some, NUM_CLIPS, 6).video, np.asarray(stills.video)[some])


def test_shuffling_keeps_the_frames_of_a_clip_and_depends_on_its_number_alone():
    video = np.arange(3 * 6, dtype=np.uint8).reshape(3, 6, 1, 1, 1).repeat(3, axis=-1)
    shuffled = shuffle_frames(video, [0, 1, 2])
    assert not np.array_equal(shuffled, video)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), video)
    np.testing.assert_array_equal(shuffle_frames(video[1:2], [1]), shuffled[1:2])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rebuilt(FitLines):
    """A codec: it makes the clips of a batch again."""

    @property
    def paired(self):
        return True

    def generate(self, model, frozen, batch, rngs, shape):
        return batch.video


def test_a_codec_is_never_ranked_with_what_makes_new_clips(report, stills):
    definition = define(FitLines().init)
    subject = Subject(Rebuilt(), definition, None, small_mesh(), {})
    subject.with_weights(params_of(FitLines().init(jax.random.key(0))), step=7, ema=True)
    card = judge()(subject, judged_by(stills), 5).cards["fvd"]
    assert differing_scale(card, report.cards["fvd"]) == ["pairs"]
    assert card["value"] == pytest.approx(0, abs=1e-9)


def test_real_clips_of_a_longer_cut_are_other_clips(tmp_path, monkeypatch):
    """Windows depend on how long a clip is, so the same frames judged of 9 and of 14 frames are two protocols."""
    numbers = np.random.default_rng(0)
    records = [numbers.integers(0, 256, (30, 8, 8, 3), np.uint8) for _ in range(4)]

    def data(num_frames: int) -> EvaluationData:
        cut = ClipTransform(num_frames=num_frames, size=(8, 8))
        return EvaluationData.of({Split.HELD_OUT: Videos(records)}, {Split.HELD_OUT: cut}, seed=0, references={})

    judge = FVD(every=1, num_clips=4, num_frames=9, batch_size=4, extractor=Brightness(), yardsticks=False)
    first, same, longer = (judge(subject_on(), data(n), 0).cards["fvd"] for n in (9, 9, 14))
    assert differing_scale(first, same) == []
    assert first["value"] == same["value"]
    assert differing_scale(first, longer) == ["content"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert judge(subject_on(), data(14), 0).cards["fvd"]["value"] == longer["value"], "kept features of other clips"


def test_clips_shorter_than_what_is_judged_are_refused(stills):
    with pytest.raises(ValueError, match=r"FVD\.num_frames=16: clips have 10 frames"):
        FVD(every=1, num_clips=2)(subject_on(), judged_by(stills), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 8}, r"FVD\.num_frames=8: FVD needs at least 9"),
        ({"batch_size": 0}, r"FVD\.batch_size=0: must be at least 1"),
        ({"num_clips": 1}, r"FVD\.num_clips=1: must be at least 2; 2048"),
    ],
)
def test_settings_that_give_no_distance_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FVD(every=1, **settings)
