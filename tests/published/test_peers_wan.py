"""Wan as published: the same weights, the same input, the same output as in diffusers, in from and out to it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from dit_video.dit.condition import EmbeddedText, TextCondition
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.wan import WAN2_2_TI2V_5B, WAN_1_3B, WAN_14B, WanConfig
from dit_video.encoders.clip_image import CLIP_VIT_H
from dit_video.encoders.image import PretrainedImage
from dit_video.export.diffusers_folder import relative_error
from dit_video.published.wan import WanFamily
from dit_video.tasks.known_frames import FirstFrame
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.weights import names
from dit_video.weights.names import Dialect, NamesMismatch, StoredTensor

# Odd numbers of heads, planes, frames, rows, columns and channels; each kind that was published.
CONFIGS = {
    "text to video": {
        "num_attention_heads": 3,
        "attention_head_dim": 14,
        "in_channels": 5,
        "out_channels": 5,
        "text_dim": 7,
        "ffn_dim": 31,
        "num_layers": 2,
    },
    "image to video, with tokens of an image": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 10,
        "out_channels": 3,
        "text_dim": 6,
        "ffn_dim": 20,
        "num_layers": 2,
        "image_dim": 9,
        "added_kv_proj_dim": 24,
    },
    "image to video": {
        "num_attention_heads": 1,
        "attention_head_dim": 6,
        "in_channels": 7,
        "out_channels": 3,
        "text_dim": 4,
        "ffn_dim": 12,
        "num_layers": 3,
    },
    "patches of two frames": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": None,
        "text_dim": 4,
        "ffn_dim": 12,
        "num_layers": 1,
        "patch_size": (2, 1, 3),
    },
}
CONFIG = CONFIGS["image to video, with tokens of an image"]


def their_wan(config: Mapping[str, Any]) -> Any:
    """With random weights: torch starts with norms and biases that hide where they are."""
    network = WanTransformer3DModel(**config).eval()
    rng = np.random.default_rng(0)
    network.load_state_dict({name: random(rng, x.shape) for name, x in network.state_dict().items()})
    return network


def random(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(0.2 * rng.standard_normal(tuple(shape), np.float32))


def family(config: Mapping[str, Any]) -> WanFamily:
    return WanFamily.of_diffusers({"_class_name": "WanTransformer3DModel"} | dict(config))


def stored(weights: Mapping[str, np.ndarray]) -> names.Source:
    return {name: StoredTensor(x.shape, x.dtype, lambda x=x: x) for name, x in weights.items()}


def arrays(network: Any) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in network.state_dict().items()}


def read(network: WanFamily, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    source = stored(weights)
    names.check(network.table(), Dialect.DIFFUSERS, source)
    return dict(names.read(network.table(), Dialect.DIFFUSERS, source))


def assert_pairs_equal(network: WanFamily, params: Mapping[str, np.ndarray], theirs: Any, shape) -> None:
    with torch.no_grad():
        pairs = list(network.pairs(params, theirs, shape))
    blocks = [f"blocks.{n}" for n in range(network.config.depth)]
    assert [p.name for p in pairs] == [
        *blocks,
        "output",
        *(f"{block} by frame" for block in blocks),
        "output by frame",
    ]
    assert {pair.name: relative_error(pair) for pair in pairs if not relative_error(pair) < 1e-4} == {}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_of_diffusers_compute_the_same_here(config):
    theirs, network = their_wan(config), family(config)
    shape = tuple(n * p for n, p in zip((3, 5, 7), network.config.patch_size))
    assert_pairs_equal(network, read(network, arrays(theirs)), theirs, shape)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_way_there_and_back_changes_no_bit(config):
    weights = arrays(their_wan(config))
    back = dict(names.write(family(config).table(), Dialect.DIFFUSERS, read(family(config), weights)))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value, strict=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_from_here_compute_the_same_in_diffusers(config):
    network, rng = family(config), np.random.default_rng(1)
    params = {n: 0.2 * rng.standard_normal(s.shape, np.float32) for n, s in network.define().shapes.items()}
    shape = network.config.patch_size
    expected = network.diffusers_config(shape)
    theirs = WanTransformer3DModel.from_config(expected).eval()
    written = names.write(network.table(), Dialect.DIFFUSERS, params)
    theirs.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in written})
    assert_pairs_equal(network, params, theirs, shape)
    assert WanFamily.of_diffusers(expected) == network


@pytest.mark.parametrize(
    ("config", "channels", "frame", "published"),
    [
        (WAN_1_3B, 16, None, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
        (WAN_14B, 16, None, {}),
        (WAN_14B, 16, {"image_size": 1280}, {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
        (WAN_14B, 16, {}, {"in_channels": 36}),
        (
            WAN2_2_TI2V_5B,
            48,
            None,
            {
                **{"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
                **{"in_channels": 48, "out_channels": 48},
            },
        ),
    ],
    ids=["2.1 T2V 1.3B", "T2V 14B", "2.1 I2V 14B", "2.2 I2V A14B", "2.2 TI2V 5B"],
)
def test_named_sizes_are_the_published_networks(config, channels, frame, published):
    """Their config.json differ in these fields from the defaults of diffusers' class."""
    text = EmbeddedText(hidden_size=4096, pooled_size=1, num_tokens=512)
    known = None if frame is None else AsChannels(**frame)
    network = WanFamily(config=config, channels=channels, condition=text, known=known)
    with torch.device("meta"):
        theirs = WanTransformer3DModel(**published)
    assert family(dict(theirs.config)) == network
    assert network.define().num_params == sum(x.numel() for x in theirs.parameters())
    expected = network.table().expected(Dialect.DIFFUSERS)
    assert expected == {name: tuple(x.shape) for name, x in theirs.state_dict().items()}


def test_half_precision_is_read_with_the_tensors_that_diffusers_keeps_in_float32():
    theirs, network = their_wan(CONFIG), family(CONFIG)
    kept = theirs._keep_in_fp32_modules
    weights = arrays(theirs)
    in_float32 = {name for name in weights if any(module in name.split(".") for module in kept)}
    half = {n: x if n in in_float32 else x.astype(ml_dtypes.bfloat16) for n, x in weights.items()}
    types = names.check(network.table(), Dialect.DIFFUSERS, stored(half))
    assert types == (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
    params = read(network, half)
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["final_modulation.table"], weights["scale_shift_table"][0])
    np.testing.assert_array_equal(params["final_layer.bias"], half["proj_out.bias"].astype(np.float32))


def test_a_norm_that_older_files_have_is_left_out():
    weights = arrays(their_wan(CONFIG))
    older = weights | {f"blocks.{n}.attn2.norm_added_q.weight": np.ones(24, np.float32) for n in range(2)}
    actual, expected = read(family(CONFIG), older), read(family(CONFIG), weights)
    assert actual.keys() == expected.keys()
    with pytest.raises(NamesMismatch, match=r"surplus blocks.2.attn2.norm_added_q.weight \[24\]"):
        read(family(CONFIG), older | {"blocks.2.attn2.norm_added_q.weight": np.ones(24, np.float32)})


def renamed(weights: dict[str, np.ndarray]) -> None:
    weights["blocks.1.attn1.to_z.bias"] = weights.pop("blocks.1.attn1.to_q.bias")


def missing(weights: dict[str, np.ndarray]) -> None:
    del weights["blocks.0.attn2.add_v_proj.weight"]


def reshaped(weights: dict[str, np.ndarray]) -> None:
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"][..., :1]


def cast(weights: dict[str, np.ndarray]) -> None:
    weights["proj_out.weight"] = weights["proj_out.weight"].astype(np.float64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, r"missing blocks.1.attn1.to_q.bias \[24\]\n.*surplus blocks.1.attn1.to_z.bias \[24\]"),
        (missing, r"missing blocks.0.attn2.add_v_proj.weight \[24, 24\]"),
        (reshaped, r"patch_embedding.weight is \[24, 10, 1, 2, 1\], the network has \[24, 10, 1, 2, 2\]"),
        (cast, "proj_out.weight is float64; float32 has not all of its digits"),
    ],
)
def test_a_tensor_that_is_not_the_networks_is_named(spoil, message):
    weights = arrays(their_wan(CONFIG))
    spoil(weights)
    with pytest.raises(NamesMismatch, match=message):
        names.check(family(CONFIG).table(), Dialect.DIFFUSERS, stored(weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "rms_norm"}, "qk_norm='rms_norm'"),
        ({"pos_embed_seq_len": 514}, "pos_embed_seq_len=514"),
        ({"num_layers": 0}, "num_layers=0: must be a positive number"),
        ({"patch_size": 2}, "patch_size=2: must be a list of positive numbers"),
        ({"added_kv_proj_dim": None}, "added_kv_proj_dim=None: must be 24"),
        ({"in_channels": 6}, "in_channels=6: must be out_channels=3, or for image to video twice as many"),
    ],
)
def test_a_config_that_is_no_published_wan_is_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        family(CONFIG | change)


def test_a_config_of_another_class_is_another_family():
    assert WanFamily.of_diffusers({"_class_name": "SD3Transformer2DModel"}) is None


TEXT = EmbeddedText(hidden_size=6, pooled_size=2, num_tokens=20, drop_rate=0.2)
NETWORK = WanConfig(hidden_size=24, depth=2, num_heads=2, mlp_width=20, text_length=512)


def task_of(denoise: Denoise, condition, shown: AsChannels | None = None, **network: Any) -> Denoise:
    image = None
    if shown is not None and shown.image_size is not None:
        encoder = dataclasses.replace(CLIP_VIT_H, hidden_size=shown.image_size, num_heads=1)
        image = PretrainedImage(encoder=encoder, model="none")
    network = dataclasses.replace(NETWORK, **network)
    known = None if shown is None else FirstFrame(shown=shown)
    return dataclasses.replace(denoise, network=network, condition=condition, image=image, known=known)


def test_a_task_with_this_network_differs_in_nothing(denoise):
    config = CONFIG | {"in_channels": 12, "out_channels": 4}
    frame = AsChannels(image_size=9, grey_frames=False)
    assert family(config).differences(task_of(denoise, TEXT, frame)) == []
    assert family(config).differences(task_of(denoise, TEXT)) != []
    assert family(config).differences(task_of(denoise, TEXT, dataclasses.replace(frame, image_size=8))) == [
        "--config.task.known.shown.image_size=9 (it is 8)"
    ]
    assert family(config).differences(task_of(denoise, TEXT, frame, mlp_width=21)) == [
        "--config.task.network.mlp_width=20 (it is 21)"
    ]


def test_a_task_with_another_text_encoder_was_never_published(denoise):
    words = TextCondition(hidden_size=8, depth=1, num_heads=1)
    for shown in (None, AsChannels()):
        with pytest.raises(ValueError, match="give it an EmbeddedText"):
            WanFamily.of_task(task_of(denoise, words, shown))
    assert WanFamily.of_task(denoise) is None
    assert WanFamily.of_task(task_of(denoise, TEXT)).config == NETWORK


def test_a_network_that_masks_text_is_not_diffusers(denoise):
    network = WanFamily.of_task(task_of(denoise, TEXT, text_length=None))
    with pytest.raises(ValueError, match=r"text_length=None: diffusers fills captions up to 512"):
        network.diffusers_config((1, 2, 2))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_model_card_says_what_goes_in(config):
    network = family(config)
    card = network.usage((3, 4, 6))
    assert f"[b {network.channels_in} 3 4 6]" in card
    assert ("encoder_hidden_states_image" in card) == (network.image_size is not None)
    assert ("of a mask" in card) == (network.known is not None)


def test_it_is_sampled_as_it_was_published():
    wan, ti2v = family({}), family({"in_channels": 48, "out_channels": 48})
    # Of 81 frames of 480 x 832 with cells of (4, 8, 8), and of 121 of 704 x 1280 with cells of (4, 16, 16).
    assert (wan.usual_latents({}), ti2v.usual_latents({})) == ((21, 60, 104), (31, 44, 80))
    text = wan.text_encoders("somewhere")
    assert text.num_tokens == 512
    assert wan.condition_on(text) == EmbeddedText(hidden_size=4096, pooled_size=4096, num_tokens=512)
