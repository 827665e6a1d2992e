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

from dit_video import run
from dit_video.checkpoint import weights_digest
from dit_video.cli.main import main
from dit_video.data.batch import Batch
from dit_video.data.captions import encode_captions
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.experiment import fingerprint
from dit_video.export.weights import load
from dit_video.nn.module import params_of
from dit_video.run_folder import read_experiment
from dit_video.tasks.task import clip_keys

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
def opened_in(folder: Path, name: str, kind: str = "ema") -> run.OpenRun:
    """Opened once; `folder` is the working folder."""
    return run.open_run(folder / name, ema=kind == "ema")


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
        "dit": Batch(video=video, label=label),
        "wan": Batch(video=video, caption=caption),
    }


@pytest.mark.parametrize("name", RUNS)
def test_the_record_reads_as_the_experiment_it_was(folder, name):
    found = fingerprint(read_experiment(folder / name))
    assert found == EXPECTED[name]["fingerprint"]
    assert found == json.loads((folder / name / "experiment.json").read_text())["fingerprint"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_weights_are_those_that_were_saved(folder, name, kind):
    opened = opened_in(folder, name, kind)
    assert {"step": opened.step, "digest": weights_digest(opened.params)} == EXPECTED[name]["weights"][kind]


@pytest.mark.parametrize("name", RUNS)
def test_errors_and_clips_are_as_they_were(folder, name, batches, expected):
    subject, keys = opened_in(folder, name).subject(), clip_keys(EXPECTED["seed"], range(8))
    for error, values in subject.validate(batches[name], keys).items():
        np.testing.assert_allclose(values, EXPECTED[name]["validate"][error], **ROUNDING)
    if name == "vae":
        wanted, made = "vae_reconstruct", subject.reconstruct(batches[name])
    else:
        told = batches[name]
        told = {
            "dit": Batch(label=np.arange(8, dtype=np.int32)),
            "wan": Batch(video=told.video[:, :1], caption=told.caption),
        }[name]
        wanted, made = f"{name}_generate", subject.generate(told, keys, tuple(EXPECTED["shape"]))
    np.testing.assert_allclose(made[:4].astype(int), expected[wanted], atol=1)


def test_a_codec_is_found_beside_a_run_inside_it_and_where_one_says(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = run.open_run(folder / "dit", overrides=[f"--config.task.codec.run={folder / 'vae'}"])
    shutil.copytree(folder / "dit", tmp_path / "moved")
    shutil.copytree(folder / "vae", tmp_path / "moved" / "vae")
    inside = run.open_run(tmp_path / "moved")
    digests = {weights_digest(params_of(opened.frozen.codec)) for opened in (elsewhere, inside)}
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
    found = {
        file: {
            tensor: [list(x.shape), str(x.dtype), hashlib.sha256(np.asarray(x, order="C").tobytes()).hexdigest()]
            for tensor, x in sorted(params_of(part).items())
        }
        for file, part in parts.items()
        if part is not None
    }
    assert found == EXPECTED[name]["exported"]


def test_an_old_export_is_loaded_from_its_folder_alone(folder):
    exported = load(folder / "exported" / "dit")
    assert weights_digest(params_of(exported.network)) == EXPECTED["dit"]["weights"]["ema"]["digest"]


def test_an_old_set_and_an_old_cache_are_read(folder):
    for name in ("dit", "wan"):
        data = read_experiment(folder / name).data
        assert isinstance(data.source, MovingDigits)
        assert data.identity() == json.loads((folder / name / "experiment.json").read_text())["data"]
    assert isinstance(read_experiment(folder / "dit").data.cache, LatentCache)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_as_it_did(folder, tmp_path, monkeypatch, name):
    """Two more steps on the same data, in a copy."""
    for part in {name, "vae", "digits", "latents"}:
        shutil.copytree(folder / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    wanted, experiment = EXPECTED[name]["resumed"], read_experiment(Path(name))
    experiment = dataclasses.replace(experiment, schedule=dataclasses.replace(experiment.schedule, num_steps=42))
    assert run.train(experiment, Path(name), allow_change=True).finished
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["step"] > 40 and "rates" not in line]
    assert [line.keys() for line in lines] == [line.keys() for line in wanted["lines"]]
    for line, before in zip(lines, wanted["lines"]):
        assert line.pop("evaluation", None) == before.get("evaluation")
        assert line == pytest.approx({key: x for key, x in before.items() if key != "evaluation"}, rel=1e-4)
    assert fingerprint(read_experiment(Path(name))) == wanted["fingerprint"]
    for kind in ("ema", "raw"):
        params = jax.device_get(run.open_run(Path(name), ema=kind == "ema").params)
        found = {n: [x.astype(np.float64).mean(), np.abs(x.astype(np.float64)).mean()] for n, x in params.items()}
        assert found.keys() == wanted["weights"][kind]["means"].keys()
        for tensor, means in wanted["weights"][kind]["means"].items():
            np.testing.assert_allclose(found[tensor], means, rtol=1e-3, atol=1e-6, err_msg=tensor)
