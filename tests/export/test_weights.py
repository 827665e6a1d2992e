"""Weights come back bit for bit from their folder alone, and nothing that was changed is loaded."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dit_video.dit.dit import PublishedDiTConfig
from dit_video.export.weights import CODEC, CONFIG, MODEL, Denoiser, ExportMismatch, compare, load, write_weights
from dit_video.nn.module import define, params_of
from dit_video.weights.digest import weights_digest


def test_network_and_codec_are_rebuilt_from_the_folder_alone(exported, content):
    loaded = load(exported)
    for actual, expected in ((loaded.network, content.denoiser.network), (loaded.codec, content.codec)):
        actual, expected = params_of(actual), params_of(expected)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, strict=True)
    assert loaded.codec.vae.config == content.codec.vae.config
    assert loaded.network.patch_size == content.denoiser.network.patch_size
    assert loaded.config["latent_shape"] == [2, 4, 4, 4]
    assert loaded.config["task"] == content.origin.task


def test_files_say_what_they_hold(exported, content):
    params = params_of(content.denoiser.network)
    with safe_open(exported / MODEL, framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(params)
    assert metadata["digest"] == weights_digest(params)
    assert {n: metadata[n] for n in ("format_version", "step", "weights", "fingerprint")} == {
        "format_version": "5",
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


def test_a_published_network_is_rebuilt_with_all_its_choices(content, tmp_path):
    config = PublishedDiTConfig(hidden_size=32, depth=2, num_heads=2, position_grid=3, time_frequency_shift=1)
    task = dataclasses.replace(content.denoiser.task, network=config)
    definition = define(task.init)
    network = definition.bind({name: jnp.ones(shape.shape) for name, shape in definition.shapes.items()})
    denoiser = Denoiser(task, network)
    write_weights(dataclasses.replace(content, denoiser=denoiser), tmp_path)
    assert load(tmp_path).network.config == config
    # In version 3 a DiTConfig with these fields was written of it.
    path = tmp_path / CONFIG
    written = json.loads(path.read_text())
    then = {"positions": "sincos", "norm": "layer", "qk_norm": "none", "mlp": "gelu"}
    then |= {"class": "DiTConfig", "timestep_offset": -1, "shared_modulation": False}
    written |= {"format_version": 3, "network": written["network"] | {"config": written["network"]["config"] | then}}
    path.write_text(json.dumps(written))
    assert load(tmp_path).network.config == config
    path.write_text(json.dumps(written).replace('"mlp": "gelu"', '"mlp": "swiglu"'))
    with pytest.raises(ExportMismatch, match=r"network.config.mlp='swiglu': .* of which mlp is gelu; read"):
        load(tmp_path)


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


def other_signs(tensors):
    """An even number of them: the weighted sum of before does not change by that."""
    tensors["blocks.mlp.up.kernel"][0, :, :2] *= -1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed, r"missing final_layer\.bias; surplus final_layer\.scale"),
        (missing, r"missing t_embedder\.up\.bias; surplus none"),
        (surplus, r"missing none; surplus extra\.kernel"),
        (wrong_shape, r"x_embedder\.kernel is float32\[32, 16\], config.json says float32\[16, 32\]"),
        (wrong_type, r"x_embedder\.bias is float16\[32\], config.json says float32\[32\]"),
        (other_value, r"blocks\.mlp\.up\.kernel is damaged"),
        (other_signs, r"blocks\.mlp\.up\.kernel is damaged"),
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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format_version": 1}, "format_version=1, this version of dit_video reads 5"),
        ({"network": {"digest": "0" * 64}}, "model.safetensors: holds the weights .* config.json says 0000"),
        ({"codec": {"digest": "0" * 64}}, "codec.safetensors: holds the codec .* config.json says 0000"),
    ],
    ids=str,
)
def test_weights_that_config_does_not_mean_are_refused(spoilt, changes, named):
    path = spoilt / CONFIG
    config = json.loads(path.read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(ExportMismatch, match=named):
        load(spoilt)


@pytest.mark.parametrize("name", [CONFIG, CODEC, MODEL])
def test_a_missing_file_is_named(spoilt, name):
    (spoilt / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load(spoilt)


@pytest.mark.parametrize(
    ("actual", "named"),
    [
        ({"a": np.float32([0.0])}, "b is missing"),
        ({"a": np.float32([0.0]), "b": np.float32([1, 2]), "c": np.float32([0.0])}, "c is surplus"),
        ({"a": np.float32([-0.0]), "b": np.float32([1, 2])}, "a differs"),
        ({"a": np.float32([0.0]), "b": np.float32([[1, 2]])}, "b differs"),
        ({"a": np.float32([0.0]), "b": np.int32([1, 2])}, "b differs"),
    ],
)
def test_comparison_is_of_bits_and_names_the_first_difference(actual, named):
    expected = {"a": np.float32([0.0]), "b": np.float32([1, 2])}
    assert compare(Path(MODEL), expected, expected) == 2
    with pytest.raises(ExportMismatch, match=named):
        compare(Path(MODEL), actual, expected)
