"""DiT as published: facebookresearch/DiT (`models.py`), and diffusers' `DiTTransformer2DModel`.

The two compute different functions of the same weights. The frequencies of diffusers' timestep embedding end at
1/10000 where those of the official code stop a step before (`PublishedDiTConfig.time_frequency_shift`), its norm before
the MLP adds 1e-5 to the variance where the official one adds 1e-6 (`mlp_norm_epsilon`), and it keeps the embedders of
timestep and class in every block: copies in published weights, others after training there (`block_embedders`). A
network here is one or the other, and is compared with that one.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dit_video.diffusion.objective import Gaussian, UniformLevels
from dit_video.diffusion.path import DiscreteBetas
from dit_video.diffusion.prediction import Epsilon
from dit_video.diffusion.variance import LearnedVariance
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_B, DIT_L, DIT_S, DIT_XL, AnyDiTConfig, PublishedDiTConfig
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.nn.positions import sincos_positions
from dit_video.published.family import DenoiserFamily, Pair, listening
from dit_video.published.family import Shape as LatentShape
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import Task
from dit_video.weights.config_json import check_fixed, count_of, epsilon_of
from dit_video.weights.names import LAYER, Dialect, Row, Shape, Source, Table, copies_differ, linear, vector

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
_TIMESTEPS = (0, 1, 250, 500, 999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDiT(DenoiserFamily):
    """Published class-conditional DiT."""

    diffusers_class: ClassVar[str] = "DiTTransformer2DModel"

    config: PublishedDiTConfig
    condition: ClassCondition

    @property
    def num_classes(self) -> int:
        return self.condition.num_classes

    def objective(self) -> Gaussian:
        variance = LearnedVariance() if self.config.learned_variance else None
        return Gaussian(path=DiscreteBetas(), prediction=Epsilon(), times=UniformLevels(), variance=variance)

    def usual_latents(self, config: Mapping[str, Any]) -> LatentShape:
        """Its positions say so where a config.json does not."""
        size = (self.config.position_grid or 32) * self.config.patch_size[1]
        return 1, size, size

    def differences(self, task: Task) -> list[str]:
        # Positions that count patches are the same function at the size that the weights are of.
        network = task.network if isinstance(task, Denoise) else None
        if isinstance(network, PublishedDiTConfig) and network.position_grid is None:
            config = dataclasses.replace(self.config, position_grid=None)
            return super(ClassDiT, dataclasses.replace(self, config=config)).differences(task)
        return super().differences(task)

    @classmethod
    def of_task(cls, task: Task) -> "ClassDiT | None":
        if not isinstance(task, Denoise) or not isinstance(task.network, AnyDiTConfig):
            return None
        if not isinstance(task.network, PublishedDiTConfig):
            raise ValueError(
                f"config.task.network={type(task.network).__name__}: of DiTs, PublishedDiTConfig alone was published"
            )
        pt, ph, pw = task.network.patch_size
        if pt != 1 or ph != pw:
            raise ValueError(f"config.task.network.patch_size={task.network.patch_size}: published patches are squares")
        if not isinstance(task.condition, ClassCondition):
            raise ValueError(f"config.task.condition={task.condition}: the published network is conditioned on a class")
        return cls(config=task.network, channels=task.codec.vae.latent_channels, condition=task.condition)

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "ClassDiT | None":
        # Before diffusers 0.29 the class was called as many others were.
        older = config.get("_class_name") == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
        if config.get("_class_name") != cls.diffusers_class and not older:
            return None
        check_fixed(config, _DIFFUSERS_FIXED)
        heads, channels = count_of(config, "num_attention_heads", 16), count_of(config, "in_channels", 4)
        patch = count_of(config, "patch_size", 2)
        outputs = channels if config.get("out_channels") is None else count_of(config, "out_channels")
        if outputs not in (channels, 2 * channels):
            raise ValueError(f"config.json: out_channels={outputs}: must be in_channels={channels} or twice as many")
        network = PublishedDiTConfig(
            hidden_size=heads * count_of(config, "attention_head_dim", 72),
            depth=count_of(config, "num_layers", 28),
            num_heads=heads,
            mlp_ratio=_DIFFUSERS_MLP_RATIO,
            patch_size=(1, patch, patch),
            position_grid=count_of(config, "sample_size", 32) // patch,
            mlp_norm_epsilon=epsilon_of(config, "norm_eps", _DIFFUSERS_EPSILON),
            time_frequency_shift=1,
            learned_variance=outputs == 2 * channels,
        )
        condition = ClassCondition(num_classes=count_of(config, "num_embeds_ada_norm", 1000))
        return cls(config=network, channels=channels, condition=condition)

    def informed_by(self, source: Source) -> "ClassDiT":
        """As in the base: weights trained in diffusers have embedders of their own in every block."""
        own = copies_differ(self.table(), Dialect.DIFFUSERS, source)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, block_embedders=own))

    @classmethod
    def of_official(cls, source: Source, task: Task | None) -> "ClassDiT | None":
        """Recognises official weights by names and shapes; None where they are of something else.

        How many heads there are shapes do not tell: that is as in the published network of this width and depth, and
        else as in `task`. Weights that are those of `task` but for some tensors count as its own, so that
        `names.check` says which tensors these are.
        """
        own = isinstance(task, Denoise) and isinstance(task.network, AnyDiTConfig) and task.network.block_embedders
        family = (None if own else cls.of_most(source, task)) or cls._by_shapes(source, task)
        if family is None:
            return None
        config = family.config
        heads = {(size.hidden_size, size.depth): size.num_heads for size in (DIT_S, DIT_B, DIT_L, DIT_XL)}
        positions = source[_POSITIONS].shape if _POSITIONS in source else ()
        config = dataclasses.replace(
            config,
            num_heads=heads.get((config.hidden_size, config.depth), config.num_heads),
            position_grid=math.isqrt(positions[1]) if len(positions) == 3 else config.position_grid or 1,
            mlp_norm_epsilon=1e-6,
            time_frequency_shift=0,
        )
        return dataclasses.replace(family, config=config)

    @classmethod
    def _by_shapes(cls, source: Source, task: Task | None) -> "ClassDiT | None":
        """Config from the shapes of tensors; what these do not determine is as in `task`."""
        dims = {_PATCHES: 4, _LABELS: 2, _LAST: 2}
        if any(name not in source or len(source[name].shape) != dim for name, dim in dims.items()):
            return None
        like = task.network if isinstance(task, Denoise) and isinstance(task.network, AnyDiTConfig) else DIT_XL
        (hidden_size, channels, patch, _), (rows, _), (outputs, _) = (source[name].shape for name in dims)
        layers = {part[1] for part in (name.split(".") for name in source) if part[0] == "blocks" and len(part) > 1}
        up = source.get("blocks.0.mlp.fc1.weight")
        config = PublishedDiTConfig(
            hidden_size=hidden_size,
            depth=len(layers),
            num_heads=math.gcd(like.num_heads, hidden_size),
            mlp_ratio=like.mlp_ratio if up is None else up.shape[0] / hidden_size,
            patch_size=(1, patch, patch),
            learned_variance=outputs == 2 * channels * patch**2,
        )
        return cls(config=config, channels=channels, condition=ClassCondition(num_classes=rows - 1))

    def diffusers_config(self, shape: LatentShape) -> dict[str, Any]:
        config, where = self.config, "config.task.network"
        t, h, w = shape
        if t != 1 or h != w:
            raise ValueError(f"latents are of (t, h, w) = {shape}: it takes square images alone")
        if config.time_frequency_shift != 1:
            raise ValueError(
                f"{where}.time_frequency_shift={config.time_frequency_shift}: diffusers computes DiT with 1 and would "
                f"give other outputs; train with --{where}.time_frequency_shift=1, from these weights with --init_from "
                "and --allow_change"
            )
        if config.mlp_size != int(_DIFFUSERS_MLP_RATIO * config.hidden_size):
            raise ValueError(f"{where}.mlp_ratio={config.mlp_ratio}: in diffusers it is {_DIFFUSERS_MLP_RATIO}")
        patch = config.patch_size[1]
        return {
            "_class_name": self.diffusers_class,
            **_DIFFUSERS_FIXED,
            "attention_head_dim": config.hidden_size // config.num_heads,
            "dropout": 0.0,
            "in_channels": self.channels,
            "norm_eps": config.mlp_norm_epsilon,
            "num_attention_heads": config.num_heads,
            "num_embeds_ada_norm": self.num_classes,
            "num_layers": config.depth,
            "out_channels": self.channels * (2 if config.learned_variance else 1),
            "patch_size": patch,
            "sample_size": h if config.position_grid is None else config.position_grid * patch,
            "upcast_attention": False,
        }

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: LatentShape) -> Iterator[Pair]:
        """Compares at several timesteps and labels, one of which is "no label"."""
        import torch

        rng, depth = np.random.default_rng(0), self.config.depth
        size = theirs.config["sample_size"]
        x_t = rng.standard_normal((len(_TIMESTEPS), self.channels, size, size), np.float32)
        label = np.array([*rng.integers(0, self.num_classes, len(_TIMESTEPS) - 1), self.num_classes])
        with listening(theirs, [f"transformer_blocks.{layer}" for layer in range(depth)]) as heard:
            inputs = (torch.from_numpy(x_t), torch.tensor(_TIMESTEPS), torch.from_numpy(label))
            expected = theirs(*inputs, return_dict=False)[0].numpy()
        definition = self.define()
        t = jnp.asarray([[self.config.time_of(n)] for n in _TIMESTEPS], jnp.float32)

        @jax.jit
        def call(params, *args):
            network = definition.bind(params)
            return network.layers(*args), network.output(*args)

        arguments = (jnp.asarray(x_t.transpose(0, 2, 3, 1)[:, None]), t, jnp.asarray(label, jnp.int32))
        layers, output = call(dict(params), *arguments)
        for layer in range(depth):
            yield Pair(f"block {layer}", np.asarray(layers["blocks"][layer]), heard[f"transformer_blocks.{layer}"])
        actual = np.concatenate([part for part in output if part is not None], axis=-1)
        yield Pair("output", actual[:, 0].transpose(0, 3, 1, 2), expected)

    def usage(self, shape: LatentShape) -> str:
        config, c, size = self.config, self.channels, shape[1]
        offset = f" - {-config.timestep_offset}" if config.timestep_offset else ""
        variance = f", then {c} channels that its variance is made of" if config.learned_variance else ""
        return f"""```python
from diffusers import {self.diffusers_class}

transformer = {self.diffusers_class}.from_pretrained(".")
output = transformer(latents, timestep=timestep, class_labels=labels).sample
```

- `latents`, float32 `[b {c} {size} {size}]`: noisy latents of the run's own codec, of zero mean and unit variance per
  channel before noise. A pipeline of diffusers needs a VAE with the same latents.
- `timestep`, int64 `[b]`: {NUM_TIMESTEPS} t{offset} for noise level t, 0 for data and 1 for noise.
- `labels`, int64 `[b]`: 0 to {self.num_classes - 1}, and {self.num_classes} for none.
- `output`, `[b {2 * c if config.learned_variance else c} {size} {size}]`: what the objective asks for{variance}."""

    def table(self) -> Table:
        config, D = self.config, self.config.hidden_size
        K, M, p = config.num_heads, config.mlp_size, config.patch_size[1]
        in_cells = p * p * self.channels
        out_cells = 2 * in_cells if config.learned_variance else in_cells
        block, their_block = f"blocks.{LAYER}", f"transformer_blocks.{LAYER}"

        def alone(ours: str, inputs: Shape, outputs: Shape, official: str, diffusers: str) -> tuple[Row, ...]:
            return linear(ours, inputs, outputs, _theirs(official, diffusers))

        def embedder(official: str, diffusers: str) -> dict[Dialect, tuple[str, ...]]:
            theirs = _theirs(official, f"{their_block}.norm1.emb.{diffusers}")
            return {Dialect.DIFFUSERS: theirs[Dialect.DIFFUSERS]} if config.block_embedders else theirs

        def of_time(ours: str, inputs: int, official: str, diffusers: str) -> tuple[Row, ...]:
            names = embedder(official, f"timestep_embedder.{diffusers}")
            own = config.block_embedders
            return linear(f"t_embedder.{ours}", (inputs,), (D,), names, num_layers=config.depth, stacked=own)

        def in_blocks(ours: str, inputs: Shape, outputs: Shape, official: str, *diffusers: str) -> tuple[Row, ...]:
            names = _theirs(f"{block}.{official}", *(f"{their_block}.{name}" for name in diffusers))
            return linear(f"blocks.{ours}", inputs, outputs, names, num_layers=config.depth, stacked=True)

        rows = (
            # A convolution there: cells of a patch are ordered (row, column, channel) here.
            Row(
                ours="x_embedder.kernel",
                our_shape=(in_cells, D),
                theirs=_theirs(_PATCHES, "pos_embed.proj.weight"),
                shape=(D, self.channels, p, p),
                order=(2, 3, 1, 0),
            ),
            vector("x_embedder.bias", (D,), _theirs("x_embedder.proj.bias", "pos_embed.proj.bias")),
            *of_time("up", TimeEmbedding.num_frequencies, "t_embedder.mlp.0", "linear_1"),
            *of_time("down", D, "t_embedder.mlp.2", "linear_2"),
            Row(
                ours="y_embedder.table",
                our_shape=(self.num_classes + 1, D),
                theirs=embedder(_LABELS, "class_embedder.embedding_table.weight"),
                shape=(self.num_classes + 1, D),
                order=(0, 1),
                num_layers=config.depth,
                stacked=config.block_embedders,
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
        positions = np.array(sincos_positions((1, grid, grid), (1, 1, 1), D))[None]
        return Table(rows=rows, constants={Dialect.OFFICIAL: {_POSITIONS: positions}})


def _theirs(official: str, *diffusers: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.OFFICIAL: (official,), Dialect.DIFFUSERS: diffusers}
