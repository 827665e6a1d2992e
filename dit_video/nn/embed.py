"""Timestep and class embeddings, from which the modulation of transformer blocks is made."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.distributed.sharding import constrain
from dit_video.nn.linear import linear

NUM_TIMESTEPS = 1000
"""The timestep that a network sees for the noise level t in [0, 1] is NUM_TIMESTEPS * t, as other libraries count."""


def sinusoid(
    t: Float[Array, "B #t"], features: int, *, offset: int = 0, frequency_shift: int = 0
) -> Float[Array, "B #t F"]:
    """Sinusoidal timestep features of the noise level t in [0, 1], scaled to DiT's 0..1000 (2212.09748).

    Args:
        offset: added to the timestep.
        frequency_shift: frequencies fall from 1 to 1/10000, which would be the next after the last; with 1 it is the
            last.
    """
    half = features // 2
    ladder = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - frequency_shift))
    phase = (NUM_TIMESTEPS * t.astype(jnp.float32)[..., None] + offset) * ladder
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class VectorEmbedding(nnx.Module):
    """MLP embedding of a vector for each clip or frame to width D: linear, SiLU, linear."""

    def __init__(self, features: int, hidden_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.up = linear(features, hidden_size, (None, "embed"), rngs=rngs, dtype=dtype, init=normal)
        self.down = linear(hidden_size, hidden_size, ("embed", "mlp"), rngs=rngs, dtype=dtype, init=normal)

    def __call__(self, x: Float[Array, "*b P"], /) -> Float[Array, "*b D"]:
        return self.down(nnx.silu(self.up(x)))


class TimeEmbedding(VectorEmbedding):
    """Timestep embedding: noise level -> vector of width D, per clip or per frame, from sinusoidal features."""

    num_frequencies = 256

    def __init__(
        self, hidden_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs, offset: int = 0, frequency_shift: int = 0
    ):
        """`offset` and `frequency_shift` as in `sinusoid`."""
        super().__init__(self.num_frequencies, hidden_size, dtype=dtype, rngs=rngs)
        self.offset, self.frequency_shift = offset, frequency_shift

    def __call__(self, t: Float[Array, "B #t"], /) -> Float[Array, "B #t D"]:
        shift = self.frequency_shift
        return super().__call__(sinusoid(t, self.num_frequencies, offset=self.offset, frequency_shift=shift))


class LabelEmbedding(nnx.Module):
    """Class-label embedding: label -> vector of width D; the row after the last class is the null label.

    A label beyond that is NaN, which ends a run, and not the nearest row.
    """

    def __init__(self, num_classes: int, hidden_size: int, *, rngs: nnx.Rngs):
        init = nnx.with_metadata(nnx.initializers.normal(0.02), axes=("vocab", "embed"))
        self.table = nnx.Param(
            init(rngs.params(), (num_classes + 1, hidden_size), jnp.float32), axes=("vocab", "embed")
        )

    def __call__(self, label: Int[Array, "B"]) -> Float[Array, "B D"]:
        # Looked up in the whole table: rows that are split over devices would be brought together one by one.
        return constrain(self.table[...], None, None).at[label].get(mode="fill", fill_value=jnp.nan)
