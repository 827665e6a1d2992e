"""Runs, exports and data made before the reorganisation still open and give what they gave (fixtures/old_runs)."""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.config import components
from dit_video.config.names import FORMAT
from dit_video.data.batch import Batch
from dit_video.data.captions import encode_captions
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.dit.known_frames import LevelZero
from dit_video.experiment import fingerprint, from_json
from dit_video.export.weights import load
from dit_video.nn.module import params_of
from dit_video.run.folder import AllowedChanges, read_experiment
from dit_video.run.open_run import OpenRun, open_run
from dit_video.run.train import train
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.known_frames import FirstFrame
from dit_video.tasks.task import GENERATE, RECONSTRUCT, VALIDATE
from dit_video.weights.digest import name_as

FIXTURE = Path(__file__).parent.parent / "fixtures" / "old_runs"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
RUNS = ("vae", "dit", "wan")
# The same sums in another order: other flags of XLA and another number of devices were seen to change 3e-6 of a value.
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The folder that the runs were made in: vae, dit, wan, and the digits, latents and exports beside them."""
    folder = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(FIXTURE / "runs.zip", folder)
    return folder


@pytest.fixture
def folder(unpacked, monkeypatch) -> Path:
    """The same as the working folder, for names in records are relative to it."""
    monkeypatch.chdir(unpacked)
    return unpacked


@functools.cache
def opened_in(folder: Path, name: str, kind: str = "ema") -> OpenRun:
    """Opened once; `folder` is the working folder."""
    return open_run(folder / name, ema=kind == "ema")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(FIXTURE / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def batches(expected) -> dict[str, Batch]:
    """What each run is shown of the same eight clips."""
    video, label = expected["video"], expected["label"]
    caption = encode_captions(EXPECTED["captions"], 32)
    return {
        "vae": Batch(video=video),
        "dit": Batch(video=video, signals={"label": label}),
        "wan": Batch(video=video, signals={"caption": caption}),
    }


@pytest.mark.parametrize("name", RUNS)
def test_the_record_reads_as_the_experiment_it_was(folder, name):
    """Classes by address and fields of then become those of now, and what is written of them reads as the same."""
    experiment = read_experiment(folder / name)
    written = components.record(experiment)
    assert "dit_video." not in json.dumps(written)
    assert from_json(json.loads(json.dumps(written))) == experiment
    old = json.loads((folder / name / "experiment.json").read_text())["experiment"]
    assert "format" not in old
    assert fingerprint(from_json(old)) == fingerprint(experiment)
    assert {signal: type(value).__name__ for signal, value in experiment.data.signals.items()} == {
        "vae": {"label": "ClassLabel"},
        "dit": {"label": "ClassLabel"},
        "wan": {"label": "ClassLabel", "caption": "CaptionBytes"},
    }[name]
    if name == "wan":
        assert experiment.task.known == FirstFrame(shown=LevelZero())


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_weights_are_those_that_were_saved(folder, name, kind):
    opened = opened_in(folder, name, kind)
    saved = EXPECTED[name]["weights"][kind]
    assert (opened.step, name_as(saved["digest"], opened.params)) == (saved["step"], saved["digest"])


@pytest.mark.parametrize("name", RUNS)
def test_errors_and_clips_are_as_they_were(folder, name, batches, expected):
    subject, keys = opened_in(folder, name).subject(), clip_keys(EXPECTED["seed"], range(8))
    for error, values in subject(VALIDATE, batches[name], keys).items():
        np.testing.assert_allclose(values, EXPECTED[name]["validate"][error], **ROUNDING)
    if name == "vae":
        key, made = "vae_reconstruct", subject(RECONSTRUCT, batches[name])
    else:
        prompt = batches[name]
        prompt = {
            "dit": Batch(signals={"label": np.arange(8, dtype=np.int32)}),
            "wan": prompt._replace(video=prompt.video[:, :1]),
        }[name]
        key, made = f"{name}_generate", subject(GENERATE, prompt, keys, tuple(EXPECTED["shape"]))
    np.testing.assert_allclose(made[:4].astype(int), expected[key], atol=1)


def test_a_codec_is_found_beside_a_run_inside_it_and_where_one_says(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = open_run(folder / "dit", overrides=[f"--config.task.codec.run={folder / 'vae'}"])
    shutil.copytree(folder / "dit", tmp_path / "moved")
    shutil.copytree(folder / "vae", tmp_path / "moved" / "vae")
    inside = open_run(tmp_path / "moved")
    digests = {name_as(None, params_of(opened.frozen.codec)) for opened in (elsewhere, inside)}
    assert len(digests) == 1
    assert (
        inside.experiment.task.codec.digest == json.loads((folder / "vae/latent_statistics.json").read_text())["codec"]
    )


@pytest.mark.parametrize("name", RUNS)
def test_exports_hold_the_same_tensors(folder, tmp_path, name):
    """Of a codec two more than of a run on it: mean and deviation of its latents are in its file too."""
    assert main(["export", f"--workdir={name}", f"--out={tmp_path / name}", "--format=safetensors"]) == 0
    exported = load(tmp_path / name)
    parts = {"codec.safetensors": exported.codec, "model.safetensors": exported.network}
    actual = {
        file: {
            tensor: [list(x.shape), str(x.dtype), hashlib.sha256(np.asarray(x, order="C").tobytes()).hexdigest()]
            for tensor, x in sorted(params_of(part).items())
        }
        for file, part in parts.items()
        if part is not None
    }
    assert actual == EXPECTED[name]["exported"]


def test_an_old_export_is_loaded_from_its_folder_alone(folder):
    exported = load(folder / "exported" / "dit")
    name = EXPECTED["dit"]["weights"]["ema"]["digest"]
    assert name_as(name, params_of(exported.network)) == name


def test_an_old_set_and_an_old_cache_are_read(folder):
    for name in ("dit", "wan"):
        data = read_experiment(folder / name).data
        assert isinstance(data.source, MovingDigits)
        assert data.identity() == json.loads((folder / name / "experiment.json").read_text())["data"]
    assert isinstance(read_experiment(folder / "dit").data.cache, LatentCache)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_as_it_did(folder, tmp_path, monkeypatch, name):
    """Two more steps on the same data, in a copy."""
    for part in {name, "vae", "digits", "latents"}:
        shutil.copytree(folder / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    resumed, experiment = EXPECTED[name]["resumed"], read_experiment(Path(name))
    experiment = dataclasses.replace(experiment, schedule=dataclasses.replace(experiment.schedule, num_steps=42))
    assert train(experiment, Path(name), allow=AllowedChanges(experiment=True)).finished
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["step"] > 40 and "rates" not in line]
    assert [line.keys() for line in lines] == [line.keys() for line in resumed["lines"]]
    for line, before in zip(lines, resumed["lines"]):
        assert line.pop("evaluation", None) == before.get("evaluation")
        assert line == pytest.approx({key: x for key, x in before.items() if key != "evaluation"}, rel=1e-4)
    assert json.loads((tmp_path / name / "experiment.json").read_text())["experiment"]["format"] == FORMAT
    for kind in ("ema", "raw"):
        params = jax.device_get(open_run(Path(name), ema=kind == "ema").params)
        actual = {n: [x.astype(np.float64).mean(), np.abs(x.astype(np.float64)).mean()] for n, x in params.items()}
        assert actual.keys() == resumed["weights"][kind]["means"].keys()
        for tensor, means in resumed["weights"][kind]["means"].items():
            np.testing.assert_allclose(actual[tensor], means, rtol=1e-3, atol=1e-6, err_msg=tensor)
