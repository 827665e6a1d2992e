"""Interface of video VAEs: config and network, with streaming encode and decode.

A VAE here is causal in time: frame 0 stands alone, later frames come in cells, and a clip that is streamed gives what
the whole clip gives. One that encodes frame by frame is the case of cells of one frame.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Moments, Pixels
from dit_video.nn.conv import Stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig(abc.ABC):
    """Config of a VAE, from which `build` makes the network.

    latent_channels: c of the latents; moments have 2c channels.
    """

    latent_channels: int

    @property
    @abc.abstractmethod
    def compression(self) -> Stride:
        """Pixels per latent cell in (frames, rows, columns)."""

    @property
    def frame_group(self) -> int:
        """Number of latent frames after the first that the network takes at once."""
        return 1

    @abc.abstractmethod
    def build(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> "VAE":
        """The network with fresh parameters, which are float32; convolutions run in `dtype`."""

    def latent_shape(self, shape: Stride) -> Stride:
        """(t, h, w) of the latents of a whole clip of (T, H, W); ValueError where it does not fit."""
        self.check_pixels(shape)
        frames, rows, columns = self.compression
        return 1 + (shape[0] - 1) // frames, shape[1] // rows, shape[2] // columns

    def first_pixel_frame(self, latent_frame: Any) -> Any:
        """Number of the first frame of pixels that latent frames, numbers or an array of such, are made of."""
        return (latent_frame > 0) * (1 + (latent_frame - 1) * self.compression[0])

    def check_pixels(self, shape: tuple[int, ...], *, first: bool = True) -> None:
        """Raises ValueError unless a chunk of (T, H, W) pixels, `first` of its clip or a later one, fits."""
        frames, rows, columns = self.compression
        check_size(shape, (frames * self.frame_group, rows, columns), first=first)

    def check_latents(self, num_frames: int, *, first: bool = True) -> None:
        """Raises ValueError unless a chunk of so many latent frames fits."""
        start = 1 if first else 0
        if num_frames < 1 or (num_frames - start) % self.frame_group:
            rule = f"{start} + {self.frame_group}k" if first else f"a multiple of {self.frame_group}"
            raise ValueError(f"{num_frames} latent frames: must be {rule} for {type(self).__name__}")


class VAE(nnx.Module):
    """Video VAE: pixels [B 1+s*k H W 3] -> moments [B 1+k h w 2c]; latents [B 1+k h w c] -> pixels.

    Moments and pixels come out as float32. A cache is a pytree of arrays of static shapes; None begins a clip.
    """

    config: VAEConfig
    dtype: DTypeLike

    def encode(self, pixels: Pixels) -> Moments:
        """Encodes whole clips, T = 1 + s * k, to moments."""
        return self.encode_stream(pixels)[0]

    def decode(self, z: Float[Array, "B t h w c"]) -> Pixels:
        """Decodes unwhitened latents of whole clips to pixels; not clipped to [-1, 1]."""
        return self.decode_stream(z)[0]

    @abc.abstractmethod
    def encode_stream(self, pixels: Pixels, cache: tuple | None = None) -> tuple[Moments, tuple]:
        """Encodes a chunk: the first (`cache=None`) of 1 + s * k frames, later ones of s * k.

        Raises ValueError where frames, rows or columns do not fill latent cells.
        """

    @abc.abstractmethod
    def decode_stream(self, z: Float[Array, "B t h w c"], cache: tuple | None = None) -> tuple[Pixels, tuple]:
        """Decodes t latent frames: a first chunk (`cache=None`) to 1 + s * (t - 1), a later one to s * t."""


class Autoencoded(NamedTuple):
    """Output of a VAE in training: pixels from a posterior sample, and the posterior's moments."""

    reconstruction: Pixels
    moments: Moments


def check_size(size: tuple[int, ...], compression: Stride, *, first: bool = True) -> None:
    """Raises ValueError unless a chunk of `size` (frames, rows, columns) is made of whole latent cells."""
    offset = 1 if first else 0
    for axis, length, step, start in zip(("frames", "rows", "columns"), size, compression, (offset, 0, 0)):
        below = start + (length - start) // step * step
        if length < max(start, 1) or length != below:
            smallest = start if start else step
            nearest = sorted({max(below, smallest), max(below + step, smallest)})
            rule = f"{start} + {step}k" if start else f"a multiple of {step}"
            raise ValueError(
                f"video of (frames, rows, columns) = {tuple(size)}: {axis}={length} must be {rule} for a VAE "
                f"that takes {compression} at once; nearest are {' and '.join(map(str, nearest))}"
            )


def posterior(
    moments: Float[Array, "*cells m"],
) -> tuple[Float[Array, "*cells c"], Float[Array, "*cells c"]]:
    """Mean and log-variance of q(z | pixels), float32; the log-variance is clamped to [-30, 20]."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def sample_posterior(moments: Float[Array, "*cells m"], rng: jax.Array) -> Float[Array, "*cells c"]:
    """z = mean + exp(logvar / 2) * eps, unwhitened (Kingma & Welling 2014, section 2.4)."""
    mean, logvar = posterior(moments)
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape)
