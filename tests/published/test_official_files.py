"""Weights of official code: what diffusers converts them to computes the same there as they do here."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from safetensors.numpy import save_file

from dit_video.export.diffusers_folder import relative_error
from dit_video.published.family import DenoiserFamily
from dit_video.published.recognise import recognise_within
from dit_video.published.sd3 import SD3
from dit_video.published.wan import WanFamily
from dit_video.weights import names
from dit_video.weights.folder import WEIGHTS
from dit_video.weights.names import Dialect, NamesMismatch
from dit_video.weights.source import open_published

# Heads are as wide as in all published networks, since shapes do not tell.
WAN = {
    "text to video": {"num_attention_heads": 2, "in_channels": 5, "out_channels": 5, "text_dim": 7, "num_layers": 2},
    "image to video, with tokens of an image": {"num_attention_heads": 1, "in_channels": 10, "out_channels": 3}
    | {"text_dim": 6, "num_layers": 1, "image_dim": 9, "added_kv_proj_dim": 128},
    "image to video, patches of two frames": {"num_attention_heads": 1, "in_channels": 7, "out_channels": 3}
    | {"text_dim": 4, "num_layers": 1, "patch_size": (2, 1, 3)},
}
PREFIX = "model.diffusion_model."


def wan(config: Mapping[str, Any]) -> WanFamily:
    defaults = {"_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "ffn_dim": 31} | dict(config)
    return WanFamily.of_diffusers(defaults)


SD3S = {
    "SD3": {},
    "SD3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "SD3.5-large": {"qk_norm": "rms_norm", "num_attention_heads": 1, "caption_projection_dim": 64, "patch_size": 1},
    "one block, and it is dual": {"num_layers": 1, "dual_attention_layers": (0,)},
}


def sd3(config: Mapping[str, Any]) -> SD3:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 64, "caption_projection_dim": 128, "num_layers": 3}
    text = {"joint_attention_dim": 7, "pooled_projection_dim": 5, "in_channels": 3, "out_channels": 3}
    positions = {"sample_size": 16, "pos_embed_max_size": 12}
    return SD3.of_diffusers({"_class_name": "SD3Transformer2DModel"} | sizes | text | positions | dict(config))


def official(network: DenoiserFamily) -> dict[str, np.ndarray]:
    """Random tensors that keep the size of what goes through them; those that follow from the configuration as such."""
    rng, table = np.random.default_rng(0), network.table()
    weights = {
        name: rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
        for name, shape in table.expected(Dialect.OFFICIAL).items()
    }
    return weights | dict(table.constants.get(Dialect.OFFICIAL, {}))


def converted(network: DenoiserFamily, tensors: Mapping[str, np.ndarray], kind: type, convert) -> Any:
    """The network of diffusers that its own conversion of official tensors makes."""
    theirs = kind(**{n: x for n, x in network.diffusers_config((1, 6, 6)).items() if n != "_class_name"}).eval()
    theirs.load_state_dict(convert({n: torch.tensor(x) for n, x in tensors.items()}))
    return theirs


@torch.no_grad()
def worst(network: DenoiserFamily, path, theirs: Any, shape) -> float:
    """The largest relative difference between a file's network here and one of diffusers."""
    with open_published(path) as published:
        assert published.dialect is Dialect.OFFICIAL
        recognised, published = recognise_within(published, None)
        assert recognised == network
        names.check(recognised.table(), Dialect.OFFICIAL, published.source)
        params = dict(names.read(recognised.table(), Dialect.OFFICIAL, published.source))
    back = dict(names.write(network.table(), Dialect.OFFICIAL, params))
    assert back.keys() == published.source.keys()
    for name, stored in published.source.items():
        np.testing.assert_array_equal(back[name], stored.read())
    return max(relative_error(pair) for pair in network.pairs(params, theirs, shape))


@pytest.mark.parametrize("config", WAN.values(), ids=WAN)
def test_a_file_of_wan_computes_what_diffusers_makes_of_it(config, tmp_path):
    network = wan(config)
    tensors = official(network)
    save_file(tensors, tmp_path / "wan.safetensors")
    theirs = converted(network, tensors, WanTransformer3DModel, convert_wan_transformer_to_diffusers)
    shape = tuple(n * p for n, p in zip((3, 5, 7), network.config.patch_size))
    assert worst(network, tmp_path / "wan.safetensors", theirs, shape) < 1e-4


@pytest.mark.parametrize("config", SD3S.values(), ids=SD3S)
def test_a_file_of_sd3_computes_what_diffusers_makes_of_it(config, tmp_path):
    network = sd3(config)
    tensors = official(network)
    foreign = {"first_stage_model.decoder.conv_in.bias": np.zeros(3, np.float32)}
    save_file({f"{PREFIX}{name}": x for name, x in tensors.items()} | foreign, tmp_path / "sd3.safetensors")
    theirs = converted(network, tensors, SD3Transformer2DModel, convert_sd3_transformer_checkpoint_to_diffusers)
    assert worst(network, tmp_path / "sd3.safetensors", theirs, (1, 6, 10)) < 1e-4


def test_a_network_is_found_among_what_it_is_used_with(tmp_path):
    network = wan(WAN["text to video"])
    within = {f"{PREFIX}{name}": x for name, x in official(network).items()}
    foreign = {"first_stage_model.conv1.weight": np.zeros(3, np.float32), "text_encoders.a": np.zeros(3, np.float32)}
    save_file(within | foreign, tmp_path / "all.safetensors")
    with open_published(tmp_path / "all.safetensors") as published:
        recognised, inner = recognise_within(published, None)
        assert recognised == network
        assert inner.source.keys() == official(network).keys()
        assert "not read: 2 other tensors, such as first_stage_model.conv1.weight" in inner.notes[0]


OFFICIAL_JSON = {
    **{"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 24, "eps": 1e-06, "ffn_dim": 31},
    **{"freq_dim": 256, "in_dim": 5, "model_type": "t2v", "num_heads": 2, "num_layers": 2, "out_dim": 5},
    **{"text_len": 512},
}


@pytest.mark.parametrize("config", WAN.values(), ids=WAN)
def test_the_folder_of_official_code_says_how_wide_heads_are(config, tmp_path):
    heads = config["num_attention_heads"]
    network = wan(config | {"attention_head_dim": 12} | ({"added_kv_proj_dim": 12} if "image_dim" in config else {}))
    sizes = {"dim": 12 * heads, "num_heads": heads, "num_layers": config["num_layers"]}
    channels = {"in_dim": config["in_channels"], "out_dim": config["out_channels"]}
    kind = {"model_type": "t2v" if channels["in_dim"] == channels["out_dim"] else "i2v"}
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL_JSON | sizes | channels | kind))
    tensors = official(network)
    save_file(tensors, tmp_path / WEIGHTS)
    theirs = converted(network, tensors, WanTransformer3DModel, convert_wan_transformer_to_diffusers)
    shape = tuple(n * p for n, p in zip((3, 5, 7), network.config.patch_size))
    assert worst(network, tmp_path, theirs, shape) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "flf2v"}, "model_type='flf2v': t2v and i2v and ti2v are read"),
        ({"text_len": 256}, "text_len=256: 512"),
        ({"num_heads": 5}, "dim=24: must be a multiple of num_heads=5"),
        ({"eps": 1e-5}, "eps=1e-05: every published network"),
    ],
)
def test_a_folder_of_another_wan_is_an_error_that_names_the_field(change, message):
    assert WanFamily.of_diffusers(OFFICIAL_JSON).config.num_heads == 2
    with pytest.raises(ValueError, match=message):
        WanFamily.of_diffusers(OFFICIAL_JSON | change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x | {"img_emb.emb_pos": x["head.head.bias"]}, r"surplus img_emb.emb_pos"),
        (lambda x: {n: t for n, t in x.items() if n != "blocks.1.norm3.bias"}, r"missing blocks.1.norm3.bias \[256\]"),
        (lambda x: x | {"head.modulation": x["head.modulation"][0]}, r"head.modulation is \[2, 256\], the network has"),
        (
            lambda x: x | {"blocks.0.ffn.2.bias": x["blocks.0.ffn.2.bias"].astype(np.int32)},
            "blocks.0.ffn.2.bias is int32",
        ),
    ],
)
def test_a_file_that_was_changed_is_an_error_that_names_the_tensor(spoil, message, tmp_path):
    save_file(spoil(official(wan(WAN["text to video"]))), tmp_path / "x.safetensors")
    with open_published(tmp_path / "x.safetensors") as published:
        network, _ = recognise_within(published, None)
        with pytest.raises(NamesMismatch, match=message):
            names.check(network.table(), Dialect.OFFICIAL, published.source)


def test_heads_of_an_unknown_width_are_an_error_that_names_the_tensor(tmp_path):
    narrow = wan(WAN["text to video"] | {"attention_head_dim": 12})
    save_file(official(narrow), tmp_path / "x.safetensors")
    with (
        open_published(tmp_path / "x.safetensors") as published,
        pytest.raises(ValueError, match=r"patch_embedding.weight is \[24, .*: heads are 128 wide"),
    ):
        recognise_within(published, None)
