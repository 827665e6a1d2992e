"""Runs with the user's own classes: resumed, and opened only with the experiment file that defines them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dit_video import experiment as experiments
from dit_video.cli.main import main
from dit_video.config.components import to_json
from dit_video.config.user_file import ExperimentError
from dit_video.run import folder as run_folder

# Minutes of real processes.
pytestmark = pytest.mark.slow

# A module beside the experiment: a source and a network.
PARTS = """
import dataclasses

from dit_video.data.sources import MovingDigits
from dit_video.dit.dit import DiTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    directory: str

    def _digits(self):
        return MovingDigits(
            directory=self.directory, num_train=24, num_held_out=8, size=16, num_frames=9, digit_size=10
        )

    def open(self, split):
        return self._digits().open(split)

    def info(self):
        return self._digits().info()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Narrow(DiTConfig):
    hidden_size: int = 32
    depth: int = 2
    num_heads: int = 2
"""

# The experiment: a task and an evaluator.
MINE = """
from __future__ import annotations

import dataclasses
import enum

import jax

from dit_video.data.dataset import Data
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.sampler import Euler
from dit_video.dit.condition import ClassCondition
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.evaluator import Evaluator, Report
from dit_video.training.intervals import Schedule
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.training.optimizer import AdamW
from dit_video.vae.video_vae import VideoVAEConfig
from parts import Digits, Narrow

VAE = VideoVAEConfig(channels=8, multipliers=(1,), strides=((4, 8, 8),), num_blocks=1, num_decoder_blocks=1,
                     latent_channels=4)


class Scale(enum.StrEnum):
    HALF = "half"
    WHOLE = "whole"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved(Denoise):
    scale: Scale = Scale.WHOLE

    def loss(self, model, frozen, batch, rng, step):
        loss, metrics = super().loss(model, frozen, batch, rng, step)
        return (0.5 if self.scale is Scale.HALF else 1.0) * loss, metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size(Evaluator):
    def __call__(self, subject, data, seed):
        return Report(scalars={"parameters": float(sum(x.size for x in jax.tree.leaves(subject.params)))})


def get_config(arg="dit"):
    data = Data(source=Digits(directory="digits"), clips=ClipTransform(num_frames=9, size=(16, 16)), batch_size=4,
                num_threads=1)
    rest = dict(data=data, optimizer=AdamW(learning_rate=1e-3), evaluators={"size": Size(every=10)})
    if arg == "vae":
        return Experiment(task=Autoencode(vae=VAE), schedule=Schedule(num_steps=2, log_every=1), **rest)
    task = Halved(network=Narrow(patch_size=(1, 1, 1)), codec=TrainedCodec(vae=VAE, run="vae"), scale=Scale.HALF,
                  condition=ClassCondition(num_classes=10), sampler=Euler(num_steps=2))
    return Experiment(task=task, schedule=Schedule(num_steps=40, log_every=1, save_every=5), **rest)
"""


def run(folder: Path, *words: str) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(folder),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "dit_video", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output_of(folder: Path, *words: str, code: int = 0) -> str:
    process = run(folder, *words)
    out, _ = process.communicate()
    assert process.returncode == code, out
    return out


TRAIN = ("train", "--config=mine.py", "--workdir=dit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Its codec is trained, and the run was killed after its first checkpoint and has gone on."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "parts.py").write_text(PARTS)
    (folder / "mine.py").write_text(MINE)
    output_of(folder, "train", "--config=mine.py:vae", "--workdir=vae")
    process = run(folder, *TRAIN)
    while not (folder / "dit" / "checkpoints" / "5").is_dir():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert "going on from step" in output_of(folder, *TRAIN)
    return folder


def test_it_goes_on_and_what_its_classes_do_is_done(folder):
    lines = [json.loads(line) for line in (folder / "dit" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    assert lines[-1]["evaluation"] == "size"
    record = json.loads((folder / "dit" / "experiment.json").read_text())["experiment"]
    assert record["task"]["class"] == "experiments_mine.Halved"
    assert record["task"]["network"]["class"] == "parts.Narrow"


@pytest.fixture
def here(folder, monkeypatch):
    """As a process that is started in the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def test_a_change_of_one_of_its_values_is_named_as_of_any_other(here):
    changed = experiments.load("mine.py", ["--config.task.scale=whole"])
    with pytest.raises(ExperimentError, match=r'task\.scale: "half" -> "whole"'):
        run_folder.record(changed, Path("dit"), [], allow_change=False)


def test_it_is_opened_with_its_file_and_not_without(folder, here, capsys):
    sample = ("sample", "--workdir=dit", "--label=3", "--out=three.gif")
    assert main(sample) == 1
    printed = capsys.readouterr().err
    assert "class 'experiments_mine.Halved' is not of this package, and a record must not load code" in printed
    assert "--config=FILE.py[:arg]" in printed
    output_of(folder, *sample, "--config=mine.py")
    assert Path("three.gif").stat().st_size
    assert main(["inspect", "dit", "--config=mine.py"]) == 0
    # Another experiment of the same modules will do: it is the record that says what the run is.
    assert main(["inspect", "vae", "--config=mine.py", "--json"]) == 0
    assert main(["diff", "vae", "mine.py:vae"]) == 0
    assert "no difference" in capsys.readouterr().out


def test_no_other_code_is_loaded_for_a_record(here):
    """Not what is imported already, nor what could be."""
    own = experiments.load("mine.py")
    assert experiments.from_json(to_json(own), own) == own
    for name in ("subprocess.Popen", "logging.LogRecord", "parts.dataclasses", "experiments_mine.get_config"):
        data = to_json(own)
        data["task"]["sampler"] = {"class": name}
        with pytest.raises(ExperimentError, match=rf"sampler: class '{name}' is not of this package"):
            experiments.from_json(data, own)
    with pytest.raises(ExperimentError, match=r"class 'experiments_mine\.Halved' is not of this package"):
        experiments.from_json(to_json(own))
