"""AutoencoderKL: the VAE of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752), frame by frame.

Frames are pictures: nothing looks at another one, so T frames make T latent frames and any cut in time is exact.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Moments, Pixels
from dit_video.config.bounds import at_least
from dit_video.nn.conv import CausalConv3d, Stride
from dit_video.nn.group_norm import GroupNorm
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

_KERNEL = (1, 3, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(VAEConfig):
    """Sizes of an `AutoencoderKL`.

    widths: channels of each level of the encoder, finest first; the decoder mirrors it. Each level but the last halves
        rows and columns.
    num_blocks: residual blocks per level of the encoder; the decoder has one more.
    num_groups: of channels, that are normalised together.
    latent_projection: whether moments and latents pass a pointwise convolution of their own (SD 1, 2 and XL).
    middle_attention: whether the lowest level has attention.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    num_groups: int = 32
    latent_channels: int = 4
    latent_projection: bool = True
    middle_attention: bool = True

    def __post_init__(self):
        at_least(self, 1, "num_blocks", "num_groups", "latent_channels")
        if not self.widths or any(width < 1 or width % self.num_groups for width in self.widths):
            raise ValueError(
                f"AutoencoderKLConfig.widths={self.widths}: must be multiples of num_groups={self.num_groups}"
            )

    @property
    def compression(self) -> Stride:
        cell = 2 ** (len(self.widths) - 1)
        return 1, cell, cell

    def build(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> "AutoencoderKL":
        return AutoencoderKL(self, dtype=dtype, rngs=rngs)


# The VAEs of SD 1 and 2 and of SDXL are of one structure, as are those of SD 3 and FLUX.1: only their weights and the
# statistics of their latents differ.
SD_VAE = SDXL_VAE = AutoencoderKLConfig()
SD3_VAE = FLUX_VAE = AutoencoderKLConfig(latent_channels=16, latent_projection=False)


class AutoencoderKL(LeveledVAE):
    """The network of an `AutoencoderKLConfig`."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        widths, c = config.widths, config.latent_channels
        deepest = len(widths) - 1
        shared = {"dtype": dtype, "rngs": rngs}
        norm = functools.partial(GroupNorm, num_groups=config.num_groups, rngs=rngs)

        def blocks(in_channels: int, out_channels: int, number: int) -> list[ResidualConvs]:
            inputs = [in_channels] + [out_channels] * (number - 1)
            return [ResidualConvs(size, out_channels, norm=norm, kernel=_KERNEL, **shared) for size in inputs]

        def middle() -> Middle:
            attention = FrameAttention(widths[-1], norm=norm, **shared) if config.middle_attention else None
            return Middle(blocks(widths[-1], widths[-1], 2), attention)

        down, inputs = [], widths[0]
        for level, width in enumerate(widths):
            resample = DownsampleRows(width, **shared) if level < deepest else None
            down.append(Level(blocks(inputs, width, config.num_blocks), resample))
            inputs = width
        self.encoder = Encoder(
            CausalConv3d(3, widths[0], _KERNEL, **shared),
            down,
            middle(),
            Head(widths[-1], 2 * c, norm=norm, kernel=_KERNEL, **shared),
        )
        up, inputs = [], widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            resample = UpsampleRows(width, width, **shared) if level > 0 else None
            up.append(Level(blocks(inputs, width, config.num_blocks + 1), resample))
            inputs = width
        self.decoder = Decoder(
            CausalConv3d(c, widths[-1], _KERNEL, **shared),
            middle(),
            up,
            Head(widths[0], 3, norm=norm, kernel=_KERNEL, **shared),
        )
        pointwise = functools.partial(CausalConv3d, kernel=(1, 1, 1), out_axis="data_channels", **shared)
        self.moments_projection = pointwise(2 * c, 2 * c) if config.latent_projection else None
        self.latents_projection = pointwise(c, c) if config.latent_projection else None

    def encode_stream(self, pixels: Pixels, cache: tuple | None = None) -> tuple[Moments, tuple]:
        self.config.check_pixels(pixels.shape[1:4], first=cache is None)
        x, _ = self.encoder(_pictures(pixels))
        if self.moments_projection is not None:
            x, _ = self.moments_projection(x)
        return x.reshape(*pixels.shape[:2], *x.shape[2:]).astype(jnp.float32), ()

    def decode_stream(self, z: Float[Array, "B t h w c"], cache: tuple | None = None) -> tuple[Pixels, tuple]:
        x, _ = self.decoder(self._decoder_input(z))
        return x.reshape(*z.shape[:2], *x.shape[2:]).astype(jnp.float32), ()

    def layers(self, pixels: Pixels, z: Float[Array, "B t h w c"]) -> dict[str, Array]:
        return layers_of(self, _pictures(pixels), self._decoder_input(z))

    def _decoder_input(self, z: Float[Array, "B t h w c"]) -> Float[Array, "B_t 1 h w c"]:
        x = _pictures(z)
        return x if self.latents_projection is None else self.latents_projection(x)[0]


def _pictures(x: Float[Array, "B T H W C"]) -> Float[Array, "B_T 1 H W C"]:
    """Reshapes every frame to a clip of its own, so that norms see one frame."""
    return x.reshape(-1, 1, *x.shape[2:])
