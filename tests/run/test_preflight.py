"""An experiment that does not fit its data is refused before its train step is compiled: both numbers and a remedy."""

import dataclasses
import re

import numpy as np
import pytest
from toys import SMALL_DENOISE, Videos, untrained

from dit_video.cli.main import main
from dit_video.config.user_file import ExperimentError
from dit_video.data.latent_cache import CodecQuality, write_latent_cache
from dit_video.data.record import NO_LABEL, Clip, Split
from dit_video.data.signals import CAPTION, CaptionBytes
from dit_video.data.sources import LatentCache, SourceInfo
from dit_video.data.transforms import usable
from dit_video.dit.condition import ClassCondition, TextCondition
from dit_video.evaluation.evaluators import HeldOutError, Reconstruction, Samples
from dit_video.evaluation.fvd import FVD
from dit_video.experiment import Experiment
from dit_video.run.latents import codec_quality
from dit_video.run.preflight import preflight

CLASSES = ("cat", "dog", "owl", "fox", "bee")
TEXT = TextCondition(hidden_size=8, depth=1, num_heads=1)
# Frames of the videos of each split; a clip takes 5.
HELD = {Split.TRAIN: (5, 9, 7, 4, 5, 5), Split.HELD_OUT: (5, 6)}


class Described(Videos):
    """Videos whose labels and captions are known."""

    labels = captions = fps = None

    def __init__(self, frames, labels=None, captions=None, fps=None):
        super().__init__([np.zeros((n, 16, 16, 3), np.uint8) for n in frames])
        self.labels, self.captions = None if labels is None else np.array(labels), captions
        self.fps = None if fps is None else np.array(fps, float)


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of so many frames, labels and captions."""

    held: dict
    labels: tuple | None = None
    captions: tuple | None = None
    class_names: tuple = CLASSES
    fps: tuple | None = None

    def open(self, split: Split) -> Described:
        number = len(self.held[split])
        return Described(self.held[split], *(x and x[:number] for x in (self.labels, self.captions, self.fps)))

    def info(self) -> SourceInfo:
        counts = {split: len(self.held.get(split, ())) for split in Split}
        return SourceInfo(class_names=self.class_names, num_records=counts, digest="", split_digest={})


def experiment(condition=None, signals=None, evaluators=None, held=HELD, **source) -> Experiment:
    base = untrained(dataclasses.replace(SMALL_DENOISE, condition=condition))
    data = dataclasses.replace(base.data, source=Source(held, **source))
    if signals:
        data = dataclasses.replace(data, signals=signals)
    return dataclasses.replace(base, data=data, evaluators=evaluators or {})


def test_what_fits_is_said_nothing_of_but_what_is_left_out():
    fits = experiment(
        ClassCondition(num_classes=5), labels=range(6), evaluators={"error": HeldOutError(every=1, num_clips=3)}
    )
    assert preflight(fits) == ["1 of 6 training videos are too short for a clip and are left out"]
    assert preflight(experiment(ClassCondition(num_classes=9), held={Split.TRAIN: (5,)}, labels=(0,))) == []


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (experiment(ClassCondition(num_classes=2)), "num_classes=2: the data have 5 classes (cat, dog, owl, ...); set"),
        (
            experiment(ClassCondition(num_classes=5), labels=(NO_LABEL,) * 6),
            "none of the 5 training videos has a class",
        ),
        (
            experiment(TEXT, captions=("",) * 6),
            "none of the 5 training videos has a caption; TextCondition: make",
        ),
        (
            experiment(held={Split.TRAIN: (4, 4)}),
            "num_frames=5, stride=1: a clip takes 5 frames, but the longest of 2 videos has 4",
        ),
        (
            experiment(evaluators={"error": HeldOutError(every=1)}),
            "config.evaluators.error.num_clips=64: the records give only 3 different clips (2 held-out videos",
        ),
        (
            experiment(evaluators={"fvd": FVD(every=1, num_clips=4)}),
            "config.evaluators.fvd.num_clips=4: the records give only 3 different clips",
        ),
        (
            experiment(held={Split.TRAIN: (9,)}, evaluators={"samples": Samples(every=1, num_clips=2)}),
            "config.evaluators.samples.num_clips=2: the data have no held-out videos; make the set with some",
        ),
    ],
    ids=["classes", "no class", "no caption", "too short", "few clips", "few for FVD", "no held-out"],
)
def test_what_does_not_fit_is_refused_with_both_numbers(experiment, message):
    with pytest.raises(ExperimentError, match=re.escape(message)):
        preflight(experiment)


def test_what_is_lost_in_part_is_a_warning():
    some = experiment(
        TEXT, {CAPTION: CaptionBytes(num_bytes=5)}, captions=["", "1234", "12345", "lost", "ää1", "123456789"]
    )
    assert preflight(some)[:2] == [
        "1 of 5 training videos have no caption, and are learnt as without condition",
        "config.data.signals.caption: num_bytes=5 leaves room for 4: 3 of 5 captions are longer and are cut, the "
        "longest has 9; 10 would hold them all",
    ]


def test_videos_of_several_rates_are_a_warning_unless_clips_have_one():
    mixed = experiment(held={Split.TRAIN: (50, 50, 2)}, fps=(25, 12.5, 60))
    # What is too short for a clip has no rate that matters.
    assert preflight(mixed)[1].startswith("config.data.clips: clips have 12.5 to 25 frames a second, each its own; ")
    clips = dataclasses.replace(mixed.data.clips, fps=10.0)
    assert len(preflight(dataclasses.replace(mixed, data=dataclasses.replace(mixed.data, clips=clips)))) == 1


def test_records_are_not_read_to_be_counted(monkeypatch):
    """A source that can count frames only by reading every record is left to training, which reads them anyway."""
    monkeypatch.setattr(Described, "reads_to_count", True)
    monkeypatch.setattr(Described, "num_frames", property(lambda self: pytest.fail("it reads every record")))
    assert preflight(experiment(evaluators={"error": HeldOutError(every=1)})) == []


@pytest.mark.parametrize(("warmup", "warned"), [(0, False), (999, False), (1000, True)])
def test_a_warm_up_that_outlasts_the_run_is_a_warning(warmup, warned):
    base = experiment(held={Split.TRAIN: (5,)})
    slow = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, warmup_steps=warmup))
    assert any("warmup_steps=1000: the run ends after 1000 steps" in line for line in preflight(slow)) == warned


@dataclasses.dataclass(frozen=True)
class Moving(Source):
    """Videos of random frames, whose mean frame is grey."""

    def open(self, split: Split) -> Videos:
        numbers = np.random.default_rng(0)
        return Videos([numbers.integers(0, 256, (n, 16, 16, 3), np.uint8) for n in self.held[split]])


@pytest.mark.parametrize(
    ("loss", "held", "judged"), [(0.1, HELD, ("held_out", 3)), (1.0, {Split.TRAIN: (5, 4)}, ("train", 1))]
)
def test_a_codec_is_measured_against_still_pictures_of_held_out_clips(loss, held, judged):
    base = experiment(held=held)
    data = dataclasses.replace(base.data, source=Moving(held), batch_size=2)

    def towards_grey(video: np.ndarray) -> np.ndarray:
        return (video * (1 - loss) + 128 * loss).astype(np.uint8)

    quality = codec_quality(dataclasses.replace(base, data=data), towards_grey)
    assert (quality.split, quality.num_clips) == judged
    assert (quality.psnr > quality.psnr_mean_frame) == (loss < 1)
    assert 8 < quality.psnr_mean_frame < 12


def test_there_is_a_clip_of_every_video_that_is_long_enough_for_statistics():
    held = {Split.TRAIN: (9, 4, 5, 3, 5, 4)}
    data = dataclasses.replace(experiment(held=held).data, source=Moving(held), batch_size=2)
    total = len(usable(data.source.open(Split.TRAIN), data.clips))
    assert total == 3 == sum(valid for _, valid in data.judged(Split.TRAIN, total, 2, seed=0))


def test_a_cache_of_a_codec_that_loses_motion_is_a_warning(tmp_path):
    clips = {Split.TRAIN: [Clip(key="a", start=0, fps=8.0, moments=np.zeros((1, 1, 1, 2), np.float32))]}
    poor = CodecQuality(split="held_out", num_clips=3, psnr=11.0, psnr_mean_frame=25.0)
    write_latent_cache(tmp_path / "cache", clips, class_names=(), split_digests={}, provenance={}, quality=poor)
    base = experiment(held={Split.TRAIN: (5,)})
    data = dataclasses.replace(base.data, cache=LatentCache(directory=str(tmp_path / "cache")))
    (line,) = preflight(dataclasses.replace(base, data=data))
    assert line.startswith("config.data.cache: the codec keeps less of its clips than their mean frames do (PSNR 11.00")


@pytest.mark.parametrize("num_clips", [2, 3, 4, 1000])
@pytest.mark.parametrize("evaluator", [HeldOutError, Samples, Reconstruction, FVD])
def test_every_evaluator_takes_what_the_split_gives_and_no_more(evaluator, num_clips):
    judged = experiment(evaluators={"it": evaluator(every=1, num_clips=num_clips)})
    if num_clips <= 3:
        preflight(judged)
    else:
        with pytest.raises(ExperimentError, match="only 3 different clips"):
            preflight(judged)


def test_it_can_be_asked_for_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import test_preflight as t\ndef get_config(arg):\n"
        "    return t.experiment(t.ClassCondition(num_classes=int(arg)), labels=(0,) * 6)\n"
    )
    assert main(["show", "--config=mine.py:5", "--check"]) == 0
    assert "with 1 warning\n" in capsys.readouterr().out
    assert main(["show", "--config=mine.py:2", "--check"]) == 1
    assert "the data have 5 classes" in capsys.readouterr().err
