"""Checksums (digests) of arrays independent of sharding and layout, of whole sets of weights, and of metadata."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


def digest_leaves(tree: Any) -> Any:
    """Checksum of each array, independent of its sharding: a weighted sum of raw words, changed by any flipped bit.

    Weights are odd, so a change of one word by d != 0 changes the sum by d times a unit modulo 2^32.
    """
    return jax.tree.map(_digest, tree)


def weights_digest(params: Mapping[str, Array]) -> str:
    """Digest of a set of weights: SHA-256 over each parameter's name, shape, dtype and checksum."""
    digests = jax.device_get(jax.jit(digest_leaves)(dict(params)))
    return name_weights({n: (x.shape, str(x.dtype), int(digests[n])) for n, x in params.items()})


def name_weights(arrays: Mapping[str, tuple[tuple[int, ...], str, int]]) -> str:
    """`weights_digest` from the known shape, dtype and checksum of every parameter."""
    lines = [[name, list(shape), dtype, digest] for name, (shape, dtype, digest) in sorted(arrays.items())]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of key order and spacing."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def digest_part(part: np.ndarray, start: Sequence[int]) -> int:
    """Contribution of a part of an array to its checksum, which is the sum over all parts, modulo 2^32.

    The same sum, but taken along one axis at a time, so that no temporary is as large as the part.

    Args:
        start: where in the whole array, along each axis, the part begins.
    """
    words = np.asarray(part).view(f"u{part.dtype.itemsize}").astype(np.uint32, copy=False)
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
