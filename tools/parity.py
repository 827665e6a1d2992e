"""Parity table: largest differences between this package and diffusers, transformers and torch, for docs/models.md.

    python tools/parity.py

For each kind of published network: the class of the other library with random weights, read here, and random weights of
ours, written for it; both networks are then called with the same input in float32, and what comes out of layers and at
the end is compared. Networks of this package alone go one way, to the torch module of `export --format torch`. All are
small, so that it takes a minute or two; needs torch, diffusers and transformers (the extra `peers`).
"""

import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from jaxtyping import Array

from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.encoders import clip_image_names, clip_text_names, t5_names
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.clip_text import CLIPTextModel
from dit_video.encoders.t5 import T5Encoder
from dit_video.export.diffusers_folder import relative_error
from dit_video.export.torch.folder import write_torch
from dit_video.export.weights import Content, Denoiser, Origin
from dit_video.nn.module import define
from dit_video.progress import counted
from dit_video.published.family import Family, Pair, Shape
from dit_video.published.recognise import DENOISERS, VAES
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.vae import VAEConfig
from dit_video.vae.video_vae import VideoVAEConfig
from dit_video.vae.wan_vae import WanVAEConfig
from dit_video.weights import names
from dit_video.weights.names import Dialect, StoredTensor

DOCUMENT = Path(__file__).parent.parent / "docs/models.md"
BEGIN, END = "<!-- parity -->\n", "<!-- end of parity -->"
HEADER = "| network | their class | from theirs | to theirs | compared |\n|---|---|---|---|---|\n"

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
    (
        "VAE of Wan 2.2, 5B",
        "AutoencoderKLWan",
        {"base_dim": 8, "decoder_base_dim": 12, "num_res_blocks": 1, "z_dim": 48, "patch_size": 2, "is_residual": True}
        | {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
        | {"latents_mean": [0.1] * 48, "latents_std": [0.9] * 48},
        (9, 32, 48),
    ),
    ("VAE of CogVideoX", "AutoencoderKLCogVideoX", COG, (9, 16, 24)),
)


# Of encoders: captions or pictures that go in at once, tokens of a caption, and words that there are.
BATCH, LENGTH, VOCABULARY = 3, 15, 50
T5 = {"vocab_size": VOCABULARY, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 3, "num_heads": 3}
CLIP = {"hidden_size": 24, "intermediate_size": 28, "num_attention_heads": 3, "num_hidden_layers": 4}
OF_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 19, "projection_dim": 14, "bos_token_id": 1}
States = Mapping[str, Any]


class Encoder(NamedTuple):
    """A text or image encoder of transformers, and what is compared of it.

    Attributes:
        family: the module of its names.
        build: our network of its configuration.
        prefix: of names in files that the names of the module itself lack.
        inputs: of both, as ours takes them.
        ours, theirs: the states that come out, by name.
    """

    name: str
    network: Any
    family: ModuleType
    prefix: str
    build: Callable[[Any, nnx.Rngs], nnx.Module]
    inputs: np.ndarray
    ours: Callable[[Any, Array], States]
    theirs: Callable[[Any, torch.Tensor], States]


def encoders() -> Iterator[Encoder]:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCABULARY - 1, (BATCH, LENGTH))
    ids[:, -1] = VOCABULARY - 1  # CLIP's token for the end of a caption
    gated = {"feed_forward_proj": "gated-gelu"}
    t5_kinds = {
        "T5": transformers.T5EncoderModel(transformers.T5Config(**T5, **gated)),
        "UMT5": transformers.UMT5EncoderModel(transformers.UMT5Config(**T5, **gated)),
    }
    for name, network in t5_kinds.items():
        yield Encoder(
            name,
            network,
            t5_names,
            "",
            lambda config, rngs: T5Encoder(config, dtype=jnp.float32, rngs=rngs),
            ids,
            lambda network, ids: {"last": network(ids, jnp.full(BATCH, LENGTH))},
            lambda network, ids: {"last": network(ids).last_hidden_state},
        )
    end = {"eos_token_id": VOCABULARY - 1, "pad_token_id": 0}
    clip_kinds = {
        "CLIP-L, text": ("quick_gelu", "CLIPTextModel"),
        "CLIP-G, text": ("gelu", "CLIPTextModelWithProjection"),
    }
    for name, (activation, kind) in clip_kinds.items():
        config = transformers.CLIPTextConfig(**CLIP, **OF_TEXT, **end, hidden_act=activation)
        yield Encoder(
            name,
            getattr(transformers, kind)(config),
            clip_text_names,
            "" if kind.endswith("Projection") else "text_model.",
            lambda config, rngs: CLIPTextModel(config, dtype=jnp.float32, rngs=rngs),
            ids,
            lambda network, ids: network(ids)._asdict(),
            _of_clip_text,
        )
    vision = transformers.CLIPVisionConfig(**CLIP, image_size=15, patch_size=3, hidden_act="gelu")
    yield Encoder(
        "CLIP, vision",
        transformers.CLIPVisionModel(vision),
        clip_image_names,
        "vision_model.",
        lambda config, rngs: CLIPVisionModel(config, dtype=jnp.float32, rngs=rngs),
        rng.standard_normal((BATCH, 15, 15, 3), np.float32),
        lambda network, pixels: {"penultimate": network.penultimate(pixels)},
        lambda network, pixels: {
            "penultimate": network(pixels.movedim(-1, 1), output_hidden_states=True).hidden_states[-2]
        },
    )


def _of_clip_text(network: Any, ids: torch.Tensor) -> States:
    output = network(ids, output_hidden_states=True)
    # As pipelines take it: the projection where there is one.
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return {"last": output.last_hidden_state, "penultimate": output.hidden_states[-2], "pooled": pooled}


# Networks of this package alone, (T, H, W) of clips, and the VAE, which is compared where there is no network.
OURS = {
    "DiT of this package": (DiTConfig(hidden_size=48, depth=4, num_heads=4), (5, 32, 48), WanVAEConfig(channels=8)),
    "video VAE of this package": (None, (9, 32, 48), VideoVAEConfig(channels=8)),
}


def random_weights(theirs: Any, seed: int) -> dict[str, np.ndarray]:
    """Of another library's network: random, since some that torch starts with would hide where they are.

    Positions are kept.
    """
    rng, weights = np.random.default_rng(seed), {}
    for name, x in theirs.state_dict().items():
        noise = rng.standard_normal(tuple(x.shape), np.float32) / np.float32(np.sqrt(max(1, np.prod(x.shape[1:]))))
        weights[name] = x.numpy() if "pos_embed.pos_embed" in name else noise
    first = "transformer_blocks.0."
    # The embeddings of time and class, which published DiTs have the same in every block.
    return {n: weights[first + n.split(".", 2)[2]] if ".norm1.emb." in n else x for n, x in weights.items()}


def family_of(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Family:
    source = stored(weights)
    for family in (*DENOISERS, *VAES):
        recognised = family.of_diffusers(config)
        if recognised is not None:
            return recognised.informed_by(source)
    raise ValueError(f"{config['_class_name']}: of no family")


def stored(weights: Mapping[str, np.ndarray]) -> names.Source:
    return {name: StoredTensor(x.shape, x.dtype, lambda x=x: x) for name, x in weights.items()}


Params = Mapping[str, np.ndarray]


def compare(
    theirs: Any,
    table: names.Table,
    dialect: Dialect,
    source: names.Source,
    pairs: Callable[[Params], Iterator[Pair]],
    load: Callable[[dict[str, torch.Tensor]], None],
) -> tuple[float, float, int]:
    """The worst errors from and to another library, and how many layers and outputs each is of.

    Args:
        source: the tensors that `theirs` has.
        pairs: calls both networks, ours with these parameters.
        load: gives `theirs` other tensors.
    """
    names.check(table, dialect, source)
    params = dict(names.read(table, dialect, source))

    def errors(params: Params) -> list[float]:
        with torch.no_grad(), jax.default_matmul_precision("highest"):
            return [relative_error(pair) for pair in pairs(params)]

    inwards = errors(params)
    rng = np.random.default_rng(1)
    mine = {n: (p + 0.02 * rng.standard_normal(p.shape)).astype(np.float32) for n, p in params.items()}
    load({n: torch.tensor(np.ascontiguousarray(x)) for n, x in names.write(table, dialect, mine)})
    return max(inwards), max(errors(mine)), len(inwards)


def compare_diffusers(kind: str, config: Mapping[str, Any], shape: Shape) -> tuple[float, float, int]:
    theirs = getattr(diffusers, kind)(**config).eval()
    weights = random_weights(theirs, 0)
    theirs.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
    family = family_of({"_class_name": kind} | dict(theirs.config), weights)

    def pairs(params: Params) -> Iterator[Pair]:
        return family.pairs(params, theirs, shape)

    return compare(theirs, family.table(), Dialect.DIFFUSERS, stored(weights), pairs, theirs.load_state_dict)


def compare_encoder(encoder: Encoder) -> tuple[float, float, int]:
    theirs, family = encoder.network.eval(), encoder.family
    weights = random_weights(theirs, 0)
    weights = {name: x for name, x in weights.items() if name != "encoder.embed_tokens.weight"}  # a table's other name
    theirs.load_state_dict({name: torch.tensor(x) for name, x in weights.items()}, strict=False)
    config = family.of_transformers(theirs.config.to_dict() | {"architectures": [type(theirs).__name__]})
    definition = define(lambda key: encoder.build(config, nnx.Rngs(key)))
    call = jax.jit(lambda params, inputs: encoder.ours(definition.bind(params), inputs))

    def pairs(params: Params) -> Iterator[Pair]:
        actual = call(dict(params), jnp.asarray(encoder.inputs))
        expected = encoder.theirs(theirs, torch.from_numpy(encoder.inputs))
        for name, state in expected.items():
            yield Pair(name, np.asarray(actual[name]), state.numpy())

    def load(tensors: dict[str, torch.Tensor]) -> None:
        named = {n.removeprefix(encoder.prefix): x for n, x in tensors.items()}
        # What is not computed with stays as it was.
        if surplus := theirs.load_state_dict(named, strict=False).unexpected_keys:
            raise ValueError(f"{encoder.name}: {type(theirs).__name__} has no {surplus[0]}")

    return compare(theirs, family.table(config), Dialect.TRANSFORMERS, family.tensors(stored(weights)), pairs, load)


def compare_torch(network: DiTConfig | None, clip: Shape, vae: VAEConfig) -> tuple[str, float, int]:
    """The torch class that is written, the worst error of it, and how many layers and outputs that is of."""
    rng = np.random.default_rng(0)

    def trained(build: Callable[..., nnx.Module]) -> Any:
        definition = define(build)
        return definition.bind(
            {n: jnp.asarray(0.1 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
        )

    codec = LatentCodec(
        trained(lambda key: vae.build(rngs=nnx.Rngs(key))),
        mean=np.zeros(vae.latent_channels),
        std=np.ones(vae.latent_channels),
    )
    denoiser, condition = None, ClassCondition(num_classes=10)
    if network is not None:
        task = Denoise(network=network, codec=TrainedCodec(vae=vae, run="vae"), condition=condition)
        denoiser = Denoiser(task, trained(task.init))
    origin = Origin(run="parity", step=0, ema=False, fingerprint="", task={})
    with tempfile.TemporaryDirectory() as folder:
        parity = write_torch(Content(denoiser, codec, clip, origin), Path(folder))
    assert parity.error is not None, "`compare_torch` runs where torch is installed, and then an error is computed"
    return "model.DiT" if network is not None else "vae.VideoVAE", parity.error, parity.num_compared


def rows() -> Iterator[str]:
    for name, kind, config, shape in counted(NETWORKS, "networks", total=len(NETWORKS), unit="networks"):
        yield _row(name, kind, *compare_diffusers(kind, config, shape))
    for encoder in encoders():
        yield _row(encoder.name, type(encoder.network).__name__, *compare_encoder(encoder))
    for name, sizes in OURS.items():
        kind, outwards, number = compare_torch(*sizes)
        yield _row(name, kind, None, outwards, number)


def _row(name: str, kind: str, inwards: float | None, outwards: float, number: int) -> str:
    from_theirs = "" if inwards is None else f"{inwards:.1e}"
    return f"| {name} | `{kind}` | {from_theirs} | {outwards:.1e} | {number} |\n"


def main() -> None:
    table = HEADER + "".join(rows())
    versions = ", ".join(f"{package} {version(package)}" for package in ("jax", "torch", "diffusers", "transformers"))
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
