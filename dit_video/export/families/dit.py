"""DiT as published: facebookresearch/DiT (`models.py`), and diffusers' `DiTTransformer2DModel`.

The two compute different functions of the same weights. diffusers' ladder of time frequencies ends at 1/10000 where
the published one stops a step before (`DiTConfig.time_frequency_shift`), its norm before the MLP adds 1e-5 to the
variance where the published one adds 1e-6 (`mlp_norm_epsilon`), and it keeps the embeddings of time and class in every
block. A network here is one or the other, and is compared with that one.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_B, DIT_L, DIT_S, DIT_XL, DiT, DiTConfig, Positions, published
from dit_video.export.names import LAYER, Dialect, Row, Shape, Source, Table, linear, vector
from dit_video.nn.embed import TimeEmbedding, sincos_positions
from dit_video.nn.module import Definition, define
from dit_video.tasks.denoise import Denoise

DIFFUSERS_CLASS = "DiTTransformer2DModel"

# Official names that tell sizes.
_PATCHES, _LABELS, _LAST = "x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight"
_POSITIONS = "pos_embed"

# What is the same in every DiT that diffusers computes: what its class does not read, or reads one value of.
_DIFFUSERS_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
_DIFFUSERS_MLP_RATIO = 4.0
_DIFFUSERS_EPSILON = 1e-5  # of a config that does not say


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDiT:
    """A published DiT: everything about it but its weights.

    Attributes:
        channels: of the latents.
    """

    config: DiTConfig
    channels: int
    num_classes: int

    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        condition = ClassCondition(num_classes=self.num_classes)
        return define(lambda key: DiT(self.config, self.channels, condition, dtype=dtype, rngs=nnx.Rngs(key)))

    def differences(self, task: Denoise) -> list[str]:
        """What a task would have to change to have this network, as command-line words with the reasons."""
        wanted = dataclasses.replace(self.config, remat=task.network.remat)
        lines = []
        for field in dataclasses.fields(DiTConfig):
            there, here = getattr(wanted, field.name), getattr(task.network, field.name)
            # Positions that count patches are the same function at the size that the weights are of.
            if there != here and not (field.name == "position_grid" and here is None):
                there, here = (getattr(value, "value", value) for value in (there, here))
                lines.append(f"--config.task.network.{field.name}={there} (it is {here})")
        if task.codec.vae.latent_channels != self.channels:
            lines.append(
                f"config.task.codec with latents of {self.channels} channels (it has {task.codec.vae.latent_channels})"
            )
        if not isinstance(task.condition, ClassCondition) or task.condition.num_classes != self.num_classes:
            lines.append(
                f"config.task.condition=ClassCondition(num_classes={self.num_classes}) (it is {task.condition})"
            )
        return lines


def of_task(task: Denoise) -> ClassDiT:
    """The network of a task, if it is a published DiT.

    Raises:
        ValueError: it is another network; names the first field that says so.
    """
    wanted = published(task.network)
    for name in ("positions", "norm", "qk_norm", "mlp"):
        there, here = getattr(wanted, name), getattr(task.network, name)
        if there != here:
            raise ValueError(
                f"config.task.network.{name}={getattr(here, 'value', here)}: as published it is "
                f"{getattr(there, 'value', there)}"
            )
    pt, ph, pw = task.network.patch_size
    if pt != 1 or ph != pw:
        raise ValueError(f"config.task.network.patch_size={task.network.patch_size}: published patches are squares")
    if task.network.shared_modulation:
        raise ValueError("config.task.network.shared_modulation=True: published blocks have each its own")
    if not isinstance(task.condition, ClassCondition):
        raise ValueError(f"config.task.condition={task.condition}: the published network is conditioned on a class")
    return ClassDiT(
        config=task.network, channels=task.codec.vae.latent_channels, num_classes=task.condition.num_classes
    )


def of_diffusers(config: Mapping[str, Any]) -> ClassDiT | None:
    """The network of a config.json of diffusers; None where it is of another class.

    Raises:
        ValueError: it is a DiT of a kind that nobody published; names the field.
    """
    # Before diffusers 0.29 the class was called as many others were.
    older = config.get("_class_name") == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    if config.get("_class_name") != DIFFUSERS_CLASS and not older:
        return None
    for name, value in _DIFFUSERS_FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"config.json: {name}={config[name]!r}: every published DiT has {value!r}")
    heads, channels = _count(config, "num_attention_heads", 16), _count(config, "in_channels", 4)
    patch = _count(config, "patch_size", 2)
    outputs = channels if config.get("out_channels") is None else _count(config, "out_channels", channels)
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"config.json: out_channels={outputs}: must be in_channels={channels} or twice as many")
    epsilon = config.get("norm_eps", _DIFFUSERS_EPSILON)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ValueError(f"config.json: norm_eps={epsilon!r}: must be a number between 0 and 1")
    sizes = DiTConfig(
        hidden_size=heads * _count(config, "attention_head_dim", 72),
        depth=_count(config, "num_layers", 28),
        num_heads=heads,
        mlp_ratio=_DIFFUSERS_MLP_RATIO,
        positions=Positions.SINCOS,
    )
    whole = dataclasses.replace(
        published(sizes, patch_size=patch),
        position_grid=_count(config, "sample_size", 32) // patch,
        mlp_norm_epsilon=epsilon,
        time_frequency_shift=1,
        learned_variance=outputs == 2 * channels,
    )
    return ClassDiT(config=whole, channels=channels, num_classes=_count(config, "num_embeds_ada_norm", 1000))


def _count(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {name}={value!r}: must be a positive number")
    return value


def of_official(source: Source, task: Denoise) -> ClassDiT | None:
    """The network of official weights, by their names and shapes; None where they are of something else.

    How many heads there are shapes do not tell: that is as in the published network of this width and depth, and
    else as in `task`. Weights that are those of `task` but for some tensors count as its own, so that `names.check`
    says which tensors these are.
    """
    found = _as_in(source, task) or _by_shapes(source, task.network)
    if found is None:
        return None
    config = found.config
    heads = {(size.hidden_size, size.depth): size.num_heads for size in (DIT_S, DIT_B, DIT_L, DIT_XL)}
    positions = source[_POSITIONS].shape if _POSITIONS in source else ()
    config = dataclasses.replace(
        config,
        num_heads=heads.get((config.hidden_size, config.depth), config.num_heads),
        position_grid=math.isqrt(positions[1]) if len(positions) == 3 else config.position_grid or 1,
        mlp_norm_epsilon=1e-6,
        timestep_offset=-1,
        time_frequency_shift=0,
    )
    return dataclasses.replace(found, config=config)


def _as_in(source: Source, task: Denoise) -> ClassDiT | None:
    """The network of a task, if most of its tensors are there."""
    try:
        network = of_task(task)
    except ValueError:
        return None
    expected = table(network).expected(Dialect.OFFICIAL)
    same = sum(name in source and source[name].shape == shape for name, shape in expected.items())
    return network if same > len(expected) / 2 else None


def _by_shapes(source: Source, like: DiTConfig) -> ClassDiT | None:
    """What shapes tell; what they do not is as in `like`."""
    dims = {_PATCHES: 4, _LABELS: 2, _LAST: 2}
    if any(name not in source or len(source[name].shape) != dim for name, dim in dims.items()):
        return None
    (hidden_size, channels, patch, _), (rows, _), (outputs, _) = (source[name].shape for name in dims)
    layers = {part[1] for part in (name.split(".") for name in source) if part[0] == "blocks" and len(part) > 1}
    up = source.get("blocks.0.mlp.fc1.weight")
    sizes = DiTConfig(
        hidden_size=hidden_size,
        depth=len(layers),
        num_heads=math.gcd(like.num_heads, hidden_size),
        mlp_ratio=like.mlp_ratio if up is None else up.shape[0] / hidden_size,
        positions=Positions.SINCOS,
    )
    learned = outputs == 2 * channels * patch**2
    config = dataclasses.replace(published(sizes, patch_size=patch), learned_variance=learned)
    return ClassDiT(config=config, channels=channels, num_classes=rows - 1)


def diffusers_config(network: ClassDiT, sample_size: int) -> dict[str, Any]:
    """config.json of diffusers' class for latents of `sample_size` rows and columns.

    Raises:
        ValueError: the class computes another function; names the field and the remedy.
    """
    config, where = network.config, "config.task.network"
    if config.time_frequency_shift != 1:
        raise ValueError(
            f"{where}.time_frequency_shift={config.time_frequency_shift}: diffusers computes DiT with 1 and would "
            f"give other outputs; train with --{where}.time_frequency_shift=1, from these weights with --init_from"
        )
    if config.mlp_size != int(_DIFFUSERS_MLP_RATIO * config.hidden_size):
        raise ValueError(f"{where}.mlp_ratio={config.mlp_ratio}: in diffusers it is {_DIFFUSERS_MLP_RATIO}")
    patch = config.patch_size[1]
    return {
        "_class_name": DIFFUSERS_CLASS,
        **_DIFFUSERS_FIXED,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "dropout": 0.0,
        "in_channels": network.channels,
        "norm_eps": config.mlp_norm_epsilon,
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": network.num_classes,
        "num_layers": config.depth,
        "out_channels": network.channels * (2 if config.learned_variance else 1),
        "patch_size": patch,
        "sample_size": sample_size if config.position_grid is None else config.position_grid * patch,
        "upcast_attention": False,
    }


def table(network: ClassDiT) -> Table:
    """What the parameters of a network are called in its official code and in diffusers."""
    config, D = network.config, network.config.hidden_size
    K, M, p = config.num_heads, config.mlp_size, config.patch_size[1]
    in_cells = p * p * network.channels
    out_cells = 2 * in_cells if config.learned_variance else in_cells
    embedder = f"transformer_blocks.{LAYER}.norm1.emb"  # diffusers has one in every block
    block, their_block = f"blocks.{LAYER}", f"transformer_blocks.{LAYER}"

    def alone(ours: str, inputs: Shape, outputs: Shape, official: str, diffusers: str) -> tuple[Row, ...]:
        return linear(ours, inputs, outputs, _theirs(official, diffusers), num_layers=config.depth)

    def in_blocks(ours: str, inputs: Shape, outputs: Shape, official: str, *diffusers: str) -> tuple[Row, ...]:
        names = _theirs(f"{block}.{official}", *(f"{their_block}.{name}" for name in diffusers))
        return linear(f"blocks.{ours}", inputs, outputs, names, num_layers=config.depth, stacked=True)

    rows = (
        # A convolution there: cells of a patch are ordered (row, column, channel) here.
        Row(
            ours="x_embedder.kernel",
            our_shape=(in_cells, D),
            theirs=_theirs(_PATCHES, "pos_embed.proj.weight"),
            shape=(D, network.channels, p, p),
            order=(2, 3, 1, 0),
        ),
        vector("x_embedder.bias", (D,), _theirs("x_embedder.proj.bias", "pos_embed.proj.bias")),
        *alone(
            *("t_embedder.up", (TimeEmbedding.num_frequencies,), (D,)),
            *("t_embedder.mlp.0", f"{embedder}.timestep_embedder.linear_1"),
        ),
        *alone("t_embedder.down", (D,), (D,), "t_embedder.mlp.2", f"{embedder}.timestep_embedder.linear_2"),
        Row(
            ours="y_embedder.table",
            our_shape=(network.num_classes + 1, D),
            theirs=_theirs(_LABELS, f"{embedder}.class_embedder.embedding_table.weight"),
            shape=(network.num_classes + 1, D),
            order=(0, 1),
            num_layers=config.depth,
        ),
        *in_blocks("attention.qkv", (D,), (3, K, D // K), "attn.qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
        *in_blocks("attention.out", (K, D // K), (D,), "attn.proj", "attn1.to_out.0"),
        *in_blocks("mlp.up", (D,), (M,), "mlp.fc1", "ff.net.0.proj"),
        *in_blocks("mlp.down", (M,), (D,), "mlp.fc2", "ff.net.2"),
        *in_blocks("modulation.projection", (D,), (6, D), "adaLN_modulation.1", "norm1.linear"),
        *alone("final_modulation.projection", (D,), (2, D), "final_layer.adaLN_modulation.1", "proj_out_1"),
        *alone("final_layer", (D,), (out_cells,), "final_layer.linear", "proj_out_2"),
    )
    grid = config.position_grid or 1
    positions = sincos_positions((1, grid, grid), (1, 1, 1), D)[None]
    return Table(rows=rows, constants={Dialect.OFFICIAL: {_POSITIONS: positions}})


def _theirs(official: str, *diffusers: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.OFFICIAL: (official,), Dialect.DIFFUSERS: diffusers}
