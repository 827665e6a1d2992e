"""A run that keeps no average of its weights: the same weights, which are then what is evaluated and handed on."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from trained_by_processes import get_config
from training_processes import steps

from dit_video.config.overrides import override
from dit_video.experiment import Experiment
from dit_video.run.folder import EXPERIMENT_FILE, AllowedChanges
from dit_video.run.open_run import open_run
from dit_video.run.train import train
from dit_video.training.intervals import Schedule

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)


def of_steps(num_steps: int, *, averaged: bool) -> Experiment:
    experiment = dataclasses.replace(get_config(), schedule=Schedule(num_steps=num_steps, save_every=2))
    return experiment if averaged else override(experiment, ["--config.ema=None"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Four steps without an average, interrupted after two; beside it, in `averaged`, four with one."""
    folder = tmp_path_factory.mktemp("without") / "run"
    train(of_steps(4, averaged=True), folder.with_name("averaged"), console=QUIET)
    train(of_steps(2, averaged=False), folder, console=QUIET)
    train(of_steps(4, averaged=False), folder, allow=AllowedChanges(experiment=True), console=QUIET)
    return folder


def weights(run: Path, *, ema: bool) -> dict[str, np.ndarray]:
    opened = open_run(run, ema=ema, like=get_config(), console=QUIET)
    assert opened.step == 4
    return jax.device_get(opened.params)


def test_weights_are_those_of_a_run_with_an_average(run):
    assert steps(run) == steps(run.with_name("averaged"))
    assert not open_run(run, like=get_config(), console=QUIET).ema
    expected, averaged = (weights(run.with_name("averaged"), ema=ema) for ema in (False, True))
    for ema in (False, True):
        jax.tree.map(np.testing.assert_array_equal, weights(run, ema=ema), expected)
    assert any((averaged[name] != expected[name]).any() for name in expected)


def test_another_run_starts_from_them(run, tmp_path, capsys):
    options = {"init_from": run, "console": Console(width=1000)}
    for averaged in (True, False):
        train(of_steps(1, averaged=averaged), tmp_path / str(averaged), **options)
        assert f"starting from the weights of {run}" in capsys.readouterr().out


def test_no_average_is_saved_and_none_is_made_up(run):
    before = (run / EXPERIMENT_FILE).read_bytes()
    assert not list(run.glob("checkpoints/*/ema"))
    experiment = of_steps(6, averaged=True)
    with pytest.raises(ValueError, match="ema"):
        train(experiment, run, allow=AllowedChanges(experiment=True), console=QUIET)
    # The record stays that of the checkpoints.
    assert (run / EXPERIMENT_FILE).read_bytes() == before
