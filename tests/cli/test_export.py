"""A run leaves as a folder of torch modules, and the folder is pushed, by what a user types; or nothing is written."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from toys import SMALL_VAE, Weights, small_mesh

from dit_video import experiment as experiments
from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.cli.main import main
from dit_video.config.components import to_json
from dit_video.config.json_file import write_json
from dit_video.nn.module import define, params_of
from dit_video.run.folder import record
from dit_video.weights.digest import weights_digest

EXPERIMENT = """
from dit_video.data.dataset import Data
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from toys import SMALL_VAE

def get_config(arg="dit"):
    source = MovingDigits(directory="FOLDER/digits", num_train=4, num_held_out=2, size=16, num_frames=5, digit_size=10)
    data = Data(source=source, clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=2)
    task = Denoise(
        network=DiTConfig(hidden_size=12, num_heads=2, depth=2),
        codec=TrainedCodec(vae=SMALL_VAE, run="FOLDER/vae"),
        condition=ClassCondition(num_classes=10),
    )
    if arg == "vae":
        task = Autoencode(vae=SMALL_VAE)
    return Experiment(task=task, data=data, optimizer=AdamW(), schedule=Schedule(num_steps=1))
"""
TORCH_FILES = {"README.md", "config.json", "model.py", "model.safetensors", "vae.py", "vae.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and one of its codec, with random weights."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "mine.py").write_text(EXPERIMENT.replace("FOLDER", str(folder)))
    rng = np.random.default_rng(0)
    for name in ("vae", "dit"):
        experiment = experiments.load(f"{folder}/mine.py:{name}")
        definition = define(experiment.task.init)
        random = {n: 0.1 * rng.standard_normal(s.shape, np.float32) for n, s in definition.shapes.items()}
        params = {n: jnp.asarray(x) for n, x in random.items()}
        record(experiment, folder / name, (), allow_change=False)
        with Checkpoints(folder / name, experiment=to_json(experiment)) as checkpoints:
            checkpoints.finish(1, Weights(1, params, params), next_batch=1)
        if name == "vae":
            with Checkpoints(folder / name) as checkpoints:
                params = checkpoints.restore_params(definition.shapes, small_mesh(), ema=True)
            digest = weights_digest(params_of(definition.bind(params).vae))
            statistics = {"mean": [0.5] * SMALL_VAE.latent_channels, "std": [2.0] * SMALL_VAE.latent_channels}
            write_json(folder / name / "latent_statistics.json", {"codec": digest} | statistics)
    return folder


def export(folder, out, *words: str, run: str = "dit") -> int:
    return main(["export", f"--workdir={folder / run}", f"--out={out}", *words])


def test_what_was_written_is_told_as_json(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(folder, out, "--format=safetensors", "--json", run="vae") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    assert found["out"] == str(out)
    assert found["compared"][0].endswith("tensors bit-equal")
    assert found["pushed"] is None


@pytest.mark.parametrize(
    ("run", "files"), [("dit", TORCH_FILES), ("vae", TORCH_FILES - {"model.py", "model.safetensors"})]
)
def test_a_run_becomes_torch_modules_that_were_compared(run, files, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(folder, out, "--format=torch", run=run) == 0
    assert {path.name for path in out.iterdir()} == files
    said = " ".join(capsys.readouterr().out.split())
    assert "tensors bit-equal" in said
    assert "layers and outputs of torch: largest difference over largest value" in said
    assert json.loads((out / "config.json").read_text())["origin"]["run"] == run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "torch", "diffusers"], "--format torch diffusers: torch is a folder of its own; export twice"),
        (["--format", "safetensors", "torch"], "--format safetensors torch: torch is a folder of its own"),
        (["--format", "torch", "hub"], "--format hub: say which repository with --push_to OWNER/NAME"),
        (["--format", "torch", "--push_to=a/b"], "--push_to, --private: nothing is pushed; add hub to --format"),
        (["--private"], "--push_to, --private: nothing is pushed; add hub to --format"),
        (["--format", "hub", "--push_to=b"], "--push_to b: must be OWNER/NAME"),
    ],
)
def test_words_that_do_not_go_together_are_an_error_before_the_run_is_opened(words, message, tmp_path, capsys):
    assert export(tmp_path, tmp_path / "out", *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_push_that_fails_leaves_the_finished_folder(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    # A port that nobody listens on.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    out = tmp_path / "out"
    words = ["--format", "torch", "hub", "--push_to=somebody/videos", "--private"]
    assert export(folder, out, *words, run="vae") == 1
    said = capsys.readouterr()
    assert "layers and outputs of torch: largest difference" in " ".join(said.out.split())
    error = " ".join(said.err.split())
    assert f"{out} is complete, but could not be pushed to somebody/videos at http://127.0.0.1:9" in error
    assert f"hf upload somebody/videos {out} ." in error
    assert TORCH_FILES > {path.name for path in out.iterdir()} >= {"vae.py", "vae.safetensors"}
