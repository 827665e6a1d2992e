"""Checksums (digests) of arrays independent of sharding and layout, of whole sets of weights, and of metadata.

An array has its digest in one of two forms, and so does a set of weights have its name. Today's is a text of 16
hexadecimal digits (two sums of mixed words), and names begin with "2:". Records of before hold one sum as a number,
and names without that: both are read here, and what a record is compared with is computed in the form that it has.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

Recorded = int | str
"""Digest of an array as records hold it."""

FORM = "2:"
"""Beginning of names of weights in today's form."""

_ODD = 0x9E3779B1
# Constants of the finalizer of MurmurHash3.
_MIX = (0x85EBCA6B, 0xC2B2AE35)
_SHIFTS = (15, 13, 16)
# Words that are mixed at once: with their positions they fit a core's cache.
_CHUNK = 2**15


def digest_leaves(tree: Any) -> Any:
    """Digest of each array, independent of its sharding: two sums over all its words, mixed with their positions.

    The word w at the row-major index p becomes t = w ^ (p * odd), then t ^= t >> 15, t *= M1, t ^= t >> 13, of which
    the first is the sum, then t *= M2, t ^= t >> 16, of which the second is; all modulo 2^32. Each is a bijection of w,
    so a change of one word changes both sums for certain; changes of many cancel in both by chance alone, for the
    mixing is not linear. Numbers of eight bytes are two words.
    """
    return jax.tree.map(_digest, tree)


def as_text(digest: Array | np.ndarray) -> str:
    """A digest as records hold it: 16 hexadecimal digits."""
    first, second = (int(value) for value in digest)
    return f"{first:08x}{second:08x}"


def texts_of(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Digests of arrays on their device, as records hold them."""
    return {name: as_text(digest) for name, digest in _on_host(_digests, arrays).items()}


def sums_of(arrays: Mapping[str, Array]) -> dict[str, int]:
    """Digests of arrays on their device, as records of before hold them."""
    return {name: int(digest) for name, digest in _on_host(_weighted_sums, arrays).items()}


def differing(arrays: Mapping[str, Array], recorded: Mapping[str, Any]) -> list[str]:
    """Names of arrays whose digest is not the one recorded, in whichever form; computed on their device."""
    before = {name: x for name, x in arrays.items() if _is_of_before(recorded.get(name))}
    today = {name: x for name, x in arrays.items() if name not in before}
    actual = {**sums_of(before), **texts_of(today)}
    return [name for name in arrays if recorded.get(name) != actual[name]]


def has_digest(x: np.ndarray, recorded: Any) -> bool:
    """Whether an array has the digest recorded, in whichever form; computed on this host."""
    start = (0,) * x.ndim
    if _is_of_before(recorded):
        return weighted_sum_part(x, start) == recorded
    return as_text(digest_part(x, start, x.shape)) == recorded


def digest_part(part: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> UInt32[np.ndarray, "2"]:
    """Contribution of a part of an array to its digest, which is the sum over all parts, modulo 2^32.

    It is computed a chunk at a time, so that no temporary is as large as the part.

    Args:
        start: where in the whole array, along each axis, the part begins.
        shape: of the whole array.
    """
    words, start, shape = _words(part, start, shape)
    total = np.zeros(2, np.uint32)
    for index, first in _chunks(words.shape, start):
        chunk = words[index]
        positions = _positions(first, chunk.shape, shape)
        mixed = np.array(chunk, np.uint32, order="C").reshape(positions.shape)
        mixed ^= positions
        total += _sums(mixed, positions)
    return total


def weights_digest(params: Mapping[str, Array]) -> str:
    """Name of a set of weights: SHA-256 over each parameter's name, shape, dtype and digest."""
    digests = texts_of(params)
    return name_weights({n: (x.shape, str(x.dtype), digests[n]) for n, x in params.items()})


def name_as(recorded: str | None, params: Mapping[str, Array]) -> str:
    """Name of a set of weights in the form of a recorded one, to be compared with it; today's where that is None."""
    if recorded is None or not is_name_of_before(recorded):
        return weights_digest(params)
    digests = sums_of(params)
    return name_weights({n: (x.shape, str(x.dtype), digests[n]) for n, x in params.items()})


def is_name_of_before(recorded: str) -> bool:
    """Whether a name of weights is in the form that records of before have."""
    return not recorded.startswith(FORM)


def name_weights(arrays: Mapping[str, tuple[tuple[int, ...], str, Recorded]]) -> str:
    """Name of weights from the known shape, dtype and digest of every parameter, in the form of the digests."""
    lines = [[name, list(shape), dtype, digest] for name, (shape, dtype, digest) in sorted(arrays.items())]
    of_before = all(_is_of_before(line[-1]) for line in lines)
    return ("" if of_before else FORM) + hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of key order and spacing."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def weighted_sum_leaves(tree: Any) -> Any:
    """Digest of each array as records of before hold it: a sum of words, each times an odd number of its position.

    A change of one word by d != 0 changes the sum by d times a unit modulo 2^32. Changes of many words may cancel: an
    even number of flipped sign bits always does.
    """
    return jax.tree.map(_weighted_sum, tree)


def weighted_sum_part(part: np.ndarray, start: Sequence[int]) -> int:
    """Contribution of a part of an array to its weighted sum (`weighted_sum_leaves`).

    The same sum, but taken along one axis at a time, so that no temporary is as large as the part.
    """
    words, start, _ = _words(part, start, part.shape)
    words = words.astype(np.uint32, copy=False)
    total = 3 * int(words.sum(dtype=np.uint32))
    for axis, first in enumerate(start):
        rest = tuple(other for other in range(words.ndim) if other != axis)
        position = np.arange(first, first + words.shape[axis], dtype=np.uint32) * _odd(axis)
        total += 2 * int((words.sum(axis=rest, dtype=np.uint32) * position).sum(dtype=np.uint32))
    return total % 2**32


def _is_of_before(recorded: Any) -> bool:
    return isinstance(recorded, int) and not isinstance(recorded, bool)


def _digest(x: Array) -> UInt32[Array, "2"]:
    mixed = _words_on_device(x)
    stride = _ODD
    positions = jnp.zeros((), jnp.uint32)
    for axis in reversed(range(mixed.ndim)):
        positions = positions + jax.lax.broadcasted_iota(jnp.uint32, mixed.shape, axis) * np.uint32(stride)
        stride = stride * mixed.shape[axis] % 2**32
    mixed = mixed ^ positions
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * np.uint32(_MIX[0])
    mixed = mixed ^ (mixed >> _SHIFTS[1])
    first = jnp.sum(mixed, dtype=jnp.uint32)
    mixed = mixed * np.uint32(_MIX[1])
    second = jnp.sum(mixed ^ (mixed >> _SHIFTS[2]), dtype=jnp.uint32)
    return jnp.stack([first, second])


def _weighted_sum(x: Array) -> UInt32[Array, ""]:
    words = _words_on_device(x)
    position = jnp.ones((), jnp.uint32)
    for axis in range(words.ndim):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * _odd(axis)
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


def _words_on_device(x: Array) -> UInt32[Array, "..."]:
    """The bits of an array as words; numbers of eight bytes have one more axis, of two words."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)


_digests: Callable[[dict[str, Array]], dict[str, Array]] = jax.jit(digest_leaves)
_weighted_sums: Callable[[dict[str, Array]], dict[str, Array]] = jax.jit(weighted_sum_leaves)


def _on_host(compute: Callable[[dict[str, Array]], dict[str, Array]], arrays: Mapping[str, Array]) -> dict[str, Any]:
    return jax.device_get(compute(dict(arrays))) if arrays else {}


def _odd(axis: int) -> np.uint32:
    return np.uint32((_ODD * (axis + 1) * (axis + 2) + 1) & 0xFFFFFFFF)


def _words(
    part: np.ndarray, start: Sequence[int], shape: Sequence[int]
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """A part as words of its own size, without a copy where that can be, and its place; as `_words_on_device`."""
    part = np.asarray(part)
    if part.dtype.itemsize < 8:
        return part.view(f"u{part.dtype.itemsize}"), tuple(start), tuple(shape)
    words = np.ascontiguousarray(part)[..., None].view(np.uint32)
    return words, (*start, 0), (*shape, 2)


def _chunks(shape: Sequence[int], start: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], tuple[int, ...]]]:
    """Boxes of at most _CHUNK words that make up an array, each with its place in the whole one."""
    lengths, inner = list(shape), math.prod(shape)
    for axis, length in enumerate(shape):
        if inner <= _CHUNK:
            break
        inner //= length
        lengths[axis] = max(1, min(length, _CHUNK // inner))
    for first in itertools.product(*(range(0, size, max(1, length)) for size, length in zip(shape, lengths))):
        index = tuple(slice(begin, begin + length) for begin, length in zip(first, lengths))
        yield index, tuple(map(sum, zip(first, start)))


def _positions(start: Sequence[int], lengths: Sequence[int], shape: Sequence[int]) -> UInt32[np.ndarray, "..."]:
    """Row-major indices times _ODD of a box in an array of `shape`; axes are joined where their words lie together."""
    first, stride, runs = 0, 1, list[tuple[int, int]]()
    for begin, length, size in reversed([*zip(start, lengths, shape)]):
        first += begin * stride
        # What is before it is filled up, so that its next word follows on the last.
        if runs and runs[-1][0] * runs[-1][1] == stride:
            runs[-1] = (runs[-1][0] * length, runs[-1][1])
        else:
            runs.append((length, stride))
        stride *= size
    positions = np.full((1,) * len(runs), first * _ODD % 2**32, np.uint32)
    for axis, (length, stride) in enumerate(reversed(runs)):
        steps = np.arange(length, dtype=np.uint32) * np.uint32(stride * _ODD % 2**32)
        positions = positions + steps.reshape([-1 if other == axis else 1 for other in range(len(runs))])
    return positions


def _sums(mixed: UInt32[np.ndarray, "..."], spare: UInt32[np.ndarray, "..."]) -> UInt32[np.ndarray, "2"]:
    """Both sums of words that have their positions in them; writes over both arguments."""

    def fold(shift: int) -> None:
        np.right_shift(mixed, np.uint32(shift), out=spare)
        np.bitwise_xor(mixed, spare, out=mixed)

    fold(_SHIFTS[0])
    np.multiply(mixed, np.uint32(_MIX[0]), out=mixed)
    fold(_SHIFTS[1])
    first = mixed.sum(dtype=np.uint32)
    np.multiply(mixed, np.uint32(_MIX[1]), out=mixed)
    fold(_SHIFTS[2])
    return np.array([first, mixed.sum(dtype=np.uint32)])
