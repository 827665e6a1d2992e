"""SD3 and SD3.5: the same weights, the same input, the same output as in diffusers, in from and out to it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from toys import SMALL_DENOISE

from dit_video.diffusion.path import ConstantShift
from dit_video.dit.mmdit import SD3_5_LARGE, SD3_5_MEDIUM, SD3_MEDIUM, MMDiTConfig, PositionTable
from dit_video.dit.network import Remat
from dit_video.export.diffusers_folder import TOLERANCE, compare_layers, compare_pairs, write_tensors
from dit_video.nn.attention import QKNorm
from dit_video.published.sd3 import SD3
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.weights import names
from dit_video.weights.folder import CONFIG, WEIGHTS
from dit_video.weights.names import Dialect, NamesMismatch
from dit_video.weights.source import open_published

# Odd sizes of patches, heads, channels and tables.
CONFIGS = {
    "SD3": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 3,
        "in_channels": 4,
        "out_channels": 4,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 6,
        "sample_size": 8,
        "pos_embed_max_size": 7,
    },
    "SD3.5-medium": {
        "num_attention_heads": 3,
        "attention_head_dim": 4,
        "num_layers": 4,
        "in_channels": 3,
        "out_channels": 3,
        "joint_attention_dim": 5,
        "caption_projection_dim": 12,
        "pooled_projection_dim": 7,
        "sample_size": 12,
        "pos_embed_max_size": 12,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0, 1),
    },
    "SD3.5-large": {
        "num_attention_heads": 1,
        "attention_head_dim": 20,
        "num_layers": 2,
        "patch_size": 1,
        "in_channels": 1,
        "out_channels": None,
        "joint_attention_dim": 3,
        "caption_projection_dim": 20,
        "pooled_projection_dim": 2,
        "sample_size": 5,
        "pos_embed_max_size": 13,
        "qk_norm": "rms_norm",
    },
    "one block, and it is dual": {
        "num_attention_heads": 1,
        "attention_head_dim": 12,
        "num_layers": 1,
        "patch_size": 2,
        "in_channels": 2,
        "out_channels": 2,
        "joint_attention_dim": 3,
        "caption_projection_dim": 12,
        "pooled_projection_dim": 2,
        "sample_size": 6,
        "pos_embed_max_size": 5,
        "dual_attention_layers": (0,),
    },
}
EACH = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[pytest.mark.slow] if name == "SD3.5-large" else [])
        for name, config in CONFIGS.items()
    ],
)
# (t, h, w) of latents and how many tokens of text.
SHAPES = (((1, 6, 10), 7), ((1, 4, 2), 1))
MEDIUM = CONFIGS["SD3.5-medium"]


def their_network(config: Mapping[str, Any]) -> Any:
    """With the weights that torch starts from, scales of norms among them moved off one."""
    torch.manual_seed(0)
    network = SD3Transformer2DModel(**config).eval()
    for name, weight in network.named_parameters():
        if ".norm_" in name:
            torch.nn.init.normal_(weight, 1.0, 0.3)
    return network


def stored(tensors: Mapping[str, torch.Tensor]) -> dict[str, names.StoredTensor]:
    sources = {}
    for name, value in tensors.items():
        array = value.detach().float().numpy() if value.dtype is torch.bfloat16 else value.detach().numpy()
        sources[name] = names.StoredTensor(tuple(value.shape), array.dtype, lambda array=array: array)
    return sources


def our_network(theirs: Any) -> SD3:
    recognised = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **theirs.config})
    return recognised.informed_by(stored(theirs.state_dict()))


def with_text_of(network: SD3, num_tokens: int) -> SD3:
    return dataclasses.replace(network, condition=dataclasses.replace(network.condition, num_tokens=num_tokens))


def assert_same(network: SD3, params: Mapping[str, np.ndarray], theirs: Any) -> None:
    for shape, num_tokens in SHAPES:
        pairs = with_text_of(network, num_tokens).pairs(params, theirs, shape)
        error, num_compared = compare_pairs(pairs, "diffusers")
        assert error < TOLERANCE
        # Of the last block, only video.
        assert num_compared == 2 * network.config.depth


def random_params(network: SD3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: 0.1 * rng.standard_normal(s.shape, np.float32) for n, s in network.define().shapes.items()}


@EACH
def test_weights_of_diffusers_compute_the_same_here(config, tmp_path):
    theirs = their_network(config)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    with open_published(tmp_path) as published:
        network = SD3.of_diffusers(published.config).informed_by(published.source)
        names.check(network.table(), published.dialect, published.source)
        params = dict(names.read(network.table(), published.dialect, published.source))
    assert params.keys() == network.define().shapes.keys()
    assert_same(network, params, theirs)
    back = dict(names.write(network.table(), Dialect.DIFFUSERS, params))
    weights = theirs.state_dict()
    assert back.keys() == weights.keys()
    # Positions are computed, there with steps that are rounded to float32.
    np.testing.assert_allclose(back.pop(POSITIONS), weights[POSITIONS].numpy(), atol=2e-6)
    for name, value in back.items():
        np.testing.assert_array_equal(value, weights[name].numpy(), strict=True)


@EACH
def test_a_folder_from_here_computes_the_same_in_diffusers(config, tmp_path):
    network = our_network(their_network(config))
    params, shape = random_params(network), (1, 6, 10)
    (tmp_path / CONFIG).write_text(json.dumps(network.diffusers_config(shape)))
    num_tensors = write_tensors(network.table(), Dialect.DIFFUSERS, params, tmp_path / WEIGHTS)
    compared = compare_layers(with_text_of(network, 7), params, tmp_path, shape, num_tensors)
    assert compared.num_tensors == len(params)
    assert compared.num_compared == 2 * network.config.depth
    with open_published(tmp_path) as published:
        assert SD3.of_diffusers(published.config).informed_by(published.source) == network


ONE_BLOCK = {"num_layers": 1, "dual_attention_layers": ()}
PUBLISHED = PositionTable(size=12, origin=3.0, step=16 / 6)


@pytest.mark.parametrize("table", [PUBLISHED, PositionTable(size=12, origin=-2.5, step=1 / 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_positions_are_those_of_the_file(table, dtype):
    """Which diffusers computes none of: published weights bring theirs."""
    theirs = their_network(MEDIUM | {"num_attention_heads": 12, "caption_projection_dim": 48} | ONE_BLOCK)
    network = our_network(theirs)
    expected = dataclasses.replace(network, config=dataclasses.replace(network.config, position_table=table))
    positions = torch.from_numpy(expected.table().constants[Dialect.DIFFUSERS][POSITIONS])
    assert not torch.allclose(theirs.pos_embed.pos_embed, positions, atol=0.1)
    source = stored(theirs.state_dict() | {POSITIONS: positions.to(dtype)})
    assert network.informed_by(source) == expected
    if dtype is torch.float32:
        theirs.pos_embed.pos_embed.copy_(positions)
        assert_same(expected, dict(names.read(expected.table(), Dialect.DIFFUSERS, source)), theirs)


@pytest.mark.parametrize("size", [SD3_MEDIUM, SD3_5_MEDIUM, SD3_5_LARGE], ids=["SD3", "SD3.5-medium", "SD3.5-large"])
def test_a_published_config_and_its_positions_are_a_named_size(size):
    """Of the fields that differ between published networks; the others are defaults of the class or the same in all."""
    config = {
        "_class_name": SD3.diffusers_class,
        "attention_head_dim": 64,
        "caption_projection_dim": size.hidden_size,
        "dual_attention_layers": list(range(13)) if size is SD3_5_MEDIUM else [],
        "num_attention_heads": size.num_heads,
        "num_layers": size.depth,
        "pos_embed_max_size": 384 if size is SD3_5_MEDIUM else 192,
        "qk_norm": None if size is SD3_MEDIUM else "rms_norm",
        "sample_size": 128,
    }
    recognised = SD3.of_diffusers(config)
    assert dataclasses.replace(recognised.config, position_table=size.position_table) == size
    assert (recognised.condition.hidden_size, recognised.condition.pooled_size, recognised.channels) == (4096, 2048, 16)
    assert recognised.objective().shift == ConstantShift(shift=3.0)


FIRST, LAST = "transformer_blocks.0.attn2.to_q.weight", "transformer_blocks.3.attn.norm_added_k.weight"
BIAS, POSITIONS = "proj_out.bias", "pos_embed.pos_embed"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda w: w.update(another=w.pop(FIRST)), rf"missing {FIRST}(.|\n)*surplus another", id="renamed"),
        pytest.param(lambda w: w.pop(LAST), f"missing {LAST}", id="missing"),
        pytest.param(lambda w: w.update({BIAS: torch.zeros(5)}), rf"{BIAS} is \[5\], .* has \[12\]", id="shape"),
        pytest.param(lambda w: w.update({BIAS: w[BIAS].double()}), f"{BIAS} is float64; float32 has not", id="type"),
        pytest.param(lambda w: w.pop(POSITIONS), f"missing {POSITIONS}", id="no positions"),
        pytest.param(
            lambda w: w.update({POSITIONS: torch.zeros(1, 4, 12)}), rf"{POSITIONS} is \[1, 4", id="few positions"
        ),
    ],
)
def test_tensors_that_are_not_of_the_network_are_named(spoil, message):
    theirs = their_network(MEDIUM)
    weights = theirs.state_dict()
    spoil(weights)
    network = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **theirs.config}).informed_by(stored(weights))
    with pytest.raises(NamesMismatch, match=message):
        names.check(network.table(), Dialect.DIFFUSERS, stored(weights))


@pytest.mark.parametrize("value", ["noise", "nan", "zero"])
def test_positions_on_no_line_are_refused(value):
    theirs = their_network(MEDIUM)
    weights, noise = theirs.state_dict(), torch.sin(torch.arange(12 * 12 * 12.0)).reshape(1, 144, 12)
    weights[POSITIONS] = {"noise": noise, "nan": noise * torch.nan, "zero": 0 * noise}[value]
    network = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **theirs.config}).informed_by(stored(weights))
    with pytest.raises(NamesMismatch, match=f"{POSITIONS}: has other values"):
        dict(names.read(network.table(), Dialect.DIFFUSERS, stored(weights)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_channels": 6}, "out_channels=6: in every published network it is 3"),
        ({"caption_projection_dim": 5}, "caption_projection_dim=5: in every published network it is 12"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm'"),
        ({"dual_attention_layers": [1]}, r"dual_attention_layers=\[1\]: published are the first"),
        ({"dual_attention_layers": [0, 1, 2, 3, 4]}, "dual_attention_layers"),
        ({"num_layers": "many"}, "num_layers='many': must be a positive number"),
    ],
)
def test_a_config_that_is_none_of_them_is_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        SD3.of_diffusers({"_class_name": SD3.diffusers_class, **MEDIUM, **change})


def task_of(network: MMDiTConfig, family: SD3, **changes: Any) -> Denoise:
    return dataclasses.replace(SMALL_DENOISE, network=network, condition=family.condition, **changes)


def test_a_task_of_such_a_network_is_recognised():
    family = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **CONFIGS["SD3"]})
    assert SD3.of_task(task_of(family.config, family)) == family
    assert SD3.of_task(SMALL_DENOISE) is None
    assert SD3.of_diffusers({"_class_name": "DiTTransformer2DModel"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_table": None}, "position_table=None: published networks have one"),
        ({"attend_padding": False}, "attend_padding=False: as published it is True"),
        ({"text_output": True}, "text_output=True: as published it is False"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0: as published it is 4.0"),
        ({"qk_norm": QKNorm.ACROSS_HEADS}, "qk_norm=across_heads: as published it is none or per_head"),
        ({"patch_size": (2, 2, 2)}, r"patch_size=\(2, 2, 2\): published patches are squares"),
    ],
)
def test_a_network_that_was_never_published_is_refused_by_its_field(changes, message):
    family = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **CONFIGS["SD3"]})
    with pytest.raises(ValueError, match=message):
        SD3.of_task(task_of(dataclasses.replace(family.config, **changes), family))
    with pytest.raises(ValueError, match="condition=ClassCondition"):
        SD3.of_task(dataclasses.replace(SMALL_DENOISE, network=family.config))


def test_what_a_task_has_to_change_is_said_but_not_what_weights_do_not_know():
    family = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **CONFIGS["SD3"]})
    same = task_of(dataclasses.replace(family.config, remat=Remat.FULL), with_text_of(family, 9))
    assert family.differences(same) == []
    other = task_of(dataclasses.replace(family.config, num_dual_blocks=1), family)
    assert family.differences(other) == ["--config.task.network.num_dual_blocks=0 (it is 1)"]


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 16, 4)])
def test_latents_that_diffusers_cannot_take_are_refused(shape):
    family = SD3.of_diffusers({"_class_name": SD3.diffusers_class, **CONFIGS["SD3"]})
    with pytest.raises(ValueError, match=r"images alone|its table of positions has 7 patches"):
        family.diffusers_config(shape)
