"""The VAE of CogVideoX (Yang et al. 2024, arXiv:2408.06072, section 2.1): causal in time, 4x8x8.

Its convolutions are causal but its norms reach over all frames of a call, so which frames come together is part of the
function. As published these are 8 frames of pixels, or 2 of latents; the first come with the one that begins the clip.
A clip of 1 + 8k frames therefore streams exactly in any chunks of that size. (With an even number of latent frames the
published decoder has no frame apart, and would make 8 frames of the 2 latent frames of 5: such clips are refused.)
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Moments, Pixels
from dit_video.config.bounds import at_least
from dit_video.nn.conv import CausalConv3d, Stride, in_chunks
from dit_video.nn.group_norm import GroupNorm
from dit_video.vae.encoder_decoder import (
    Decoder,
    DownsampleRows,
    Encoder,
    Head,
    Level,
    LeveledVAE,
    Middle,
    NormOf,
    ResidualConvs,
    UpsampleRows,
    layers_of,
)
from dit_video.vae.vae import VAEConfig

_KERNEL = (3, 3, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CogVideoXVAEConfig(VAEConfig):
    """Sizes of a `CogVideoXVAE`.

    widths: channels of each level of the encoder, finest first; the decoder mirrors it. Each level but the last halves
        rows and columns, and the first two halve frames; in the decoder the first two double them.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    num_groups: of channels, that are normalised together.
    """

    widths: tuple[int, ...] = (128, 256, 256, 512)
    num_blocks: int = 3
    num_groups: int = 32
    latent_channels: int = 16

    def __post_init__(self):
        at_least(self, 1, "num_blocks", "num_groups", "latent_channels")
        if len(self.widths) < 3 or any(width < 1 or width % self.num_groups for width in self.widths):
            raise ValueError(
                f"CogVideoXVAEConfig.widths={self.widths}: must be three or more multiples of "
                f"num_groups={self.num_groups}"
            )

    @property
    def compression(self) -> Stride:
        cell = 2 ** (len(self.widths) - 1)
        return 4, cell, cell

    @property
    def frame_group(self) -> int:
        return 2

    def build(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> "CogVideoXVAE":
        return CogVideoXVAE(self, dtype=dtype, rngs=rngs)


# CogVideoX 2B, 5B and 1.5.
COGVIDEOX_VAE = CogVideoXVAEConfig()


class CogVideoXVAE(LeveledVAE):
    """The network of a `CogVideoXVAEConfig`."""

    def __init__(self, config: CogVideoXVAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        widths, c = config.widths, config.latent_channels
        deepest = len(widths) - 1
        shared = {"dtype": dtype, "rngs": rngs}
        plain = functools.partial(GroupNorm, num_groups=config.num_groups, rngs=rngs)
        spatial = functools.partial(SpatialNorm, latent_channels=c, num_groups=config.num_groups, **shared)

        def blocks(in_channels: int, out_channels: int, number: int, norm: NormOf) -> list[ResidualConvs]:
            inputs = [in_channels] + [out_channels] * (number - 1)
            return [ResidualConvs(size, out_channels, norm=norm, kernel=_KERNEL, **shared) for size in inputs]

        down, inputs = [], widths[0]
        for level, width in enumerate(widths):
            resample = CogDownsample(width, frames=level < 2, **shared) if level < deepest else None
            down.append(Level(blocks(inputs, width, config.num_blocks, plain), resample))
            inputs = width
        self.encoder = Encoder(
            CausalConv3d(3, widths[0], _KERNEL, **shared),
            down,
            Middle(blocks(widths[-1], widths[-1], 2, plain)),
            Head(widths[-1], 2 * c, norm=plain, kernel=_KERNEL, **shared),
        )
        up, inputs = [], widths[-1]
        for level, width in enumerate(reversed(widths)):
            resample = CogUpsample(width, frames=level < 2, **shared) if level < deepest else None
            up.append(Level(blocks(inputs, width, config.num_blocks + 1, spatial), resample))
            inputs = width
        self.decoder = Decoder(
            CausalConv3d(c, widths[-1], _KERNEL, **shared),
            Middle(blocks(widths[-1], widths[-1], 2, spatial)),
            up,
            Head(widths[0], 3, norm=spatial, kernel=_KERNEL, **shared),
        )

    def encode_stream(self, pixels: Pixels, cache: tuple | None = None) -> tuple[Moments, tuple]:
        self.config.check_pixels(pixels.shape[1:4], first=cache is None)
        frames = self.config.compression[0] * self.config.frame_group
        x, cache = in_chunks(self.encoder, pixels.astype(self.dtype), cache, first=1 + frames, later=frames)
        return x.astype(jnp.float32), cache

    def decode_stream(self, z: Float[Array, "B t h w c"], cache: tuple | None = None) -> tuple[Pixels, tuple]:
        self.config.check_latents(z.shape[1], first=cache is None)
        frames = self.config.frame_group
        x, cache = in_chunks(
            lambda part, cache: self.decoder(part, cache, part),
            z.astype(self.dtype),
            cache,
            first=1 + frames,
            later=frames,
        )
        return x.astype(jnp.float32), cache

    def layers(self, pixels: Pixels, z: Float[Array, "B t h w c"]) -> dict[str, Array]:
        """Outputs of each part for the first frames that are normalised together."""
        frames = self.config.compression[0] * self.config.frame_group
        first = z[:, : 1 + self.config.frame_group]
        return layers_of(self, pixels[:, : 1 + frames], first, first)


class SpatialNorm(nnx.Module):
    """Spatially conditional group norm: scale and bias linear in the latents (MoVQ, arXiv:2209.09002)."""

    def __init__(self, features: int, *, latent_channels: int, num_groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = GroupNorm(features, num_groups=num_groups, rngs=rngs)
        pointwise = functools.partial(CausalConv3d, kernel=(1, 1, 1), dtype=dtype, rngs=rngs)
        self.scale, self.bias = pointwise(latent_channels, features), pointwise(latent_channels, features)

    def __call__(self, x: Float[Array, "B T H W C"], z: Float[Array, "B t h w c"]) -> Float[Array, "B T H W C"]:
        """Normalises frames that were made of the latents `z`, 1 + s * (t - 1) of them or s * t."""
        _, frames, rows, columns, _ = x.shape
        x = self.norm(x)
        # Pointwise and nearest neighbours commute: the small one comes first.
        scale, bias = (_stretch(layer(z)[0], (frames, rows, columns)) for layer in (self.scale, self.bias))
        return x.astype(scale.dtype) * scale + bias


def _stretch(x: Float[Array, "B t h w C"], size: Stride) -> Float[Array, "B T H W C"]:
    """Nearest-neighbour resize; of an odd number of frames the first stands alone."""
    frames, rows, columns = size
    x = x.repeat(rows // x.shape[2], axis=2).repeat(columns // x.shape[3], axis=3)
    if frames == x.shape[1]:
        return x
    alone = frames % 2
    rest = x[:, alone:]
    return jnp.concatenate([x[:, :alone], rest.repeat((frames - alone) // rest.shape[1], axis=1)], axis=1)


class CogDownsample(nnx.Module):
    """Downsampling by two of rows and columns, and by averaging of every two frames after the first."""

    def __init__(self, channels: int, *, frames: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.frames = frames
        self.space = DownsampleRows(channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple[()] | None = None
    ) -> tuple[Float[Array, "B t h w C"], tuple[()]]:
        if self.frames:
            alone = 1 if cache is None else 0
            rest = x[:, alone:]
            pairs = rest.reshape(len(x), -1, 2, *x.shape[2:])
            x = jnp.concatenate([x[:, :alone], pairs.mean(axis=2)], axis=1)
        return self.space(x)


class CogUpsample(nnx.Module):
    """Nearest-neighbour upsampling by two of rows and columns, and of every frame after the first."""

    def __init__(self, channels: int, *, frames: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.frames = frames
        self.space = UpsampleRows(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B t h w C"], cache: tuple[()] | None = None
    ) -> tuple[Float[Array, "B T H W C"], tuple[()]]:
        if self.frames:
            alone = 1 if cache is None else 0
            x = jnp.concatenate([x[:, :alone], x[:, alone:].repeat(2, axis=1)], axis=1)
        return self.space(x)
