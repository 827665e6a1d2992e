"""What `sample` is told: rows of the grid, and mistakes that it explains."""

import dataclasses
import inspect
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from toys import small_mesh

from dit_video.cli.sample import SAMPLERS
from dit_video.data.captions import encode_captions
from dit_video.data.dataset import Data
from dit_video.data.record import NO_LABEL
from dit_video.data.signals import CaptionBytes, ClassLabel
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.multistep import UniPC
from dit_video.diffusion.sampler import Sampler
from dit_video.diffusion.timestep_spacing import Linspace
from dit_video.diffusion.unmasking import Order
from dit_video.dit.condition import ClassCondition, Condition, TextCondition
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.run.open_run import OpenRun
from dit_video.run.prompts import rows, typed, with_negative
from dit_video.tasks.latent_diffusion import Frozen
from dit_video.tasks.task import SamplingOptions
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW

CLASS = ClassCondition(num_classes=10)
TEXT = TextCondition(hidden_size=16, depth=1, num_heads=2)


@pytest.fixture
def opened(denoise, tmp_path):
    """Opens a run under a condition, on digits whose classes have names."""
    digits = MovingDigits(directory=str(tmp_path / "digits"), num_train=2, num_held_out=2, size=16, digit_size=10)
    data = Data(source=digits, clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=2)

    def under(condition: Condition | None) -> OpenRun:
        task = dataclasses.replace(denoise, condition=condition)
        signals = {"caption": CaptionBytes(num_bytes=12)} if condition == TEXT else {"label": ClassLabel()}
        own = dataclasses.replace(data, signals=signals)
        experiment = Experiment(task=task, data=own, optimizer=AdamW(), schedule=Schedule(num_steps=1))
        definition = define(task.init)
        return OpenRun(Path("runs/none"), experiment, definition, {}, None, small_mesh(), 1, True)

    return under


def prompted(opened: OpenRun, *, out: list[str] | None = None, label=None, text=None, cond=()):
    return rows(opened, typed({"--label": label, "--text": text}, cond), (out if out is not None else []).append)


def test_each_text_is_a_row_and_without_any_there_is_one_of_none(opened):
    found = np.concatenate([row.signals["caption"] for row in prompted(opened(TEXT), text=["up", "down"])])
    np.testing.assert_array_equal(found, encode_captions(["up", "down"], 12))
    (none,) = prompted(opened(TEXT))
    np.testing.assert_array_equal(none.signals["caption"], TEXT.null(TEXT.read({"caption": found[:1]})))
    assert set(none.signals) == {"caption"}


def test_a_label_goes_by_name_or_number_or_all_of_them(opened):
    names = {"seven": [7], "3": [3], "all": list(range(10)), None: [NO_LABEL]}
    for name, labels in names.items():
        made = prompted(opened(CLASS), label=name and [name])
        assert [int(row.signals["label"][0]) for row in made] == labels
    with pytest.raises(ValueError, match="--label=eleven: 'eleven' is no class: must be one of zero, one"):
        prompted(opened(CLASS), label=["eleven"])
    with pytest.raises(ValueError, match="--label: label 11: must be a number under num_classes=10"):
        prompted(opened(CLASS), label=["11"])


def test_any_signal_is_typed_by_its_name_with_a_row_for_each_value(opened):
    made = prompted(opened(CLASS), cond=["label=seven,3"])
    assert [int(row.signals["label"][0]) for row in made] == [7, 3]
    for word, message in (
        ("label", "--cond=label: must be NAME=VALUE"),
        ("speed=3", "--cond speed='3': this run is not conditioned on speed; it is on label: use --label"),
    ):
        with pytest.raises(ValueError, match=message):
            prompted(opened(CLASS), cond=[word])
    with pytest.raises(ValueError, match="--label and --cond label: a row is made from one of them"):
        prompted(opened(CLASS), label=["1"], cond=["label=2"])


def test_a_text_that_is_cut_is_said_to_be(opened):
    out: list[str] = []
    prompted(opened(TEXT), text=["eleven byte"], out=out)
    assert out == []
    prompted(opened(TEXT), text=["twelve bytes"], out=out)
    assert "is cut: config.data.signals.caption.num_bytes=12 leaves room for 11" in out[0]


def sampled(opened: OpenRun, *, sampler: str | None = None, num_steps: int | None = None, guidance=None):
    return opened.experiment.task.with_sampling(SamplingOptions(SAMPLERS.get(sampler), num_steps, guidance))


def test_a_negative_prompt_is_the_null_condition(opened):
    run = dataclasses.replace(opened(TEXT), frozen=Frozen(jnp.zeros(())))
    experiment = dataclasses.replace(run.experiment, task=sampled(run, guidance=2.0))
    guided = dataclasses.replace(run, experiment=experiment)
    assert with_negative(guided, None, print).frozen.null is None
    found = with_negative(guided, "down", print).frozen.null
    np.testing.assert_array_equal(found, encode_captions(["down"], 12))
    with pytest.raises(ValueError, match="--negative_prompt='down': guidance is off; switch it on with --guidance"):
        with_negative(run, "down", print)


@pytest.mark.parametrize(
    ("condition", "words", "message"),
    [
        (TEXT, {"label": ["3"]}, "--label='3': this run is not conditioned on label; it is on caption: use --text"),
        (
            CLASS,
            {"text": ["up"]},
            "--text='up': this run is not conditioned on caption or text; it is on label",
        ),
        (None, {"text": ["up"]}, "--text='up': this run is not conditioned on caption or text; leave it out"),
        (None, {"label": ["3"]}, "--label='3': this run is not conditioned on label; leave it out"),
    ],
)
def test_what_a_run_does_not_know_is_refused(opened, condition, words, message):
    with pytest.raises(ValueError, match=message):
        prompted(opened(condition), **words)
    with pytest.raises(ValueError, match="--negative_prompt='up': this run is not conditioned on caption or text"):
        with_negative(opened(CLASS), "up", print)


def test_what_is_not_asked_of_sampling_stays_as_in_the_run(opened):
    original = opened(CLASS)
    assert sampled(original) == original.experiment.task


def test_another_sampler_keeps_the_spacing_and_the_steps_unless_asked(opened):
    original = opened(CLASS)
    spaced = dataclasses.replace(original.experiment.task.sampler, spacing=Linspace())
    task = dataclasses.replace(original.experiment.task, sampler=spaced)
    original = dataclasses.replace(original, experiment=dataclasses.replace(original.experiment, task=task))
    assert sampled(original, sampler="unipc").sampler == UniPC(num_steps=spaced.num_steps, spacing=Linspace())
    for name, kind in SAMPLERS.items():
        if issubclass(kind, Sampler):
            assert sampled(original, sampler=name, num_steps=7).sampler == kind(num_steps=7, spacing=Linspace())
        else:
            with pytest.raises(ValueError, match="is an order of writing text"):
                sampled(original, sampler=name)


def test_guidance_is_for_runs_with_a_condition(opened):
    assert sampled(opened(CLASS), guidance=3.5).guidance.scale == 3.5
    with pytest.raises(ValueError, match=r"--guidance=3\.5: this run follows no label and no text"):
        sampled(opened(None), guidance=3.5)
    with pytest.raises(ValueError, match=r"num_steps=0"):
        sampled(opened(CLASS), num_steps=0)


def test_every_sampler_has_a_word():
    def kinds(kind):
        return {kind} | {leaf for child in kind.__subclasses__() for leaf in kinds(child)}

    both = kinds(Sampler) | kinds(Order)
    concrete = {kind for kind in both if not inspect.isabstract(kind) and kind.__module__.startswith("dit_")}
    assert concrete == set(SAMPLERS.values())
