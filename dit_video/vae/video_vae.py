"""VideoVAE: a causal 3-D video autoencoder with factorised convolutions.

The structure follows the factorised causal video tokenizers (VidTok, arXiv:2412.13061; Cosmos tokenizer,
arXiv:2501.03575): a fold of pixels onto channels first, so that no convolution runs at full resolution;
residual blocks of a spatial 3x3 and a causal temporal convolution; normalisation per position, never over
time or space; no attention. Whole clips, streamed chunks and single images therefore go through the same
arithmetic.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Moments, Pixels
from dit_video.config.bounds import at_least
from dit_video.nn.conv import CausalConv3d, Downsample, Upsample, fold, stream, unfold
from dit_video.nn.norm import RMSNorm
from dit_video.vae.vae import VAE, VAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAEConfig(VAEConfig):
    """Sizes of a `VideoVAE`.

    channels, multipliers: level i of the encoder is `channels * multipliers[i]` wide; the decoder mirrors it.
    strides: (frames, rows, columns) by which level i shrinks the video before its blocks. The first is the
        pixel fold; the product over levels is `compression`.
    num_blocks: residual blocks per level of the encoder; num_decoder_blocks: likewise of the decoder.
    latent_channels: c of the latents; moments have 2c channels.
    """

    channels: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4)
    strides: tuple[tuple[int, int, int], ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    num_blocks: int = 2
    num_decoder_blocks: int = 2
    latent_channels: int = 16

    def __post_init__(self):
        at_least(self, 1, "channels", "num_blocks", "num_decoder_blocks", "latent_channels")
        if len(self.multipliers) != len(self.strides) or not self.strides:
            raise ValueError(
                f"VideoVAEConfig.multipliers={self.multipliers} and strides={self.strides}: give one "
                "multiplier and one (frames, rows, columns) stride per level"
            )
        for i in range(1, len(self.strides)):
            wide = math.prod(self.strides[i]) * self.multipliers[i - 1]
            if wide % self.multipliers[i]:
                raise ValueError(
                    f"VideoVAEConfig.multipliers={self.multipliers}: level {i} folds {wide} * channels, "
                    f"no multiple of its own {self.multipliers[i]} * channels; choose a divisor of {wide}"
                )

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixels per latent cell in (frames, rows, columns)."""
        frames, rows, columns = (math.prod(axis) for axis in zip(*self.strides))
        return frames, rows, columns

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * m for m in self.multipliers)

    def build(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> "VideoVAE":
        return VideoVAE(self, dtype=dtype, rngs=rngs)


class ResidualBlock(nnx.Module):
    """Factorised residual block: spatial 3x3 then causal temporal 3-tap convolution, each after RMSNorm and SiLU."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.space_norm = RMSNorm(channels, rngs=rngs)
        self.space = CausalConv3d(channels, channels, (1, 3, 3), dtype=dtype, rngs=rngs)
        self.time_norm = RMSNorm(channels, rngs=rngs)
        # Zeros: at the start every block is the identity and the shortcuts of the resampling layers connect
        # pixels to latents.
        self.time = CausalConv3d(channels, channels, (3, 1, 1), zero_init=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: Float[Array, "B 2 H W C"] | None = None
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, "B 2 H W C"]]:
        h, _ = self.space(nnx.silu(self.space_norm(x)))
        h, cache = self.time(nnx.silu(self.time_norm(h)), cache)
        return x + h, cache


class Project(nnx.Module):
    """Output projection of the encoder and the decoder: RMSNorm, SiLU and a spatial 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = RMSNorm(in_channels, rngs=rngs)
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), out_axis="data_channels", dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: tuple[()] | None = None
    ) -> tuple[Float[Array, "B T H W D"], tuple[()]]:
        return self.conv(nnx.silu(self.norm(x)))[0], ()


class VideoVAE(VAE):
    """The network of a `VideoVAEConfig`."""

    def __init__(self, config: VideoVAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.pixel_fold = config.strides[0]
        widths, strides = config.widths, config.strides
        c = config.latent_channels
        shared = {"dtype": dtype, "rngs": rngs}

        encoder: list[nnx.Module] = []
        for level, width in enumerate(widths):
            if level == 0:
                encoder += [CausalConv3d(3 * math.prod(strides[0]), width, (1, 1, 1), **shared)]
            else:
                encoder += [Downsample(widths[level - 1], width, strides[level], **shared)]
            encoder += [ResidualBlock(width, **shared) for _ in range(config.num_blocks)]
        self.encoder = nnx.List([*encoder, Project(widths[-1], 2 * c, **shared)])

        decoder: list[nnx.Module] = [CausalConv3d(c, widths[-1], (1, 1, 1), **shared)]
        for level, width in reversed(list(enumerate(widths))):
            decoder += [ResidualBlock(width, **shared) for _ in range(config.num_decoder_blocks)]
            if level > 0:
                decoder += [Upsample(width, widths[level - 1], strides[level], **shared)]
        self.decoder = nnx.List([*decoder, Project(widths[0], 3 * math.prod(strides[0]), **shared)])

    def encode_stream(self, pixels: Pixels, cache: tuple | None = None) -> tuple[Moments, tuple]:
        first = cache is None
        self.config.check_pixels(pixels.shape[1:4], first=first)
        x = fold(pixels.astype(self.dtype), self.pixel_fold, first=first)
        x, cache = stream(self.encoder, x, cache)
        return x.astype(jnp.float32), cache

    def decode_stream(self, z: Float[Array, "B t h w c"], cache: tuple | None = None) -> tuple[Pixels, tuple]:
        first = cache is None
        x, cache = stream(self.decoder, z.astype(self.dtype), cache)
        return unfold(x, self.pixel_fold, first=first).astype(jnp.float32), cache
