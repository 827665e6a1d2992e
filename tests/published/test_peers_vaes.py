"""The published VAEs: the same weights, the same clip, the same moments and pixels as in diffusers, in and out."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch

from dit_video.published.autoencoder_kl import AutoencoderKLFamily
from dit_video.published.cogvideox_vae import CogVideoXVAEFamily
from dit_video.published.vae_family import Statistics, VAEFamily
from dit_video.published.wan_vae import WanVAEFamily
from dit_video.tasks.autoencode import Autoencode
from dit_video.vae.autoencoder_kl import SD3_VAE, SD_VAE
from dit_video.vae.codec import LatentCodec, in_tiles
from dit_video.vae.cogvideox_vae import COGVIDEOX_VAE
from dit_video.vae.vae import VAE
from dit_video.vae.wan_vae import WAN_2_2_VAE, WAN_VAE
from dit_video.weights import names
from dit_video.weights.names import Dialect, NamesMismatch, StoredTensor
from dit_video.weights.source import open_published


@dataclasses.dataclass(frozen=True)
class Case:
    """A small network of a family, and the clips (T, H, W) that both are called with."""

    family: type[VAEFamily]
    config: Mapping[str, Any]
    shapes: tuple[tuple[int, int, int], ...]


def pictures(*widths: int, **fields: Any) -> dict[str, Any]:
    levels = len(widths)
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        **fields,
    }


def cogvideox(*widths: int, **fields: Any) -> dict[str, Any]:
    levels = len(widths)
    return {
        "block_out_channels": widths,
        "down_block_types": ("CogVideoXDownBlock3D",) * levels,
        "up_block_types": ("CogVideoXUpBlock3D",) * levels,
        **fields,
    }


WAN_LATENTS = {"z_dim": 3, "latents_mean": (0.1, -0.2, 0.3), "latents_std": (1.5, 2.0, 0.7)}
CASES = {
    "SD": Case(
        AutoencoderKLFamily,
        pictures(8, 12, 12, layers_per_block=1, norm_num_groups=4, latent_channels=3, scaling_factor=0.13025),
        ((3, 12, 20),),
    ),
    "SD 3": Case(
        AutoencoderKLFamily,
        pictures(6, 9, norm_num_groups=3, layers_per_block=2, latent_channels=5, use_quant_conv=False)
        | {"use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        ((2, 10, 6),),
    ),
    "no attention": Case(
        AutoencoderKLFamily,
        pictures(4, norm_num_groups=2, layers_per_block=1, mid_block_add_attention=False)
        | {"latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 3.0, 4.0), "scaling_factor": 0.5},
        ((1, 5, 3),),
    ),
    "Wan 2.1": Case(
        WanVAEFamily,
        {"base_dim": 4, "dim_mult": [1, 2, 3], "num_res_blocks": 1, "temperal_downsample": [True, True], **WAN_LATENTS},
        ((1, 12, 20), (13, 8, 4)),
    ),
    "Wan 2.2": Case(
        WanVAEFamily,
        {"base_dim": 4, "decoder_base_dim": 6, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "patch_size": 2}
        | {"temperal_downsample": [False, True], "is_residual": True, "in_channels": 12, "out_channels": 12}
        | {"scale_factor_spatial": 8, "scale_factor_temporal": 2, **WAN_LATENTS},
        ((5, 24, 8),),
    ),
    "CogVideoX": Case(
        CogVideoXVAEFamily,
        cogvideox(4, 8, 8, layers_per_block=1, norm_num_groups=2, latent_channels=3),
        ((1, 12, 8), (17, 4, 8)),
    ),
    "another CogVideoX": Case(
        CogVideoXVAEFamily,
        cogvideox(4, 4, 8, layers_per_block=2, norm_num_groups=4, latent_channels=2, scaling_factor=0.7),
        ((9, 8, 12),),
    ),
}
each = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if "CogVideoX" in name else [])
        for name, case in CASES.items()
    ],
)


def their_vae(case: Case) -> Any:
    """With every parameter random, at the scale of its fan-in: norms and biases as they start would hide mistakes."""
    torch.manual_seed(0)
    network = getattr(diffusers, case.family.diffusers_class)(**case.config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_().mul_(max(1, parameter[0].numel()) ** -0.5)
    return network


def family_of(network: Any, case: Case) -> VAEFamily:
    family = case.family.of_diffusers(dict(network.config) | {"_class_name": case.family.diffusers_class})
    assert family is not None
    return family


def stored(tensors: Mapping[str, torch.Tensor]) -> names.Source:
    return {name: StoredTensor(tuple(x.shape), x.numpy().dtype, lambda x=x: x.numpy()) for name, x in tensors.items()}


def read_all(family: VAEFamily, source: names.Source) -> dict[str, np.ndarray]:
    names.check(family.table(), Dialect.DIFFUSERS, source)
    return dict(names.read(family.table(), Dialect.DIFFUSERS, source))


def ours(family: VAEFamily, network: Any) -> VAE:
    """With the weights of theirs."""
    return family.define().bind(jax.device_put(read_all(family, stored(network.state_dict()))))


def errors(
    family: VAEFamily, params: Mapping[str, np.ndarray], network: Any, shape: tuple[int, int, int]
) -> Iterator[tuple[str, float]]:
    """Of every layer and output: largest difference over largest value."""
    for name, actual, expected in family.pairs(params, network, shape):
        assert actual.shape == expected.shape, name
        yield name, float(np.abs(actual - expected).max() / np.abs(expected).max())


@each
def test_weights_of_diffusers_compute_the_same_here(case, tmp_path):
    network = their_vae(case)
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    with open_published(tmp_path) as published:
        family = case.family.of_diffusers(published.config)
        params = read_all(family, published.source)
    for shape in case.shapes:
        compared = dict(errors(family, params, network, shape))
        assert compared.keys() > {"encoder.conv", "encoder.levels.0", "decoder.middle", "moments", "pixels"}
        assert max(compared.values()) < 1e-4, compared
    back = dict(names.write(family.table(), Dialect.DIFFUSERS, params))
    weights = network.state_dict()
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value.numpy(), strict=True)


@each
def test_weights_from_here_compute_the_same_in_diffusers(case):
    family = family_of(their_vae(case), case)
    rng = np.random.default_rng(1)
    params = {
        name: rng.standard_normal(shape.shape, np.float32) / np.sqrt(max(1, np.prod(shape.shape[:-1])))
        for name, shape in family.define().shapes.items()
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}
    config = family.diffusers_config(case.shapes[0])
    assert case.family.of_diffusers(config) == family
    network = getattr(diffusers, config.pop("_class_name"))(**config).eval().requires_grad_(False)
    written = names.write(family.table(), Dialect.DIFFUSERS, params)
    network.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in written})
    assert max(dict(errors(family, params, network, case.shapes[0])).values()) < 1e-4


PUBLISHED = {
    "SD": (AutoencoderKLFamily, SD_VAE, pictures(128, 256, 512, 512, layers_per_block=2)),
    "SD 3": (
        AutoencoderKLFamily,
        SD3_VAE,
        pictures(128, 256, 512, 512, layers_per_block=2, latent_channels=16, use_quant_conv=False)
        | {"use_post_quant_conv": False},
    ),
    "Wan 2.1": (WanVAEFamily, WAN_VAE, {}),
    "Wan 2.2": (
        WanVAEFamily,
        WAN_2_2_VAE,
        {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2}
        | {"in_channels": 12, "out_channels": 12, "latents_mean": (0.0,) * 48, "latents_std": (1.0,) * 48},
    ),
    "CogVideoX": (CogVideoXVAEFamily, COGVIDEOX_VAE, {}),
}


@pytest.mark.parametrize(("family", "config", "theirs"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_ones_have_the_tensors_that_diffusers_gives_them(family, config, theirs):
    """Names and shapes of all, nothing allocated."""
    with torch.device("meta"):
        network = getattr(diffusers, family.diffusers_class)(**theirs)
    recognised = family.of_diffusers(dict(network.config) | {"_class_name": family.diffusers_class})
    assert recognised.config == config
    expected = recognised.table().expected(Dialect.DIFFUSERS)
    assert expected == {name: tuple(value.shape) for name, value in network.state_dict().items()}


ONE_OF_EACH = ("SD", "Wan 2.1", "CogVideoX")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_tensor_that_is_not_as_it_should_be_is_named(name):
    network = their_vae(CASES[name])
    family, weights = family_of(network, CASES[name]), network.state_dict()
    expected = "decoder.mid_block.resnets.0.conv2" + (".conv" if name == "CogVideoX" else "") + ".weight"
    rest = {key: value for key, value in weights.items() if key != expected}
    changes = {
        f"missing {expected}": rest,
        f"surplus {expected}.1": weights | {f"{expected}.1": weights[expected]},
        f"{expected} is ": weights | {expected: weights[expected][1:]},
        f"{expected} is float64; float32 has not all of its digits": weights | {expected: weights[expected].double()},
    }
    for message, changed in changes.items():
        with pytest.raises(NamesMismatch, match=message):
            read_all(family, stored(changed))


def test_older_names_are_read():
    """Files of Stable Diffusion's VAE are from when diffusers called attention so."""
    network = their_vae(CASES["SD"])
    family, weights = family_of(network, CASES["SD"]), network.state_dict()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before = {}
    for name, value in weights.items():
        for now, then in older.items():
            name = name.replace(f".{now}.", f".{then}.")
        before[name] = value
    assert before.keys() != weights.keys()
    actual, expected = read_all(family, stored(before)), read_all(family, stored(weights))
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
    both = weights | {name: value for name, value in before.items() if "query" in name}
    with pytest.raises(NamesMismatch, match=r"surplus encoder\.mid_block\.attentions\.0\.query\.weight"):
        read_all(family, stored(both))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("SD", {"act_fn": "relu"}, "act_fn='relu'"),
        ("SD", {"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types="),
        ("SD", {"use_quant_conv": False}, "use_quant_conv and use_post_quant_conv differ"),
        ("SD", {"block_out_channels": []}, r"block_out_channels=\[\]: must be a list"),
        ("SD", {"block_out_channels": [6, 12, 12]}, "widths=.6, 12, 12.: must be multiples of num_groups=4"),
        ("SD", {"mid_block_add_attention": "yes"}, "mid_block_add_attention='yes': must be true or false"),
        ("SD", {"scaling_factor": "large"}, "scaling_factor='large': must be a number"),
        ("Wan 2.1", {"attn_scales": [1.0]}, "attn_scales="),
        ("Wan 2.1", {"in_channels": 12}, "in_channels=12"),
        ("Wan 2.1", {"temperal_downsample": [True]}, "halve_frames=.True,.: give one for each but the last of the 3"),
        ("Wan 2.1", {"temperal_downsample": 2}, "temperal_downsample=2: must be a list"),
        ("Wan 2.1", {"latents_std": [1.0]}, "latents_std=.1.0.: must be 3 numbers, one for each channel"),
        ("CogVideoX", {"temporal_compression_ratio": 8}, "temporal_compression_ratio=8"),
        ("CogVideoX", {"use_quant_conv": True}, "use_quant_conv=True"),
        ("CogVideoX", {"norm_num_groups": 0}, "norm_num_groups=0: must be a positive number"),
    ],
)
def test_a_config_that_nobody_published_is_an_error_that_names_the_field(name, change, message):
    case = CASES[name]
    config = {"_class_name": case.family.diffusers_class} | dict(case.config) | change
    with pytest.raises(ValueError, match=message):
        case.family.of_diffusers(config)
    assert case.family.of_diffusers(config | {"_class_name": "AutoencoderDC"}) is None


def test_clips_that_diffusers_would_cut_short_are_refused():
    family = family_of(their_vae(CASES["Wan 2.2"]), CASES["Wan 2.2"])
    assert family.config.latent_shape((3, 8, 8)) == (2, 1, 1)
    with pytest.raises(ValueError, match=r"clips of 3 frames, 2 to a latent frame: AutoencoderKLWan takes 1 \+ 4k"):
        family.diffusers_config((3, 8, 8))


@pytest.mark.parametrize(
    ("config", "z", "whitened"),
    [
        # StableDiffusionPipeline: z * scaling_factor. SD3's: (z - shift_factor) * scaling_factor.
        ({}, (1.0, 2.0), (0.18215, 0.3643)),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, (1.0, 2.0), (1.43729255, 2.96779255)),
        # StableDiffusionXLPipeline with means: (z - latents_mean) * scaling_factor / latents_std.
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 0.0], "latents_std": [2.0, 4.0]},
            (2.0, 2.0),
            (0.25, 0.25),
        ),
    ],
)
def test_latents_are_whitened_as_pipelines_scale_them(config, z, whitened):
    statistics = Statistics.of_diffusers(config, 2, scaling_factor=0.18215)
    np.testing.assert_allclose((np.asarray(z) - statistics.mean) / statistics.std, whitened, rtol=1e-6)
    again = statistics.diffusers_config()
    assert Statistics.of_diffusers(again, 2) == statistics
    if not config.get("latents_mean"):
        assert again["scaling_factor"] == config.get("scaling_factor", 0.18215)
        assert again["shift_factor"] == config.get("shift_factor")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_codec_and_its_task_are_of_the_family_that_they_came_from(name):
    case = CASES[name]
    network = their_vae(case)
    family = family_of(network, case)
    task = Autoencode(vae=family.config)
    assert family.differences(task) == []
    assert case.family.of_task(task).config == family.config
    other = dataclasses.replace(family.config, num_blocks=5)
    assert family.differences(Autoencode(vae=other)) == [
        f"--config.task.vae.num_blocks={family.config.num_blocks} (it is 5)"
    ]
    vae = ours(family, network)
    codec = LatentCodec(vae, *map(np.asarray, family.statistics))
    assert case.family.of_codec(codec) == family
    strangers = [CASES[n].family for n in ONE_OF_EACH if n != name]
    assert all(stranger.of_task(task) is stranger.of_codec(codec) is None for stranger in strangers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_tiles_are_closer_to_the_whole_than_those_of_diffusers(name):
    """Of the same size and overlap. Both are approximate, by norms and attention over rows and columns, and cut
    elsewhere: theirs begins at multiples of three quarters of a tile and may end with a sliver, ours are spread evenly.
    """
    network = their_vae(CASES[name])
    family = family_of(network, CASES[name])
    cell, tile = family.config.compression[1], 8
    rng, size = np.random.default_rng(0), 16 * cell
    rows, columns = np.meshgrid(*(np.linspace(-1.0, 1.0, size),) * 2)
    picture = np.stack([np.sin(3 * rows), np.cos(2 * columns), rows * columns], -1)[None, None]
    picture = (0.8 * picture + 0.1 * rng.standard_normal(picture.shape)).astype(np.float32)
    moments = family.their_moments(network, picture)
    z = moments[..., : moments.shape[-1] // 2]
    pixels = family.their_pixels(network, z)
    match name:
        case "SD":
            network.tile_sample_min_size, network.tile_latent_min_size = tile * cell, tile
            network.enable_tiling()
        case "Wan 2.1":
            network.spatial_compression_ratio = cell
            network.enable_tiling(tile * cell, tile * cell, tile * cell * 3 // 4, tile * cell * 3 // 4)
        case "CogVideoX":
            network.enable_tiling(tile * cell, tile * cell, 0.25, 0.25)
    vae = ours(family, network)
    encode = functools.partial(in_tiles, vae.encode, tile=tile, cells_in=(cell, cell), cells_out=(1, 1))
    decode = functools.partial(in_tiles, vae.decode, tile=tile, cells_in=(1, 1), cells_out=(cell, cell))

    def error(actual: Any, expected: np.ndarray) -> float:
        actual, expected = np.clip(actual, -1.0, 1.0), np.clip(expected, -1.0, 1.0)
        return float(np.sqrt(np.mean(np.square(actual - expected)) / np.mean(np.square(expected))))

    assert 0 < error(jax.jit(encode)(picture), moments) < error(family.their_moments(network, picture), moments) < 0.5
    assert 0 < error(jax.jit(decode)(z), pixels) < error(family.their_pixels(network, z), pixels) < 0.5
