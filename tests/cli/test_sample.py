"""What `sample` is told: rows of the grid, and mistakes that it explains."""

import argparse
import dataclasses
import inspect
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toys import small_mesh

from dit_video.cli.sample import SAMPLERS, prompts, sampled_by_prompts
from dit_video.data.captions import encode_captions
from dit_video.data.dataset import Data
from dit_video.data.record import NO_LABEL
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.multistep import UniPC
from dit_video.diffusion.sampler import Sampler
from dit_video.diffusion.timestep_spacing import Linspace
from dit_video.dit.condition import ClassCondition, Condition, TextCondition
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.run.open import OpenRun
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW

CLASS = ClassCondition(num_classes=10)
TEXT = TextCondition(hidden_size=16, depth=1, num_heads=2)


@pytest.fixture
def opened(denoise, tmp_path):
    """Opens a run under a condition, on digits whose classes have names."""
    digits = MovingDigits(directory=str(tmp_path / "digits"), num_train=2, num_held_out=2, size=16, digit_size=10)
    data = Data(source=digits, clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=2, caption_bytes=12)

    def under(condition: Condition | None) -> OpenRun:
        task = dataclasses.replace(denoise, condition=condition)
        experiment = Experiment(task=task, data=data, optimizer=AdamW(), schedule=Schedule(num_steps=1))
        definition = define(task.init)
        return OpenRun(Path("runs/none"), experiment, definition, {}, None, small_mesh(), 1, True)

    return under


def tell(opened: OpenRun, *, out: io.StringIO | None = None, **words):
    silent = {"label": None, "text": None, "negative_prompt": None}
    return prompts(argparse.Namespace(**silent | words), opened, Console(file=out or io.StringIO()))


def rows(opened: OpenRun, **words):
    return tell(opened, **words).rows


def test_each_text_is_a_row_and_without_any_there_is_one_of_none(opened):
    found = np.concatenate([row.caption for row in rows(opened(TEXT), text=["up", "down"])])
    np.testing.assert_array_equal(found, encode_captions(["up", "down"], 12))
    (none,) = rows(opened(TEXT))
    np.testing.assert_array_equal(none.caption, TEXT.null(TEXT.read(caption=found[:1])))
    assert none.label is None


def test_a_label_goes_by_name_or_number_or_all_of_them(opened):
    names = {"seven": [7], "3": [3], "all": list(range(10)), None: [NO_LABEL]}
    for name, labels in names.items():
        assert [int(row.label[0]) for row in rows(opened(CLASS), label=name)] == labels
    with pytest.raises(ValueError, match="--label=eleven: must be one of zero, one"):
        rows(opened(CLASS), label="eleven")


def test_a_text_that_is_cut_is_said_to_be(opened):
    out = io.StringIO()
    rows(opened(TEXT), text=["eleven byte"], out=out)
    assert out.getvalue() == ""
    rows(opened(TEXT), text=["twelve bytes"], out=out)
    assert "is cut: config.data.caption_bytes=12 leaves room for 11" in out.getvalue()


def test_a_negative_prompt_takes_the_place_of_nothing(opened):
    guided = sampled_by_prompts(argparse.Namespace(sampler=None, num_steps=None, guidance=2.0), opened(TEXT))
    assert tell(guided).null is None
    np.testing.assert_array_equal(tell(guided, negative_prompt="down").null, encode_captions(["down"], 12))
    with pytest.raises(ValueError, match="--negative_prompt='down': guidance is off; switch it on with --guidance"):
        tell(opened(TEXT), negative_prompt="down")


@pytest.mark.parametrize(
    ("condition", "words", "message"),
    [
        (TEXT, {"label": "3"}, "--label=3: this run is conditioned on text; say what is to be seen with --text"),
        (CLASS, {"text": ["up"]}, "--text='up': this run is not conditioned on text; name a class with --label"),
        (None, {"text": ["up"]}, "--text='up': this run is not conditioned on text; leave it out"),
        (None, {"label": "3"}, "--label=3: this run is not conditioned on a class; leave it out"),
        (CLASS, {"negative_prompt": "up"}, "--negative_prompt='up': this run is not conditioned on text; name a class"),
    ],
)
def test_what_a_run_does_not_know_is_refused(opened, condition, words, message):
    with pytest.raises(ValueError, match=message):
        rows(opened(condition), **words)


def sampled(opened: OpenRun, *, sampler: str | None = None, num_steps: int | None = None, guidance=None):
    options = argparse.Namespace(sampler=sampler, num_steps=num_steps, guidance=guidance)
    return sampled_by_prompts(options, opened).experiment.task


def test_what_is_not_told_of_sampling_stays_as_in_the_run(opened):
    original = opened(CLASS)
    assert sampled(original) == original.experiment.task


def test_another_sampler_keeps_the_spacing_and_the_steps_unless_told(opened):
    original = opened(CLASS)
    spaced = dataclasses.replace(original.experiment.task.sampler, spacing=Linspace())
    task = dataclasses.replace(original.experiment.task, sampler=spaced)
    original = dataclasses.replace(original, experiment=dataclasses.replace(original.experiment, task=task))
    assert sampled(original, sampler="unipc").sampler == UniPC(num_steps=spaced.num_steps, spacing=Linspace())
    for name, kind in SAMPLERS.items():
        assert sampled(original, sampler=name, num_steps=7).sampler == kind(num_steps=7, spacing=Linspace())


def test_guidance_is_for_runs_with_a_condition(opened):
    assert sampled(opened(CLASS), guidance=3.5).guidance.scale == 3.5
    with pytest.raises(ValueError, match=r"--guidance=3\.5: this run follows no label and no text"):
        sampled(opened(None), guidance=3.5)
    with pytest.raises(ValueError, match=r"num_steps=0"):
        sampled(opened(CLASS), num_steps=0)


def test_every_sampler_has_a_word():
    def kinds(kind):
        return {kind} | {leaf for child in kind.__subclasses__() for leaf in kinds(child)}

    concrete = {kind for kind in kinds(Sampler) if not inspect.isabstract(kind) and kind.__module__.startswith("dit_")}
    assert concrete == set(SAMPLERS.values())
