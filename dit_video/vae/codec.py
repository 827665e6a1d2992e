"""Latent codec: uint8 video <-> VAE moments <-> whitened latents, chunked in time and tiled in space."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from dit_video.arrays import Latents, Moments, Pixels, Video
from dit_video.nn.conv import in_chunks
from dit_video.vae.vae import VAE, posterior, sample_posterior


class LatentStatistic(nnx.Variable):
    """Per-channel statistic of unwhitened latents: measured over the training set, not trained."""


class LatentCodec(nnx.Module):
    """Latent codec: a trained VAE with the mean and standard deviation of its latents.

    Long clips and large frames go through in parts: `chunk` latent frames at a time (exact: the VAE is
    causal and its caches carry the past) and square tiles of `tile` latent cells (approximate: a convolution
    does not see beyond its tile, nor does a norm or attention over rows and columns; neighbouring tiles overlap by a
    quarter and are blended linearly). Both are loops inside the compiled program, so activations are those of one
    part. Methods are pure; jit them.

    Without statistics the codec whitens with mean 0 and standard deviation 1.
    """

    def __init__(
        self,
        vae: VAE,
        mean: Float[Array | np.ndarray, " c"] | None = None,
        std: Float[Array | np.ndarray, " c"] | None = None,
    ):
        channels = vae.config.latent_channels
        self.vae = vae
        self.mean = LatentStatistic(jnp.asarray(np.zeros(channels) if mean is None else mean, jnp.float32))
        self.std = LatentStatistic(jnp.asarray(np.ones(channels) if std is None else std, jnp.float32))

    def moments(self, video: Video, *, tile: int | None = None, chunk: int | None = None) -> Moments:
        """Encodes uint8 clips, T = 1 + s * k, to posterior mean and log-variance; see the class for chunks and tiles.

        Raises ValueError where frames, rows or columns do not fill latent cells.
        """
        config = self.vae.config
        config.check_pixels(video.shape[1:4])
        frames = config.compression[0]

        def encode(x: Array) -> Array:
            if chunk is None:
                return self.vae.encode(to_pixels(x))
            return in_chunks(
                lambda part, cache: self.vae.encode_stream(to_pixels(part), cache),
                x,
                first=1 + frames * self._whole(chunk),
                later=frames * chunk,
            )[0]

        video = jnp.asarray(video)
        if tile is None:
            return encode(video)
        return in_tiles(encode, video, tile, cells_in=config.compression[1:], cells_out=(1, 1))

    def whiten(self, moments: Moments, rng: jax.Array | None = None) -> Latents:
        """Whitens moments to latents of zero mean and unit variance: a posterior sample; without `rng` its mean."""
        z = posterior(moments)[0] if rng is None else sample_posterior(moments, rng)
        return (z - self.mean[...]) / self.std[...]

    def unwhiten(self, latents: Latents) -> Float[Array, "B t h w c"]:
        """Inverse of `whiten`: latents for the VAE's decoder."""
        return latents.astype(jnp.float32) * self.std[...] + self.mean[...]

    def decode(
        self, latents: Latents, *, tile: int | None = None, chunk: int | None = None
    ) -> UInt8[Array, "B T H W C"]:
        """Decodes whitened latents to uint8 clips of 1 + s * (t - 1) frames; see the class for chunks and tiles."""

        def decode(z: Array) -> Array:
            if chunk is None:
                return self.vae.decode(z)
            return in_chunks(self.vae.decode_stream, z, first=1 + self._whole(chunk), later=chunk)[0]

        z = self.unwhiten(latents)
        if tile is None:
            return to_video(decode(z))
        return to_video(in_tiles(decode, z, tile, cells_in=(1, 1), cells_out=self.vae.config.compression[1:]))

    def _whole(self, chunk: int) -> int:
        """Checks that the VAE can take `chunk` latent frames at once; else ValueError."""
        group = self.vae.config.frame_group
        if chunk < 1 or chunk % group:
            raise ValueError(
                f"chunk={chunk}: must be a multiple of {group}, the latent frames that the VAE takes at once"
            )
        return chunk


def to_pixels(video: Video) -> Pixels:
    """uint8 0..255 -> float32 [-1, 1]."""
    return jnp.asarray(video).astype(jnp.float32) / 127.5 - 1.0


def to_video(pixels: Pixels) -> UInt8[Array, "B T H W C"]:
    """float [-1, 1] -> uint8 0..255, rounded to nearest; what lies outside is clipped."""
    return jnp.clip(jnp.round((pixels.astype(jnp.float32) + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def latent_statistics(
    moments: Iterable[Float[Array | np.ndarray, "... m"]],
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Per-channel mean and standard deviation of posterior samples, over all arrays of a stream, in float64.

    By the law of total variance var(z) = var(mean) + E[exp(logvar)]: nothing is sampled. Batches are merged
    by Chan, Golub & LeVeque (1979), so that a mean large against the deviation costs no precision.

    Raises ValueError where the stream is empty.
    """
    count, mean, scatter, noise = 0, np.zeros(()), np.zeros(()), np.zeros(())
    for batch in moments:
        batch_mean, logvar = (np.asarray(part, np.float64) for part in posterior(jnp.asarray(batch)))
        axes = tuple(range(batch_mean.ndim - 1))
        n = batch_mean[..., 0].size
        centre = batch_mean.mean(axis=axes)
        delta = centre - mean
        scatter = scatter + np.square(batch_mean - centre).sum(axis=axes)
        scatter = scatter + np.square(delta) * (count * n / (count + n))
        noise = noise + np.exp(logvar).sum(axis=axes)
        count += n
        mean = mean + delta * (n / count)
    if count == 0:
        raise ValueError("latent_statistics: no moments given; the training set is empty")
    return mean, np.sqrt((scatter + noise) / count)


def in_tiles(
    apply: Callable[[Array], Array],
    x: Array,
    tile: int,
    *,
    cells_in: tuple[int, int],
    cells_out: tuple[int, int],
) -> Array:
    """Applies `apply` to overlapping tiles of `x` [B T H W C] and blends the results linearly.

    A latent cell is `cells_in` rows and columns of the input and `cells_out` of the output. Weights rise
    linearly from a tile's edge over the overlap and are normalised to sum to one. A single tile that covers
    all is applied as it is.
    """
    if tile < 2:
        raise ValueError(f"tile={tile}: must be at least 2 latent cells")
    size = tuple(length // cell for length, cell in zip(x.shape[2:4], cells_in))
    sides = tuple(min(tile, length) for length in size)
    if sides == size:
        return apply(x)
    starts = [tile_starts(length, side) for length, side in zip(size, sides)]
    ramps = [tile_ramp(side, cell) for side, cell in zip(sides, cells_out)]
    weight = jnp.asarray(ramps[0][:, None, None] * ramps[1][None, :, None], jnp.float32)
    total = []
    for axis in (0, 1):
        along = np.zeros(size[axis] * cells_out[axis])
        for start in starts[axis]:
            along[start * cells_out[axis] :][: len(ramps[axis])] += ramps[axis]
        total.append(along)
    origins = jnp.asarray([(row, column) for row in starts[0] for column in starts[1]], jnp.int32)

    def one(origin: Int[Array, "2"]) -> Array:
        row, column = origin[0] * cells_in[0], origin[1] * cells_in[1]
        shape = (*x.shape[:2], sides[0] * cells_in[0], sides[1] * cells_in[1], x.shape[4])
        return apply(jax.lax.dynamic_slice(x, (0, 0, row, column, 0), shape))

    def add(canvas: Array, origin: Int[Array, "2"]) -> tuple[Array, None]:
        y = one(origin) * weight
        corner = (0, 0, origin[0] * cells_out[0], origin[1] * cells_out[1], 0)
        there = jax.lax.dynamic_slice(canvas, corner, y.shape)
        return jax.lax.dynamic_update_slice(canvas, there + y, corner), None

    tile_shape = jax.eval_shape(one, origins[0]).shape
    canvas = jnp.zeros((*tile_shape[:2], len(total[0]), len(total[1]), tile_shape[-1]), jnp.float32)
    canvas, _ = jax.lax.scan(add, canvas, origins)
    return canvas / jnp.asarray(total[0][:, None, None] * total[1][None, :, None], jnp.float32)


def tile_starts(size: int, tile: int) -> list[int]:
    """First cells of the fewest tiles that cover `size` cells and overlap by at least a quarter of a tile."""
    if size == tile:
        return [0]
    overlap = max(1, tile // 4)
    count = 1 + -(-(size - tile) // (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def tile_ramp(tile: int, cell: int) -> Float[np.ndarray, " n"]:
    """Weights along one axis of a tile, in output positions: from 0 at either edge to 1 over the overlap."""
    position = np.arange(tile * cell) + 0.5
    return np.minimum(1.0, np.minimum(position, tile * cell - position) / (max(1, tile // 4) * cell))
