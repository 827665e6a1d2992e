"""Encoder and decoder of the published VAEs: levels of residual convolution blocks, attention and resampling.

SD's, Wan's and CogVideoX's VAEs are one structure (Esser et al. 2021, arXiv:2012.09841, appendix A) with another norm,
another kernel in time and another way between levels. Every layer is called as those of nn/conv.py are; what else a
norm needs (CogVideoX's needs the latents) goes to all of them as `cond`.
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Pixels
from dit_video.nn.conv import CausalConv3d, Padding, Stride, stream
from dit_video.vae.vae import VAE

# Makes the norm of so many channels, called as norm(x, *given).
NormOf = Callable[[int], nnx.Module]


class ResidualConvs(nnx.Module):
    """ResNet block: x + two convolutions, each after a norm and SiLU; a projected shortcut where the width changes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: NormOf,
        kernel: Stride,
        padding: Padding = Padding.FIRST,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, kernel, padding=padding, dtype=dtype, rngs=rngs)
        self.norm2 = norm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, kernel, padding=padding, dtype=dtype, rngs=rngs)
        widen = in_channels != out_channels
        self.shortcut = CausalConv3d(in_channels, out_channels, (1, 1, 1), dtype=dtype, rngs=rngs) if widen else None

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple | None = None, *cond: Array
    ) -> tuple[Float[Array, "B T H W D"], tuple]:
        before1, before2 = (None, None) if cache is None else cache
        h, cache1 = self.conv1(nnx.silu(self.norm1(x, *cond)), before1)
        h, cache2 = self.conv2(nnx.silu(self.norm2(h, *cond)), before2)
        if self.shortcut is not None:
            x, _ = self.shortcut(x)
        return x.astype(h.dtype) + h, (cache1, cache2)


class FrameAttention(nnx.Module):
    """Single-head self-attention over the positions of each frame, with a residual."""

    def __init__(self, channels: int, *, norm: NormOf, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = norm(channels)
        self.qkv = CausalConv3d(channels, 3 * channels, (1, 1, 1), dtype=dtype, rngs=rngs)
        self.out = CausalConv3d(channels, channels, (1, 1, 1), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple[()] | None = None
    ) -> tuple[Float[Array, "B T H W C"], tuple[()]]:
        qkv, _ = self.qkv(self.norm(x))
        # A frame is a sequence. Heads as wide as this (512 in SD's) are for no fused kernel.
        q, k, v = jnp.split(qkv.reshape(-1, x.shape[2] * x.shape[3], 1, qkv.shape[-1]), 3, axis=-1)
        h = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        h, _ = self.out(h.reshape(x.shape))
        return x + h, ()


class Middle(nnx.Module):
    """Middle block at the lowest resolution: residual blocks, optionally with attention between the first two."""

    def __init__(self, blocks: Sequence[nnx.Module], attention: FrameAttention | None = None):
        self.blocks = nnx.List(blocks)
        self.attention = attention

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple | None = None, *cond: Array
    ) -> tuple[Float[Array, "B T H W C"], tuple]:
        first, rest = (None, None) if cache is None else cache
        x, first = self.blocks[0](x, first, *cond)
        if self.attention is not None:
            x, _ = self.attention(x)
        x, rest = stream(self.blocks[1:], x, rest, *cond)
        return x, (first, rest)


class Level(nnx.Module):
    """Level: residual blocks of one resolution, then the resampling layer to the next, if any."""

    def __init__(self, blocks: Sequence[nnx.Module], resample: nnx.Module | None):
        self.blocks = nnx.List(blocks)
        self.resample = resample

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple | None = None, *cond: Array
    ) -> tuple[Float[Array, "B t h w D"], tuple]:
        inside, between = (None, None) if cache is None else cache
        x, inside = stream(self.blocks, x, inside, *cond)
        if self.resample is not None:
            x, between = self.resample(x, between)
        return x, (inside, between)


class Head(nnx.Module):
    """Output head of an encoder or decoder: norm, SiLU and a convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: NormOf,
        kernel: Stride,
        padding: Padding = Padding.FIRST,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm = norm(in_channels)
        self.conv = CausalConv3d(
            in_channels, out_channels, kernel, padding=padding, out_axis="data_channels", dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: Array | None = None, *cond: Array
    ) -> tuple[Float[Array, "B T H W D"], Array]:
        return self.conv(nnx.silu(self.norm(x, *cond)), cache)


class Coder(nnx.Module):
    """Base of encoder and decoder: a convolution and further parts called in order; all but the first get `cond`."""

    conv: CausalConv3d

    @abc.abstractmethod
    def parts(self) -> dict[str, nnx.Module]:
        """Parts in the order in which they are called."""

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple | None = None, *cond: Array
    ) -> tuple[Float[Array, "B T_out H_out W_out D"], tuple]:
        _, outputs, caches = zip(*self._steps(x, cache, cond))
        return outputs[-1], caches

    def layers(self, x: Float[Array, "B T H W C"], *cond: Array) -> dict[str, Float[Array, "B _t _h _w _d"]]:
        """Outputs of each part for whole clips."""
        return {name: x for name, x, _ in self._steps(x, None, cond)}

    def _steps(self, x: Array, cache: tuple | None, cond: tuple[Array, ...]) -> Iterator[tuple[str, Array, Any]]:
        for index, (name, part) in enumerate(self.parts().items()):
            x, part_cache = part(x, None if cache is None else cache[index], *(cond if index else ()))
            yield name, x, part_cache


class Encoder(Coder):
    """Encoder from pixels to moments: a convolution, levels from fine to coarse, the middle, the head."""

    def __init__(self, conv: CausalConv3d, levels: Sequence[nnx.Module], middle: Middle, head: Head):
        self.conv, self.levels, self.middle, self.head = conv, nnx.List(levels), middle, head

    def parts(self) -> dict[str, nnx.Module]:
        levels = {f"levels.{number}": level for number, level in enumerate(self.levels)}
        return {"conv": self.conv, **levels, "middle": self.middle, "head": self.head}


class Decoder(Coder):
    """Decoder from latents to pixels: a convolution, the middle, levels from coarse to fine, the head."""

    def __init__(self, conv: CausalConv3d, middle: Middle, levels: Sequence[nnx.Module], head: Head):
        self.conv, self.middle, self.levels, self.head = conv, middle, nnx.List(levels), head

    def parts(self) -> dict[str, nnx.Module]:
        levels = {f"levels.{number}": level for number, level in enumerate(self.levels)}
        return {"conv": self.conv, "middle": self.middle, **levels, "head": self.head}


class LeveledVAE(VAE):
    """VAE of such an encoder and decoder, which can be compared with a reference layer by layer."""

    encoder: Encoder
    decoder: Decoder

    @abc.abstractmethod
    def layers(self, pixels: Pixels, z: Float[Array, "B t h w c"]) -> dict[str, Array]:
        """Outputs of each part but the heads, of the encoder for whole clips and of the decoder for whole latents.

        Frames of a clip may be clips of their own. Names are those of the parameters, without their ends.
        """


def layers_of(
    vae: LeveledVAE, x: Float[Array, "B T H W C"], z: Float[Array, "B t h w c"], *cond: Array
) -> dict[str, Array]:
    """Outputs of the encoder's parts for `x` and the decoder's for `z`, by their names in the VAE."""
    coders = {"encoder": vae.encoder.layers(x), "decoder": vae.decoder.layers(z, *cond)}
    named = {f"{name}.{part}": layer for name, layers in coders.items() for part, layer in layers.items()}
    return {name: layer for name, layer in named.items() if not name.endswith(".head")}


class UpsampleRows(nnx.Module):
    """Nearest-neighbour upsampling of rows and columns by two, then a spatial 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T h w C"], cache: tuple[()] | None = None
    ) -> tuple[Float[Array, "B T H W D"], tuple[()]]:
        return self.conv(x.repeat(2, axis=2).repeat(2, axis=3))[0], ()


class DownsampleRows(nnx.Module):
    """Strided downsampling: a spatial 3x3 convolution of stride 2, padded by one row and column at the end only."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), stride=(1, 2, 2), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple[()] | None = None
    ) -> tuple[Float[Array, "B T h w C"], tuple[()]]:
        return self.conv(x)[0], ()
