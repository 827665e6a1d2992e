"""Export of DiT, a `DiTConfig` or a `PublishedDiTConfig`, to the PyTorch module of export/torch/files/dit.py.

diffusers has a class for the DiT as published alone (published/dit.py).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Output
from dit_video.data.captions import BEGIN
from dit_video.dit.condition import Condition
from dit_video.dit.dit import AnyDiTConfig, DiTConfig, PublishedDiTConfig
from dit_video.export.torch.module import TorchModule
from dit_video.nn.attention import QKNorm
from dit_video.nn.embed import TimeEmbedding
from dit_video.nn.mlp import MLPKind
from dit_video.nn.module import Definition, define
from dit_video.published.family import Pair, listening
from dit_video.published.family import Shape as LatentShape
from dit_video.published.torch_condition import NUM_CLIPS, TorchCondition, torch_condition
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.weights.names import LAYER, Dialect, Row, Shape, Table, linear, vector


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchDiT(TorchModule):
    """DiT as a PyTorch module.

    Attributes:
        channels: of the latents that it predicts.
    """

    source: ClassVar[str] = "dit.py"
    module: ClassVar[str] = "model.py"
    weights: ClassVar[str] = "model.safetensors"
    field: ClassVar[str] = "network"

    config: AnyDiTConfig
    channels: int
    condition: Condition | None

    @classmethod
    def of_task(cls, task: Denoise) -> "TorchDiT":
        """The network of a task.

        Raises:
            ValueError: it is of another kind; names the field.
        """
        if not isinstance(task.network, AnyDiTConfig):
            raise ValueError(
                f"config.task.network={type(task.network).__name__}: there is a torch module of a DiTConfig or "
                "PublishedDiTConfig alone"
            )
        if task.network.block_embedders:
            raise ValueError(
                "config.task.network.block_embedders=True: the torch module has one embedder for all blocks; diffusers "
                "computes this network (--format diffusers)"
            )
        if task.network.causal_frames is not None:
            raise ValueError(
                f"config.task.network.causal={task.network.causal_frames}: the torch module has full attention alone"
            )
        if isinstance(task.network, DiTConfig) and task.network.extrapolation is not None:
            raise ValueError(
                f"config.task.network.extrapolation={task.network.extrapolation}: the torch module has positions as "
                "they are alone; set --config.task.network.extrapolation=None"
            )
        torch_condition(task.condition)
        return cls(config=task.network, channels=task.codec.vae.latent_channels, condition=task.condition)

    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        return define(lambda key: self.config.build(self.channels, self.condition, dtype=dtype, rngs=nnx.Rngs(key)))

    def torch_config(self) -> dict[str, Any]:
        config, there = self.config, self._there
        encoder = None if there is None else there.encoder
        if encoder is not None:
            encoder = {**encoder, "mlp_size": self._text_mlp_size()}
        return {
            "channels": self.channels,
            "hidden_size": config.hidden_size,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "patch_size": config.patch_size,
            "mlp": config.mlp.value,
            "mlp_size": config.mlp_size,
            "mlp_norm_epsilon": config.mlp_norm_epsilon,
            "norm": config.norm.value,
            "qk_norm": config.qk_norm.value,
            "positions": "sincos" if isinstance(config, PublishedDiTConfig) else "rotary",
            "position_grid": config.position_grid if isinstance(config, PublishedDiTConfig) else None,
            "shared_modulation": config.shared_modulation,
            "timestep_offset": config.timestep_offset,
            "time_frequency_shift": config.time_frequency_shift,
            "learned_variance": config.learned_variance,
            "num_classes": None if there is None else there.num_classes,
            "text_size": self._text_size(),
            "text_encoder": encoder,
        }

    @property
    def _there(self) -> TorchCondition | None:
        return torch_condition(self.condition)

    def _text_size(self) -> int | None:
        return None if self._there is None else self._there.text_size

    def _text_mlp_size(self) -> int:
        return self.define().shapes["text_encoder.blocks.mlp.up.kernel"].shape[-1]

    def table(self) -> Table:
        config, there, D = self.config, self._there, self.config.hidden_size
        cells = math.prod(config.patch_size)
        rows = [
            # A convolution there: cells of a patch are ordered (frame, row, column, channel) here.
            Row(
                ours="x_embedder.kernel",
                our_shape=(cells * self.channels, D),
                theirs=_torch("x_embedder.weight"),
                shape=(D, self.channels, *config.patch_size),
                order=(2, 3, 4, 1, 0),
            ),
            vector("x_embedder.bias", (D,), _torch("x_embedder.bias")),
            *_linear("t_embedder.up", (TimeEmbedding.num_frequencies,), (D,)),
            *_linear("t_embedder.down", (D,), (D,)),
            *self._blocks(),
            *_linear("final_modulation.projection", (D,), (2, D)),
            *_linear("final_layer", (D,), (cells * self.channels * (2 if config.learned_variance else 1),)),
        ]
        if config.shared_modulation:
            rows += _linear("shared_modulation.projection", (D,), (6, D))
        if there is not None and there.num_classes is not None:
            rows.append(_as_it_is("y_embedder.table", (there.num_classes + 1, D), "y_embedder.weight"))
        if there is not None and there.encoder is not None:
            rows += self._text_encoder(there.encoder)
        return Table(rows=tuple(rows))

    def _blocks(self) -> list[Row]:
        config, D, K = self.config, self.config.hidden_size, self.config.num_heads
        d, M, layers = D // K, config.mlp_size, config.depth
        rows = [
            *_attention("blocks.attention", D, K, config.qk_norm, layers),
            *_mlp("blocks.mlp", config.mlp, D, M, layers),
        ]
        if config.shared_modulation:
            rows.append(_as_it_is("blocks.modulation.table", (6, D), f"blocks.{LAYER}.modulation.table", layers))
        else:
            rows += _linear("blocks.modulation.projection", (D,), (6, D), layers)
        text_size = self._text_size()
        if text_size is not None:
            cross = "blocks.cross_attention"
            rows += _linear(f"{cross}.query", (D,), (K, d), layers)
            rows += _linear(f"{cross}.key_value", (text_size,), (2, K, d), layers)
            rows += _linear(f"{cross}.out", (K, d), (D,), layers)
            rows += _heads_norms(cross, QKNorm.PER_HEAD, K, d, layers)
        return rows

    def _text_encoder(self, sizes: Mapping[str, int]) -> list[Row]:
        E, K, layers = (sizes[name] for name in ("hidden_size", "num_heads", "depth"))
        where = "text_encoder.blocks"
        return [
            _as_it_is("text_encoder.table", (BEGIN + 1, E), "text_encoder.table.weight"),
            *_attention(f"{where}.attention", E, K, QKNorm.PER_HEAD, layers),
            *_mlp(f"{where}.mlp", MLPKind.SWIGLU, E, self._text_mlp_size(), layers),
            _as_it_is("text_encoder.norm.scale", (E,), "text_encoder.norm.weight"),
        ]

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: LatentShape) -> Iterator[Pair]:
        """Compares with one noise level for each clip, then with one for each frame of patches."""
        import torch

        rng, depth, (frames, *_) = np.random.default_rng(0), self.config.depth, shape
        x_t = rng.standard_normal((NUM_CLIPS, *shape, self.channels), np.float32)
        cond, their_cond = (None, {}) if self._there is None else self._there.random(rng)
        num_patch_frames = frames // self.config.patch_size[0]
        definition = self.define()

        @jax.jit
        def compute(
            params: Mapping[str, Array], x_t: Array, t: Array, cond: Any
        ) -> tuple[Float[Array, "layers B N D"], Output]:
            network = definition.bind(params)
            return network.layers(x_t, t, cond)["blocks"], network.output(x_t, t, cond)

        for num_levels in sorted({1, num_patch_frames}):
            t = rng.uniform(0.0, 1.0, (NUM_CLIPS, num_levels)).astype(np.float32)
            t[0, 0] = 1.0
            if num_levels > 1:
                t = np.repeat(t, self.config.patch_size[0], axis=1)
            with listening(theirs, [f"blocks.{layer}" for layer in range(depth)]) as heard:
                x = torch.from_numpy(np.ascontiguousarray(x_t.transpose(0, 4, 1, 2, 3)))
                expected = theirs(x, torch.from_numpy(t), **their_cond).numpy()
            blocks, output = compute(dict(params), jnp.asarray(x_t), jnp.asarray(t), cond)
            where = f"with {num_levels} noise level{'s' if num_levels > 1 else ''}"
            for layer in range(depth):
                # Theirs are ordered frame by frame.
                B, N, D = blocks.shape[1:]
                ours = np.asarray(blocks[layer]).reshape(B, -1, num_patch_frames, D).swapaxes(1, 2).reshape(B, N, D)
                yield Pair(f"block {layer}, {where}", ours, heard[f"blocks.{layer}"])
            actual = np.concatenate([part for part in output if part is not None], axis=-1)
            yield Pair(f"output, {where}", actual.transpose(0, 4, 1, 2, 3), expected)


def _torch(name: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.TORCH: (name,)}


def _linear(ours: str, inputs: Shape, outputs: Shape, num_layers: int | None = None) -> tuple[Row, ...]:
    """Rows of a linear layer; `num_layers` where layers are stacked here."""
    theirs = ours.removesuffix(".projection")
    if num_layers is None:
        return linear(ours, inputs, outputs, _torch(theirs))
    theirs = theirs.replace("blocks.", f"blocks.{LAYER}.")
    return linear(ours, inputs, outputs, _torch(theirs), num_layers=num_layers, stacked=True)


def _as_it_is(ours: str, shape: Shape, theirs: str, num_layers: int | None = None) -> Row:
    """Row of a table or scale with the same axes there."""
    return Row(
        ours=ours,
        our_shape=shape,
        theirs=_torch(theirs),
        shape=shape,
        order=tuple(range(len(shape))),
        num_layers=num_layers or 1,
        stacked=num_layers is not None,
    )


def _attention(where: str, D: int, K: int, norm: QKNorm, num_layers: int) -> list[Row]:
    d = D // K
    return [
        *_linear(f"{where}.qkv", (D,), (3, K, d), num_layers),
        *_linear(f"{where}.out", (K, d), (D,), num_layers),
        *_heads_norms(where, norm, K, d, num_layers),
    ]


def _heads_norms(where: str, norm: QKNorm, K: int, d: int, num_layers: int) -> list[Row]:
    if norm is QKNorm.NONE:
        return []
    shape = (K, d) if norm is QKNorm.ACROSS_HEADS else (d,)
    names = [f"{where}.{name}" for name in ("query_norm", "key_norm")]
    theirs = [name.replace("blocks.", f"blocks.{LAYER}.") for name in names]
    return [_as_it_is(f"{a}.scale", shape, f"{b}.weight", num_layers) for a, b in zip(names, theirs)]


def _mlp(where: str, kind: MLPKind, D: int, M: int, num_layers: int) -> list[Row]:
    into = ("gate", "up") if kind is MLPKind.SWIGLU else ("up",)
    rows = [row for name in into for row in _linear(f"{where}.{name}", (D,), (M,), num_layers)]
    return [*rows, *_linear(f"{where}.down", (M,), (D,), num_layers)]
