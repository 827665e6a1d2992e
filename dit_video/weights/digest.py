"""Digests: a number per array that no layout changes, one name for a set of weights, and a seal on metadata."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt32


def digest_leaves(tree: Any) -> Any:
    """A number per array that no layout changes and any single flipped bit does: a weighted sum of raw words.

    Weights are odd, so a change of one word by d != 0 changes the sum by d times a unit modulo 2^32.
    """
    return jax.tree.map(_digest, tree)


def weights_digest(params: Mapping[str, Array]) -> str:
    """One name for a set of weights: SHA-256 of each parameter's name, shape, dtype and digest."""
    digests = jax.device_get(jax.jit(digest_leaves)(dict(params)))
    return name_weights({n: (x.shape, str(x.dtype), int(digests[n])) for n, x in params.items()})


def name_weights(arrays: Mapping[str, tuple[tuple[int, ...], str, int]]) -> str:
    """`weights_digest` where shape, dtype and digest of every parameter are known already."""
    lines = [[name, list(shape), dtype, digest] for name, (shape, dtype, digest) in sorted(arrays.items())]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order and the spacing it is written in."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def digest_part(part: Float32[np.ndarray, "..."], start: Sequence[int]) -> int:
    """What a part of an array adds to its digest, which is the sum of what all of them add, modulo 2^32.

    The same sum, but taken along one axis at a time, so that nothing of the size of the part is held.

    Args:
        start: where in the whole array, along each axis, the part begins.
    """
    words = np.asarray(part.view(np.uint32))
    total = 3 * int(words.sum(dtype=np.uint32))
    for axis, first in enumerate(start):
        rest = tuple(other for other in range(words.ndim) if other != axis)
        position = np.arange(first, first + words.shape[axis], dtype=np.uint32) * _odd(axis)
        total += 2 * int((words.sum(axis=rest, dtype=np.uint32) * position).sum(dtype=np.uint32))
    return total % 2**32


def _digest(x: Array) -> UInt32[Array, ""]:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    position = jnp.ones((), jnp.uint32)
    for axis in range(words.ndim):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * _odd(axis)
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


def _odd(axis: int) -> np.uint32:
    return np.uint32((0x9E3779B1 * (axis + 1) * (axis + 2) + 1) & 0xFFFFFFFF)
