"""How far this package and diffusers are apart, family by family: the table of docs/models.md.

    python tools/parity.py

For each kind of published network: diffusers' class with random weights, read here, and random weights of ours, written
for it; both networks are then called with the same input in float32, and what comes out of layers and at the end is
compared. Networks are small, so that it takes a minute or two; needs torch and diffusers (the extra `peers`).
"""

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import torch

from dit_video.export import names
from dit_video.export.diffusers_folder import relative_error
from dit_video.export.family import Family, Shape
from dit_video.export.names import Dialect, Stored
from dit_video.export.recognise import DENOISERS, VAES
from dit_video.progress import counted

DOCUMENT = Path(__file__).parent.parent / "docs/models.md"
BEGIN, END = "<!-- parity -->\n", "<!-- end of parity -->"
HEADER = "| network | class of diffusers | from diffusers | to diffusers | compared |\n|---|---|---|---|---|\n"

DIT = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 4, "sample_size": 8}
SD3 = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 4,
    "sample_size": 16,
    "joint_attention_dim": 20,
    "caption_projection_dim": 48,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 24,
}
WAN = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 4, "text_dim": 20, "ffn_dim": 96}
BLOCKS = 3
KL = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * BLOCKS,
    "up_block_types": ("UpDecoderBlock2D",) * BLOCKS,
    "norm_num_groups": 4,
    "layers_per_block": 2,
}
COG = KL | {
    "down_block_types": ("CogVideoXDownBlock3D",) * BLOCKS,
    "up_block_types": ("CogVideoXUpBlock3D",) * BLOCKS,
}

# (name, class, its configuration, (t, h, w) of latents for denoisers and (T, H, W) of pixels for VAEs)
NETWORKS: tuple[tuple[str, str, dict[str, Any], Shape], ...] = (
    ("DiT", "DiTTransformer2DModel", DIT | {"in_channels": 4, "out_channels": 8}, (1, 8, 8)),
    (
        "Latte, text to video",
        "LatteTransformer3DModel",
        DIT
        | {"in_channels": 4, "out_channels": 8, "patch_size": 2, "cross_attention_dim": 48, "caption_channels": 20}
        | {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm_single"}
        | {"norm_elementwise_affine": False, "norm_eps": 1e-6, "video_length": 5, "num_embeds_ada_norm": 1000},
        (5, 8, 8),
    ),
    ("SD3", "SD3Transformer2DModel", SD3, (1, 10, 14)),
    (
        "SD3.5-medium",
        "SD3Transformer2DModel",
        SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        (1, 10, 14),
    ),
    ("SD3.5-large", "SD3Transformer2DModel", SD3 | {"qk_norm": "rms_norm"}, (1, 10, 14)),
    ("Wan, text to video", "WanTransformer3DModel", WAN, (3, 6, 10)),
    (
        "Wan 2.1, image to video",
        "WanTransformer3DModel",
        WAN | {"in_channels": 36, "image_dim": 24, "added_kv_proj_dim": 48},
        (3, 6, 10),
    ),
    ("Wan 2.2, image to video", "WanTransformer3DModel", WAN | {"in_channels": 36}, (3, 6, 10)),
    ("Wan 2.2, 5B", "WanTransformer3DModel", WAN | {"in_channels": 48, "out_channels": 48}, (3, 6, 10)),
    ("VAE of SD and SDXL", "AutoencoderKL", KL, (1, 24, 40)),
    (
        "VAE of SD3 and Flux",
        "AutoencoderKL",
        KL
        | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305}
        | {"shift_factor": 0.0609},
        (1, 24, 40),
    ),
    ("VAE of Wan 2.1", "AutoencoderKLWan", {"base_dim": 8, "num_res_blocks": 1}, (9, 16, 24)),
    ("VAE of CogVideoX", "AutoencoderKLCogVideoX", COG, (9, 16, 24)),
)


def random_weights(theirs: Any, seed: int) -> dict[str, np.ndarray]:
    """Of diffusers' network: random, since some that torch starts with would hide where they are; positions kept."""
    rng, found = np.random.default_rng(seed), {}
    for name, x in theirs.state_dict().items():
        noise = rng.standard_normal(tuple(x.shape), np.float32) / np.float32(np.sqrt(max(1, np.prod(x.shape[1:]))))
        found[name] = x.numpy() if "pos_embed.pos_embed" in name else noise
    first = "transformer_blocks.0."
    # The embeddings of time and class, which published DiTs have the same in every block.
    return {n: found[first + n.split(".", 2)[2]] if ".norm1.emb." in n else x for n, x in found.items()}


def family_of(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Family:
    source = stored(weights)
    for family in (*DENOISERS, *VAES):
        found = family.of_diffusers(config)
        if found is not None:
            return found.informed_by(source)
    raise ValueError(f"{config['_class_name']}: of no family")


def stored(weights: Mapping[str, np.ndarray]) -> names.Source:
    return {name: Stored(x.shape, x.dtype, lambda x=x: x) for name, x in weights.items()}


def errors(family: Family, params: Mapping[str, np.ndarray], theirs: Any, shape: Shape) -> list[float]:
    """Of every layer and output."""
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        return [relative_error(pair) for pair in family.pairs(params, theirs, shape)]


def compare(kind: str, config: Mapping[str, Any], shape: Shape) -> tuple[float, float, int]:
    """The worst errors from and to diffusers, and how many layers and outputs each is of."""
    theirs = getattr(diffusers, kind)(**config).eval()
    weights = random_weights(theirs, 0)
    family = family_of({"_class_name": kind} | dict(theirs.config), weights)
    table = family.table()

    theirs.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
    names.check(table, Dialect.DIFFUSERS, stored(weights))
    params = dict(names.read(table, Dialect.DIFFUSERS, stored(weights)))
    inwards = errors(family, params, theirs, shape)

    rng = np.random.default_rng(1)
    mine = {n: (p + 0.02 * rng.standard_normal(p.shape)).astype(np.float32) for n, p in params.items()}
    written = {n: torch.tensor(np.ascontiguousarray(x)) for n, x in names.write(table, Dialect.DIFFUSERS, mine)}
    theirs.load_state_dict(written)
    outwards = errors(family, mine, theirs, shape)
    return max(inwards), max(outwards), len(inwards)


def rows() -> Iterator[str]:
    for name, kind, config, shape in counted(NETWORKS, "networks", total=len(NETWORKS), unit="networks"):
        inwards, outwards, number = compare(kind, config, shape)
        yield f"| {name} | `{kind}` | {inwards:.1e} | {outwards:.1e} | {number} |\n"


def main() -> None:
    table = HEADER + "".join(rows())
    versions = ", ".join(f"{package} {version(package)}" for package in ("jax", "torch", "diffusers"))
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, there, after = rest.partition(END)
    if not there:
        raise ValueError(f"{DOCUMENT}: has no {BEGIN.strip()} ... {END}")
    note = f"\n{versions}, {platform.machine()}, float32.\n\n"
    DOCUMENT.write_text(f"{before}{BEGIN}{note}{table}\n{END}{after}", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
