"""The whole way at the smallest size, by the commands a user types, in processes that are really killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

# Minutes of real processes.
pytestmark = pytest.mark.slow

EXPERIMENT = """
import dataclasses
from dit_video.data.dataset import Data
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.sampler import Euler
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.evaluation.evaluators import HeldOutError, Reconstruction, Samples
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.video_vae import VideoVAEConfig

VAE = VideoVAEConfig(channels=8, multipliers=(1, 1), strides=((2, 4, 4), (2, 2, 2)), num_blocks=1,
                     num_decoder_blocks=1, latent_channels=4)

def get_config(arg="dit"):
    source = MovingDigits(directory="digits", num_train=24, num_held_out=8, size=16, num_frames=9, digit_size=10)
    data = Data(source=source, clips=ClipTransform(num_frames=9, size=(16, 16)), batch_size=4, num_threads=2)
    rest = dict(optimizer=AdamW(learning_rate=1e-3), schedule=Schedule(num_steps=12, log_every=1, save_every=4))
    few = dict(every=6, num_clips=4, batch_size=4)
    if arg == "vae":
        judges = {"reconstruction": Reconstruction(**few, num_shown=2)}
        return Experiment(task=Autoencode(vae=VAE), data=data, evaluators=judges, **rest)
    task = Denoise(
        network=DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 1, 1)),
        codec=TrainedCodec(vae=VAE, run="vae"),
        condition=ClassCondition(num_classes=10),
        sampler=Euler(num_steps=2),
    )
    data = dataclasses.replace(data, cache=LatentCache(directory="latents"))
    judges = {"held_out_error": HeldOutError(**few), "samples": Samples(every=12, num_clips=2)}
    return Experiment(task=task, data=data, evaluators=judges, **rest)
"""


def command(*words: str, folder: Path) -> subprocess.Popen:
    # One device and the compilation cache shared by all processes of this file: most of their time is compiling.
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    words = (sys.executable, "-m", "dit_video", *words)
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*words: str, folder: Path, code: int = 0) -> str:
    process = command(*words, folder=folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with digits, a trained codec, latents and an uninterrupted run `dit`."""
    folder = tmp_path_factory.mktemp("whole_way")
    (folder / "tiny.py").write_text(EXPERIMENT)
    finish("train", "--config=tiny.py:vae", "--workdir=vae", folder=folder)
    finish("encode", "--config=tiny.py", folder=folder)
    finish("train", "--config=tiny.py", "--workdir=dit", folder=folder)
    return folder


def record(run: Path) -> list[dict]:
    """The lines of a run's record that do not depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "rates" not in line]


def until_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and any(line["step"] >= step for line in record_so_far(run)):
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} never came to step {step}")


def record_so_far(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:-1]]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(folder):
    process = command("train", "--config=tiny.py", "--workdir=killed", folder=folder)
    until_step(folder / "killed", 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    steps = [line["step"] for line in record(folder / "killed") if "loss" in line]
    assert max(steps) < 12, "the run was over before it could be killed"
    finish("train", "--config=tiny.py", "--workdir=killed", folder=folder)
    assert record(folder / "killed") == record(folder / "dit")


def test_ctrl_c_saves_exits_with_3_and_goes_on_exactly(folder):
    process = command("train", "--config=tiny.py", "--workdir=stopped", folder=folder)
    until_step(folder / "stopped", 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 3, output
    assert "the same command goes on from there" in output
    finish("train", "--config=tiny.py", "--workdir=stopped", folder=folder)
    losses = [[x["loss"] for x in record(folder / name) if "loss" in x] for name in ("stopped", "dit")]
    assert losses[0] == losses[1]


def test_another_experiment_may_not_go_on_in_the_same_folder(folder):
    output = finish(
        "train", "--config=tiny.py", "--workdir=dit", "--config.optimizer.learning_rate=0.5", folder=folder, code=1
    )
    assert "optimizer.learning_rate: 0.001 -> 0.5" in output


def test_a_cache_of_other_clips_is_refused_naming_the_field(folder):
    output = finish(
        "train", "--config=tiny.py", "--workdir=other", "--config.data.clips.flip_rate=0.5", folder=folder, code=1
    )
    assert "clips.flip_rate: cache 0.0, this run 0.5" in output
    assert "statistics" not in output


def test_overwrite_deletes_latent_caches_and_nothing_else(folder):
    precious = folder / "precious" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("four years")
    words = ["--config=tiny.py", "--config.data.cache.directory=precious", "--overwrite"]
    assert "precious" in finish("encode", *words, folder=folder, code=1)
    assert precious.read_text() == "four years"


def test_a_run_starts_from_the_weights_of_another(folder):
    words = ["--config.schedule.num_steps=1", "--config.optimizer.learning_rate=0.0", "--init_from=dit"]
    finish("train", "--config=tiny.py", "--workdir=from_dit", *words, folder=folder)
    finish("sample", "--workdir=dit", "--num_clips=2", "--out=a.gif", "--npy=a.npy", "--label=3", folder=folder)
    finish("sample", "--workdir=from_dit", "--num_clips=2", "--out=b.gif", "--npy=b.npy", "--label=3", folder=folder)
    np.testing.assert_array_equal(np.load(folder / "a.npy"), np.load(folder / "b.npy"))
    words[-1] = "--init_from=misspelt"
    assert "there is no run in this folder" in finish(
        "train", "--config=tiny.py", "--workdir=from_none", *words, folder=folder, code=1
    )
    assert not (folder / "misspelt").exists()


def test_judged_sampled_exported(folder):
    words = ["--workdir=dit", "--num_clips=4", "--num_frames=9", "--batch_size=4"]
    card = json.loads(finish("evaluate", *words, "--json", folder=folder).partition("\n{")[2].join(["{", ""]))
    assert card["value"] > card["yardsticks"]["training clips"]["value"] > 0
    assert (folder / "dit" / "evaluation" / "step_0000012_ema_nearest.gif").is_file()
    assert card["references"]["splits"]["train"] != card["references"]["splits"]["held_out"]
    assert card["subject"]["codec"] == json.loads((folder / "latents/manifest.json").read_text())["provenance"]["codec"]
    assert "smoke value" in card["notes"][0]
    finish("export", "--workdir=dit", "--out=exported", folder=folder)
    assert {"model.safetensors", "denoiser.stablehlo"} <= {p.name for p in (folder / "exported").iterdir()}


def test_a_run_is_sampled_judged_and_exported_from_anywhere_and_after_a_move(folder, tmp_path):
    """With what it needs: its codec, data and latents. What lies where the command is given is not taken for these."""
    for decoy in ("digits", "vae", "latents"):
        (tmp_path / decoy).mkdir()

    def made(run: Path, name: str) -> tuple:
        out = tmp_path / name
        finish("sample", f"--workdir={run}", "--label=3", f"--out={out}.gif", f"--npy={out}.npy", folder=tmp_path)
        words = ["--num_clips=4", "--num_frames=9", "--batch_size=4", "--json"]
        card = finish("evaluate", f"--workdir={run}", *words, folder=tmp_path)
        card = json.loads(card.partition("\n{")[2].join(["{", ""]))
        finish("export", f"--workdir={run}", f"--out={out}", folder=tmp_path)
        config = (out / "config.json").read_text()
        verified = finish("inspect", str(run), "--verify", "--json", folder=tmp_path)
        data = json.loads(verified[verified.index("{") :])["data"]
        assert list(data.values()) == ["", ""], "the set and the latents, both read and good"
        return np.load(f"{out}.npy").tolist(), card["value"], card["subject"], config, sorted(os.listdir(out))

    here = made(folder / "dit", "here")
    moved = folder.rename(folder.with_name("moved"))
    try:
        assert made(moved / "dit", "there") == here
    finally:
        moved.rename(folder)
