"""Sums over tokens and means over features: on CPUs as products of matrices, elsewhere as they stand.

XLA's CPU compiler fuses a sum with what it sums up, into loops that are slow; a product is a call of its own. The
result is the same up to the order in which numbers are added.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.distributed.sharding import platform


def mean_over_features(x: Float[Array, "*batch features"]) -> Float[Array, "*batch 1"]:
    """The mean over the last axis, which stays."""
    if platform() != "cpu":
        return jnp.mean(x, axis=-1, keepdims=True)
    return x @ jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)


def times(x: Float[Array, "B N *f D"], vector: Float[Array, "B 1 *f D"]) -> Float[Array, "B N *f D"]:
    """x * vector, whose gradient for the vector is a sum over N."""
    return _times(x, vector) if platform() == "cpu" else x * vector


def plus(x: Float[Array, "B N *f D"], vector: Float[Array, "B 1 *f D"]) -> Float[Array, "B N *f D"]:
    """x + vector, likewise."""
    return _plus(x, vector) if platform() == "cpu" else x + vector


@jax.custom_vjp
def _times(x: Array, vector: Array) -> Array:
    return x * vector


_times.defvjp(
    lambda x, vector: (x * vector, (x, vector)),
    lambda kept, d_out: ((d_out * kept[1]).astype(kept[0].dtype), _sum_to(d_out * kept[0], kept[1])),
)


@jax.custom_vjp
def _plus(x: Array, vector: Array) -> Array:
    return x + vector


_plus.defvjp(
    # Of the arguments their types alone are needed.
    lambda x, vector: (x + vector, (x[:0], vector)),
    lambda kept, d_out: (d_out.astype(kept[0].dtype), _sum_to(d_out, kept[1])),
)


def _sum_to(x: Float[Array, "B N *f D"], like: Float[Array, "B 1 *f D"]) -> Float[Array, "B 1 *f D"]:
    """The sum over N."""
    flat = x.reshape(*x.shape[:2], -1)
    ones = jnp.ones((len(x), 1, x.shape[1]), x.dtype)
    return jnp.matmul(ones, flat, preferred_element_type=jnp.float32).reshape(like.shape).astype(like.dtype)
