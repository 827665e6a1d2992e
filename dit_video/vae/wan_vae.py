"""The VAEs of Wan 2.1 and 2.2 (Wan et al. 2025, arXiv:2503.20314, section 4.1): causal in time, 4x8x8 and 4x16x16.

As published they are defined by a cache that frames go through in chunks of 1, 4, 4, ... Their norms look at one
position, so this is the function of the whole clip that is written here: frame 0 passes the convolutions between levels
that halve or double frames, and those never see it as a past when they double.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Moments, Pixels
from dit_video.config.bounds import at_least
from dit_video.nn.conv import CausalConv3d, Padding, Stride, fold, unfold
from dit_video.nn.norm import RMSNorm
from dit_video.vae.encoder_decoder import (
    Decoder,
    DownsampleRows,
    Encoder,
    FrameAttention,
    Head,
    Level,
    LeveledVAE,
    Middle,
    ResidualConvs,
    UpsampleRows,
    layers_of,
)
from dit_video.vae.vae import VAEConfig

_KERNEL = (3, 3, 3)
# Theirs divides by the length of a vector, at least 1e-12, where ours adds to its square: the same but for vectors of
# zeros.
_EPSILON = 1e-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVAEConfig(VAEConfig):
    """Sizes of a `WanVAE`.

    channels, decoder_channels, multipliers: level i of the encoder is `channels * multipliers[i]` wide, and of the
        decoder `decoder_channels * multipliers[i]`.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    halve_frames: whether frames are halved after each level but the last; rows and columns always are.
    patch_size: rows and columns of pixels that are folded onto channels first.
    residual: whether a level has a shortcut without parameters around it (2.2), and its decoder keeps its width
        where it doubles rows and columns, which 2.1 halves.
    """

    channels: int = 96
    decoder_channels: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = 2
    halve_frames: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    residual: bool = False
    latent_channels: int = 16

    def __post_init__(self):
        at_least(self, 1, "channels", "decoder_channels", "num_blocks", "patch_size", "latent_channels")
        if len(self.halve_frames) != len(self.multipliers) - 1:
            raise ValueError(
                f"WanVAEConfig.halve_frames={self.halve_frames}: give one for each but the last of the "
                f"{len(self.multipliers)} levels"
            )
        if not self.residual and any(self.decoder_channels * m % 2 for m in self.multipliers[1:]):
            raise ValueError(
                f"WanVAEConfig.decoder_channels={self.decoder_channels}: must be even: levels of the decoder halve "
                "their widths"
            )

    @property
    def compression(self) -> Stride:
        cell = self.patch_size * 2 ** len(self.halve_frames)
        return 2 ** sum(self.halve_frames), cell, cell

    def build(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> "WanVAE":
        return WanVAE(self, dtype=dtype, rngs=rngs)


# Wan 2.1, and the 14B models of Wan 2.2.
WAN_VAE = WanVAEConfig()
# The 5B model of Wan 2.2.
WAN_2_2_VAE = WanVAEConfig(channels=160, decoder_channels=256, patch_size=2, residual=True, latent_channels=48)


class WanVAE(LeveledVAE):
    """The network of a `WanVAEConfig`."""

    def __init__(self, config: WanVAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.pixel_fold = (1, config.patch_size, config.patch_size)
        c, cell = config.latent_channels, 3 * config.patch_size**2
        norm = functools.partial(RMSNorm, epsilon=_EPSILON, rngs=rngs)
        conv = functools.partial(CausalConv3d, kernel=_KERNEL, padding=Padding.ZEROS, dtype=dtype, rngs=rngs)
        head = functools.partial(Head, norm=norm, kernel=_KERNEL, padding=Padding.ZEROS, dtype=dtype, rngs=rngs)

        def blocks(in_channels: int, out_channels: int, number: int) -> list[ResidualConvs]:
            inputs = [in_channels] + [out_channels] * (number - 1)
            same = {"norm": norm, "kernel": _KERNEL, "padding": Padding.ZEROS, "dtype": dtype, "rngs": rngs}
            return [ResidualConvs(size, out_channels, **same) for size in inputs]

        def middle(width: int) -> Middle:
            return Middle(blocks(width, width, 2), FrameAttention(width, norm=norm, dtype=dtype, rngs=rngs))

        # After the last level nothing is halved.
        steps = [(2, 2, 2) if frames else (1, 2, 2) for frames in config.halve_frames]
        widths = [config.channels * m for m in config.multipliers]
        down, inputs = [], config.channels
        for width, step in zip(widths, [*steps, None]):
            resample = None if step is None else WanDownsample(width, frames=step[0] == 2, dtype=dtype, rngs=rngs)
            level = Level(blocks(inputs, width, config.num_blocks), resample)
            down.append(ShrinkingLevel(level, width, step or (1, 1, 1)) if config.residual else level)
            inputs = width
        self.encoder = Encoder(conv(cell, config.channels), down, middle(widths[-1]), head(widths[-1], 2 * c))

        widths = [config.decoder_channels * m for m in config.multipliers]
        up, inputs = [], widths[-1]
        for width, step in zip(reversed(widths), [*reversed(steps), None]):
            outputs = width if config.residual else width // 2
            resample = None
            if step is not None:
                resample = WanUpsample(width, outputs, frames=step[0] == 2, dtype=dtype, rngs=rngs)
            level = Level(blocks(inputs, width, config.num_blocks + 1), resample)
            up.append(GrowingLevel(level, width, step) if config.residual and step is not None else level)
            inputs = outputs
        self.decoder = Decoder(conv(c, widths[-1]), middle(widths[-1]), up, head(widths[0], cell))
        pointwise = functools.partial(CausalConv3d, kernel=(1, 1, 1), out_axis="data_channels", dtype=dtype, rngs=rngs)
        self.moments_projection, self.latents_projection = pointwise(2 * c, 2 * c), pointwise(c, c)

    def encode_stream(self, pixels: Pixels, cache: tuple | None = None) -> tuple[Moments, tuple]:
        self.config.check_pixels(pixels.shape[1:4], first=cache is None)
        x, cache = self.encoder(self._patches(pixels), cache)
        return self.moments_projection(x)[0].astype(jnp.float32), cache

    def decode_stream(self, z: Float[Array, "B t h w c"], cache: tuple | None = None) -> tuple[Pixels, tuple]:
        x, cache = self.decoder(self.latents_projection(z)[0], cache)
        return unfold(x, self.pixel_fold, first=False).astype(jnp.float32), cache

    def layers(self, pixels: Pixels, z: Float[Array, "B t h w c"]) -> dict[str, Array]:
        return layers_of(self, self._patches(pixels), self.latents_projection(z)[0])

    def _patches(self, pixels: Pixels) -> Float[Array, "B T h w D"]:
        return fold(pixels.astype(self.dtype), self.pixel_fold, first=False)


class WanDownsample(nnx.Module):
    """Downsampling by two of rows and columns, and causally of the frames after the first."""

    def __init__(self, channels: int, *, frames: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.space = DownsampleRows(channels, dtype=dtype, rngs=rngs)
        conv = functools.partial(CausalConv3d, kernel=(3, 1, 1), stride=(2, 1, 1), dtype=dtype, rngs=rngs)
        self.time = conv(channels, channels) if frames else None

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: Float[Array, "B 1 h w C"] | None = None
    ) -> tuple[Float[Array, "B t h w C"], Float[Array, "B 1 h w C"] | None]:
        x, _ = self.space(x)
        if self.time is None:
            return x, None
        if cache is not None:
            return self.time(x, cache)
        y, cache = self.time(x[:, 1:], x[:, :1])
        return jnp.concatenate([x[:, :1], y], axis=1), cache


class WanUpsample(nnx.Module):
    """Upsampling by two of rows and columns, and of the frames after the first, which never see the first."""

    def __init__(self, in_channels: int, out_channels: int, *, frames: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        conv = functools.partial(CausalConv3d, kernel=(3, 1, 1), padding=Padding.ZEROS, dtype=dtype, rngs=rngs)
        self.time = conv(in_channels, 2 * in_channels) if frames else None
        self.space = UpsampleRows(in_channels, out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B t h w C"], cache: Float[Array, "B 2 h w C"] | None = None
    ) -> tuple[Float[Array, "B T H W D"], Float[Array, "B 2 h w C"] | None]:
        if self.time is not None:
            rest = x if cache is not None else x[:, 1:]
            y, after = self.time(rest, cache)
            # The first half of the channels is the earlier frame.
            y = unfold(y, (2, 1, 1), first=False)
            x, cache = y if cache is not None else jnp.concatenate([x[:, :1], y], axis=1), after
        return self.space(x)[0], cache


class ShrinkingLevel(nnx.Module):
    """Encoder level with a parameter-free shortcut: its input folded to the output's size, channels averaged."""

    def __init__(self, level: Level, channels: int, step: Stride):
        self.level, self.channels, self.step = level, channels, step

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple | None = None
    ) -> tuple[Float[Array, "B t h w D"], tuple]:
        shortcut = x
        if cache is None and self.step[0] > 1:
            # The first frame stands in a cell with frames of zeros before it.
            zeros = jnp.zeros_like(x, shape=(len(x), self.step[0] - 1, *x.shape[2:]))
            shortcut = jnp.concatenate([zeros, x], axis=1)
        y = fold(shortcut, self.step, first=False)
        # Groups are of neighbours where the channel counts slowest.
        y = jnp.swapaxes(y.reshape(*y.shape[:-1], math.prod(self.step), -1), -1, -2)
        y = y.reshape(*y.shape[:-2], self.channels, -1).mean(-1)
        x, cache = self.level(x, cache)
        return x + y.astype(x.dtype), cache


class GrowingLevel(nnx.Module):
    """Decoder level with a parameter-free shortcut: its input's channels repeated and unfolded to the output's size."""

    def __init__(self, level: Level, channels: int, step: Stride):
        self.level, self.channels, self.step = level, channels, step

    def __call__(
        self, x: Float[Array, "B t h w C"], cache: tuple | None = None
    ) -> tuple[Float[Array, "B T H W D"], tuple]:
        cell = math.prod(self.step)
        y = jnp.repeat(x, self.channels * cell // x.shape[-1], axis=-1)
        # The channel counts slowest here too.
        y = jnp.swapaxes(y.reshape(*y.shape[:-1], self.channels, cell), -1, -2)
        y = unfold(y.reshape(*x.shape[:-1], -1), self.step, first=cache is None)
        x, cache = self.level(x, cache)
        return x + y.astype(x.dtype), cache
