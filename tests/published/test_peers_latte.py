"""Latte as published: the same weights, the same input, the same output as in diffusers, in from and out to it."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LatteTransformer3DModel
from toys import SMALL_DENOISE

from dit_video.dit.condition import ClassCondition, EmbeddedText, TextCondition
from dit_video.dit.latte import LATTE_TEXT, LatteConfig, Variant
from dit_video.export.diffusers_folder import relative_error
from dit_video.published.latte import InterleavedLatte
from dit_video.published.recognise import recognise, recognise_within
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.weights import names
from dit_video.weights.names import Dialect, NamesMismatch, StoredTensor
from dit_video.weights.source import open_published

FIXED = {
    "_class_name": "LatteTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000,
}
# Odd numbers of channels, patches, heads and frames; squares and others, of the size of the positions and of others.
CONFIGS = {
    "learned variance": (
        {"num_attention_heads": 2, "attention_head_dim": 6, "in_channels": 3, "out_channels": 6, "num_layers": 2}
        | {"sample_size": 6, "patch_size": 2, "caption_channels": 7, "video_length": 5},
        (5, 6, 10),
    ),
    "prediction alone": (
        {"num_attention_heads": 3, "attention_head_dim": 4, "in_channels": 4, "num_layers": 3}
        | {"sample_size": 9, "patch_size": 3, "caption_channels": 16, "video_length": 2},
        (2, 9, 9),
    ),
    "one frame": (
        {"num_attention_heads": 1, "attention_head_dim": 8, "in_channels": 1, "out_channels": 2, "num_layers": 1}
        | {"sample_size": 5, "patch_size": 1, "caption_channels": 3, "video_length": 16},
        (1, 7, 5),
    ),
    "positions in larger steps": (
        {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 2, "out_channels": 4, "num_layers": 1}
        | {"sample_size": 128, "patch_size": 16, "caption_channels": 3, "video_length": 3},
        (3, 32, 32),
    ),
}
CONFIG, SHAPE = CONFIGS["learned variance"]


def their_latte(config: Mapping[str, Any]) -> Any:
    """With random weights: torch starts with biases that hide where they are."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    fixed = {name: value for name, value in FIXED.items() if name != "_class_name"}
    network = LatteTransformer3DModel(cross_attention_dim=width, **fixed, **config).eval()
    rng = np.random.default_rng(0)
    network.load_state_dict(
        {n: torch.from_numpy(0.2 * rng.standard_normal(x.shape, np.float32)) for n, x in network.state_dict().items()}
    )
    return network


def full(config: Mapping[str, Any]) -> dict[str, Any]:
    return FIXED | {"cross_attention_dim": config["num_attention_heads"] * config["attention_head_dim"]} | dict(config)


def stored(weights: Mapping[str, np.ndarray]) -> names.Source:
    return {name: StoredTensor(x.shape, x.dtype, lambda x=x: x) for name, x in weights.items()}


def arrays(network: Any) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in network.state_dict().items()}


def read(network: InterleavedLatte, weights: Mapping[str, np.ndarray], dialect=Dialect.DIFFUSERS) -> dict[str, Any]:
    names.check(network.table(), dialect, stored(weights))
    return dict(names.read(network.table(), dialect, stored(weights)))


def written(network: InterleavedLatte, params: Mapping[str, np.ndarray], dialect=Dialect.DIFFUSERS) -> dict[str, Any]:
    return {n: np.ascontiguousarray(x) for n, x in names.write(network.table(), dialect, params)}


def assert_bit_equal(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, strict=True)


@pytest.mark.parametrize(("config", "shape"), CONFIGS.values(), ids=CONFIGS)
def test_weights_of_diffusers_compute_the_same_here_and_go_back_bit_by_bit(config, shape, tmp_path):
    """At several timesteps, of captions of one token, of some and of all; after each pair of blocks and at the end."""
    theirs = their_latte(config)
    theirs.save_pretrained(tmp_path)
    with open_published(tmp_path) as published:
        network = recognise(published, SMALL_DENOISE)
        assert network.usual_latents(published.config) == (config["video_length"], *[config["sample_size"]] * 2)
        names.check(network.table(), published.dialect, published.source)
        params = dict(names.read(network.table(), published.dialect, published.source))
    with torch.no_grad():
        pairs = list(network.pairs(params, theirs, shape))
    assert [pair.name for pair in pairs] == [
        *(f"temporal_transformer_blocks.{n}" for n in range(config["num_layers"])),
        "output",
    ]
    assert {pair.name: relative_error(pair) for pair in pairs if not relative_error(pair) < 1e-4} == {}
    assert_bit_equal(written(network, params), arrays(theirs))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 6, 4)], ids=str)
def test_weights_from_here_compute_the_same_in_diffusers(shape):
    config = LatteConfig(
        hidden_size=12, depth=4, num_heads=3, position_grid=3, shared_modulation=True, learned_variance=True
    )
    condition = EmbeddedText(hidden_size=5, pooled_size=2, num_tokens=4)
    network = InterleavedLatte(config=config, channels=2, condition=condition)
    rng = np.random.default_rng(0)
    params = {n: 0.2 * rng.standard_normal(s.shape, np.float32) for n, s in network.define().shapes.items()}
    there = network.diffusers_config(shape)
    theirs = LatteTransformer3DModel.from_config(there).eval()
    theirs.load_state_dict({n: torch.from_numpy(x) for n, x in written(network, params).items()})
    with torch.no_grad():
        assert max(relative_error(pair) for pair in network.pairs(params, theirs, shape)) < 1e-4
    again = InterleavedLatte.of_diffusers(there)
    assert again.config == config
    assert (again.channels, again.condition.hidden_size) == (2, 5)


def test_latte_1_is_the_size_that_is_published():
    condition = EmbeddedText(hidden_size=4096, pooled_size=1, num_tokens=120)
    network = InterleavedLatte(config=LATTE_TEXT, channels=4, condition=condition)
    config = network.diffusers_config((16, 64, 64))
    assert (config["sample_size"], config["num_layers"], config["out_channels"]) == (64, 28, 8)
    with torch.device("meta"):
        theirs = LatteTransformer3DModel.from_config(config)
    assert {n: tuple(x.shape) for n, x in theirs.state_dict().items()} == network.table().expected(Dialect.DIFFUSERS)


def task_of(config: LatteConfig, condition) -> Denoise:
    return dataclasses.replace(SMALL_DENOISE, network=config, condition=condition)


OFFICIAL = LatteConfig(hidden_size=16, depth=4, num_heads=2, position_grid=3, learned_variance=True)


@pytest.mark.parametrize("condition", [ClassCondition(num_classes=2), None], ids=["class", "nothing"])
def test_official_weights_are_read_from_their_file_and_go_back_bit_by_bit(condition, tmp_path):
    """Blocks over space and over time take turns in one list there. Outputs were compared with the official code."""
    network = InterleavedLatte(config=OFFICIAL, channels=3, condition=condition, num_frames=5)
    rng = np.random.default_rng(0)
    params = {n: 0.2 * rng.standard_normal(s.shape, np.float32) for n, s in network.define().shapes.items()}
    weights = written(network, params, Dialect.OFFICIAL)
    assert {name.split(".")[1] for name in weights if name.startswith("blocks.")} == {"0", "1", "2", "3"}
    for kind, layer, block in (("spatial", 1, 2), ("temporal", 0, 1)):
        mlp = params[f"blocks.{kind}.mlp.up.bias"][layer]
        np.testing.assert_array_equal(weights[f"blocks.{block}.mlp.fc1.bias"], mlp)
    assert (weights["pos_embed"].shape, weights["temp_embed"].shape) == ((1, 9, 16), (1, 5, 16))
    file = tmp_path / "latte.pt"
    torch.save({"ema": {n: torch.from_numpy(x) for n, x in weights.items()}}, file)
    with open_published(file, digests={file: hashlib.sha256(file.read_bytes()).hexdigest()}) as published:
        recognised, published = recognise_within(published, task_of(OFFICIAL, None))
        assert recognised == network
        assert recognised.usual_latents({}) == (5, 6, 6)
        names.check(recognised.table(), published.dialect, published.source)
        assert_bit_equal(dict(names.read(recognised.table(), published.dialect, published.source)), params)


def test_official_weights_but_for_a_tensor_are_known_as_what_they_are_for():
    network = InterleavedLatte(config=OFFICIAL, channels=4, condition=None)
    weights = {n: np.zeros(shape, np.float32) for n, shape in network.table().expected(Dialect.OFFICIAL).items()}
    weights["temporal"] = weights.pop("temp_embed")
    recognised = InterleavedLatte.of_official(stored(weights), task_of(OFFICIAL, None))
    with pytest.raises(NamesMismatch, match=r"missing temp_embed \[1, 16, 16\]\n  surplus temporal"):
        names.check(recognised.table(), Dialect.OFFICIAL, stored(weights))
    assert InterleavedLatte.of_official(stored({"a": np.zeros(1)}), task_of(OFFICIAL, None)) is None
    weights["temp_embed"] = np.zeros((1, 1, 16), np.float32)
    with pytest.raises(ValueError, match="temp_embed: has the position of one frame"):
        InterleavedLatte.of_official(stored(weights), task_of(OFFICIAL, None))


def _rename(weights, name):
    weights[f"{name}_"] = weights.pop(name)


def _cut(weights, name):
    weights[name] = weights[name][:-1]


def _double(weights, name):
    weights[name] = weights[name].astype(np.float64)


NAME = "temporal_transformer_blocks.1.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename, rf"missing {NAME} \[12, 12\]\n  surplus {NAME}_"),
        (lambda weights, name: weights.pop(name), rf"missing {NAME} \[12, 12\]"),
        (_cut, rf"{NAME} is \[11, 12\], the network has \[12, 12\]"),
        (_double, rf"{NAME} is float64; float32 has not all of its digits"),
    ],
    ids=["renamed", "missing", "cut", "of another type"],
)
def test_weights_that_are_not_those_of_the_table_are_named(change, message):
    weights = arrays(their_latte(CONFIG))
    change(weights, NAME)
    network = InterleavedLatte.of_diffusers(full(CONFIG))
    with pytest.raises(NamesMismatch, match=message):
        names.check(network.table(), Dialect.DIFFUSERS, stored(weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "ada_norm_zero"}, "norm_type='ada_norm_zero'"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05"),
        ({"out_channels": 5}, "out_channels=5: must be in_channels=3 or twice as many"),
        ({"cross_attention_dim": 9}, "cross_attention_dim=9: .* the width of the blocks, 12"),
        ({"patch_size": None}, "patch_size=None: must be a positive number"),
        ({"sample_size": 130}, "sample_size=130: 65 patches do not divide into steps of 2"),
    ],
)
def test_a_config_that_is_no_published_latte_is_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        InterleavedLatte.of_diffusers(full(CONFIG) | change)


def test_what_a_config_leaves_out_is_as_in_the_class():
    config = full(CONFIG)
    del config["norm_eps"]
    with pytest.raises(ValueError, match="norm_eps=1e-05"):
        InterleavedLatte.of_diffusers(config)
    assert InterleavedLatte.of_diffusers(config | {"_class_name": "DiTTransformer2DModel"}) is None


TEXT = EmbeddedText(hidden_size=8, pooled_size=1, num_tokens=4)
OF_TEXT = dataclasses.replace(OFFICIAL, shared_modulation=True)


@pytest.mark.parametrize(
    ("config", "condition", "message"),
    [
        (dataclasses.replace(OF_TEXT, variant=Variant.LATE), TEXT, "network.variant=late: .* interleaved alone"),
        (dataclasses.replace(OF_TEXT, patch_size=(2, 1, 1)), TEXT, r"patch_size=\(2, 1, 1\): .* are squares"),
        (OFFICIAL, TEXT, "shared_modulation=False with config.task.condition=EmbeddedText"),
        (OF_TEXT, None, "shared_modulation=True with config.task.condition=None"),
        (OF_TEXT, TextCondition(hidden_size=8, depth=1, num_heads=2), "config.task.condition=TextCondition"),
    ],
)
def test_a_task_of_another_latte_is_an_error_that_names_the_field(config, condition, message):
    with pytest.raises(ValueError, match=message):
        InterleavedLatte.of_task(task_of(config, condition))


def test_what_diffusers_cannot_compute_is_an_error_that_names_the_field():
    def latte(config: LatteConfig, condition) -> InterleavedLatte:
        return InterleavedLatte.of_task(task_of(config, condition))

    with pytest.raises(ValueError, match="condition=None: it is conditioned on text; set EmbeddedText"):
        latte(OFFICIAL, None).diffusers_config((4, 8, 8))
    counting = dataclasses.replace(OF_TEXT, position_grid=None)
    with pytest.raises(ValueError, match=r"position_grid=None with latents of .* \(4, 8, 6\): .* squares alone"):
        latte(counting, TEXT).diffusers_config((4, 8, 6))
    assert latte(counting, TEXT).diffusers_config((4, 8, 8))["sample_size"] == 8
    with pytest.raises(ValueError, match=r"position_grid=64: positions of 128 rows .* less than 64 patches"):
        latte(dataclasses.replace(OF_TEXT, position_grid=64), TEXT).diffusers_config((4, 8, 8))
    assert InterleavedLatte.of_task(SMALL_DENOISE) is None


def test_differences_name_what_a_task_would_have_to_change():
    network = InterleavedLatte(config=OF_TEXT, channels=4, condition=TEXT)
    other = dataclasses.replace(TEXT, num_tokens=9, pooled_size=3, drop_rate=0.5)
    counting = dataclasses.replace(OF_TEXT, position_grid=None)
    assert network.differences(task_of(counting, other)) == []
    (line,) = network.differences(task_of(dataclasses.replace(OF_TEXT, depth=2), TEXT))
    assert line == "--config.task.network.depth=4 (it is 2)"
