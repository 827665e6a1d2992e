"""Weights come back bit for bit from their folder alone, and nothing that was changed is loaded."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dit_video.checkpoint import weights_digest
from dit_video.export.weights import CODEC, CONFIG, MODEL, Content, ExportMismatch, load, write_weights
from dit_video.nn.module import params_of


def test_network_and_codec_are_rebuilt_from_the_folder_alone(exported, content):
    loaded = load(exported)
    for found, wanted in ((loaded.network, content.denoiser.network), (loaded.codec, content.codec)):
        found, wanted = params_of(found), params_of(wanted)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, strict=True)
    assert loaded.codec.vae.config == content.codec.vae.config
    assert loaded.network.patch_size == content.denoiser.network.patch_size
    assert loaded.config["latent_shape"] == [2, 4, 4, 4]
    assert loaded.config["task"]["objective"]["prediction"]["class"].endswith(".Velocity")


def test_files_say_what_they_hold(exported, content):
    params = params_of(content.denoiser.network)
    with safe_open(exported / MODEL, framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(params)
    assert metadata["digest"] == weights_digest(params)
    assert {n: metadata[n] for n in ("format_version", "step", "weights", "fingerprint")} == {
        "format_version": "1",
        "step": "7",
        "weights": "ema",
        "fingerprint": "0123456789abcdef",
    }
    codec = load_file(exported / CODEC)
    np.testing.assert_array_equal(codec["mean"], [0, 1, 2, 3])
    assert (exported / MODEL).stat().st_mode == (exported / CONFIG).stat().st_mode


def test_a_codec_is_exported_without_a_denoiser(content, tmp_path):
    codec = dataclasses.replace(content, denoiser=None)
    config, num_tensors = write_weights(codec, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, CODEC}
    assert config["network"] is None
    assert num_tensors == len(params_of(content.codec))
    assert load(tmp_path).network is None


@pytest.fixture
def spoilt(exported, tmp_path) -> Path:
    """A copy of the export, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def rewrite(path: Path, change) -> None:
    """Saves a file again with its tensors changed and its metadata kept."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def renamed(tensors):
    tensors["final_layer.scale"] = tensors.pop("final_layer.bias")


def missing(tensors):
    del tensors["t_embedder.up.bias"]


def surplus(tensors):
    tensors["extra.kernel"] = np.zeros(3, np.float32)


def wrong_shape(tensors):
    tensors["x_embedder.kernel"] = tensors["x_embedder.kernel"].T.copy()


def wrong_type(tensors):
    tensors["x_embedder.bias"] = tensors["x_embedder.bias"].astype(np.float16)


def other_value(tensors):
    tensors["blocks.mlp.up.kernel"][1, 2, 3] *= -1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed, r"missing final_layer\.bias; surplus final_layer\.scale"),
        (missing, r"missing t_embedder\.up\.bias; surplus none"),
        (surplus, r"missing none; surplus extra\.kernel"),
        (wrong_shape, r"x_embedder\.kernel is float32\[32, 16\], config.json says float32\[16, 32\]"),
        (wrong_type, r"x_embedder\.bias is float16\[32\], config.json says float32\[32\]"),
        (other_value, r"blocks\.mlp\.up\.kernel is damaged"),
    ],
)
def test_a_changed_tensor_is_an_error_that_names_it(spoilt, change, named):
    rewrite(spoilt / MODEL, change)
    with pytest.raises(ExportMismatch, match=named):
        load(spoilt)


def test_one_flipped_bit_is_an_error_that_names_the_tensor(spoilt):
    path = spoilt / CODEC
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExportMismatch, match=r"codec.safetensors: vae\.\S+ is damaged"):
        load(spoilt)


def test_a_file_cut_short_is_an_error_that_names_it(spoilt):
    path = spoilt / MODEL
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ExportMismatch, match=r"model.safetensors: not a whole safetensors file"):
        load(spoilt)


def test_weights_of_another_run_are_refused(spoilt, content, tmp_path):
    other = params_of(content.codec)["std"] + 1
    changed = dataclasses.replace(content.codec) if dataclasses.is_dataclass(content.codec) else None
    del other, changed
