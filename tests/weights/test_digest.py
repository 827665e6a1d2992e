"""Digests of arrays: any damage changes them, no layout does; and the name that weights have by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.weights.digest import (
    as_text,
    differing,
    digest_leaves,
    digest_part,
    has_digest,
    name_as,
    name_weights,
    seal,
    texts_of,
    weighted_sum_leaves,
    weighted_sum_part,
    weights_digest,
)

MESHES = [small_mesh(1), small_mesh(8, data=8), small_mesh(8, fsdp=4, tensor=2)]

ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "bfloat16": np.random.default_rng(0).normal(size=(7,)).astype(jnp.bfloat16),
    "int32": np.int32(-2),
    "uint8": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
}


of_each = jax.jit(jax.vmap(digest_leaves))


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_any_single_bit_changes_both_sums_of_the_digest(x):
    raw = np.frombuffer(np.asarray(x).tobytes(), np.uint8)
    flipped = np.repeat(raw[None], 8 * len(raw), axis=0)
    for bit in range(8 * len(raw)):
        flipped[bit, bit // 8] ^= 1 << bit % 8
    versions = np.concatenate([raw[None], flipped]).view(np.asarray(x).dtype).reshape(-1, *np.shape(x))
    digests = np.asarray(of_each(versions))
    assert not np.any(digests[1:] == digests[0])


WORDS = np.random.default_rng(0).standard_normal(256).astype(np.float32).view(np.uint32)


def flipped(words, bits):
    """`words` with these bits flipped, of (row, position, bit)."""
    for row, position, bit in bits:
        words[row, position] ^= np.uint32(1 << bit)


# Of damage: how it changes copies of WORDS, one in each row. Of the weighted sum of before, most are silent.
DAMAGES = {
    "two sign bits": lambda w, rng: flipped(
        w, [(r, p, 31) for r in range(len(w)) for p in rng.choice(w.shape[1], 2, False)]
    ),
    "64 sign bits beside each other": lambda w, rng: flipped(
        w, [(r, p, 31) for r in range(len(w)) for p in int(rng.integers(192)) + np.arange(64)]
    ),
    "any two bits": lambda w, rng: flipped(
        w, [(r, p, int(rng.integers(32))) for r in range(len(w)) for p in rng.choice(w.shape[1], 2, False)]
    ),
    "one high bit of two words": lambda w, rng: flipped(
        w, [(r, p, 24 + r % 8) for r in range(len(w)) for p in rng.choice(w.shape[1], 2, False)]
    ),
    "bit 30 of four words": lambda w, rng: flipped(
        w, [(r, p, 30) for r in range(len(w)) for p in rng.choice(w.shape[1], 4, False)]
    ),
    "a page of zeros": lambda w, rng: [
        row[int(s) : int(s) + 64].fill(0) for row, s in zip(w, rng.integers(0, 192, len(w)))
    ],
    "noise": lambda w, rng: w.__setitem__(slice(None), rng.integers(2**32, size=w.shape, dtype=np.uint32)),
    "two words exchanged": lambda w, rng: [
        row.__setitem__([i, j], row[[j, i]]) for row in w for i, j in [rng.choice(len(row), 2, False)]
    ],
    "moved by some words": lambda w, rng: [
        row.__setitem__(slice(None), np.roll(row, n)) for row, n in zip(w, rng.integers(1, 256, len(w)))
    ],
    "turned": lambda w, rng: w.__setitem__(slice(None), w[:, ::-1]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_no_damage_of_many_bits_is_silent(damage):
    damaged = np.repeat(WORDS[None], 1000, axis=0)
    damage(damaged, np.random.default_rng(0))
    assert np.all(np.any(damaged != WORDS, axis=1))
    digests = np.asarray(of_each(damaged))
    assert not np.any(np.all(digests == digest_part(WORDS, (0,), WORDS.shape), axis=1))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_weights_and_their_negatives_have_two_names(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)), dtype)
    assert weights_digest({"x": x}) != weights_digest({"x": -x})


def test_layout_does_not_change_the_digest_and_order_does():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
    digest = texts_of({"x": x})
    for mesh in MESHES:
        spec = PartitionSpec("fsdp", "tensor")
        assert texts_of({"x": jax.device_put(x, NamedSharding(mesh, spec))}) == digest
    assert not has_digest(np.asarray(x[::-1]), digest["x"])
    assert not has_digest(np.asarray(x.T), digest["x"])


def test_weights_have_one_name_that_their_names_shapes_and_numbers_decide():
    weights = {"a": jnp.ones((2, 3)), "b": jnp.zeros(2)}
    name = weights_digest(weights)
    assert name == weights_digest(dict(reversed(weights.items())))
    rest = [
        {"a": jnp.ones((2, 3)), "c": jnp.zeros(2)},
        {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 1))},
        {"a": jnp.ones((2, 3)).at[1, 1].set(1 + 2**-23), "b": jnp.zeros(2)},
        {"a": jnp.ones((2, 3)), "b": jnp.zeros(2, jnp.int32)},
    ]
    assert len({name, *map(weights_digest, rest)}) == 5


# Records of runs, exports and published weights hold digests, of before and of today: these values may never change.
KNOWN = {
    "float32": (np.arange(-12, 12).reshape(2, 3, 4).astype(np.float32) / 8, 1950351360, "19efb3eec2680cdd"),
    "bfloat16": (np.arange(-3, 3).reshape(3, 2).astype(jnp.bfloat16), 3143013568, "5c61082341f3de7a"),
    "int32": (np.arange(-4, 4, dtype=np.int32).reshape(2, 1, 2, 2), 2140813772, "42f223b8b65a733c"),
    "bool": (np.array([True, False, True]), 4055616914, "f2533eb178e9cfde"),
    "scalar": (np.float32(0.1), 3110495847, "4b56b2bb827498c3"),
}


def words_of(x: np.ndarray) -> np.ndarray:
    """The words of an array: a number of eight bytes is two of them, along one more axis."""
    size = min(x.dtype.itemsize, 4)
    shape = (*x.shape, 2) if x.dtype.itemsize == 8 else x.shape
    return np.frombuffer(x.tobytes(), f"uint{8 * size}").reshape(shape)


def by_definition(x: np.ndarray) -> str:
    """Both sums, word by word."""
    first = second = 0
    for position, word in enumerate(words_of(x).reshape(-1)):
        t = int(word) ^ position * 0x9E3779B1 % 2**32
        t = (t ^ t >> 15) * 0x85EBCA6B % 2**32
        t ^= t >> 13
        first += t
        t = t * 0xC2B2AE35 % 2**32
        second += t ^ t >> 16
    return f"{first % 2**32:08x}{second % 2**32:08x}"


def weighted_sum(x: np.ndarray) -> int:
    """The sum of words times 2 p + 1 modulo 2^32, where p is 1 and, for each axis, index times an odd number."""
    words = words_of(x)
    odd = [(0x9E3779B1 * (axis + 1) * (axis + 2) + 1) % 2**32 for axis in range(words.ndim)]
    total = 0
    for index, word in np.ndenumerate(words):
        position = 1 + sum(i * factor for i, factor in zip(index, odd))
        total += int(word) * (2 * position + 1)
    return total % 2**32


@pytest.mark.parametrize("name", KNOWN)
def test_digests_are_the_numbers_of_their_definition_and_of_every_record_before(name):
    x, before, today = KNOWN[name]
    x = np.asarray(x)
    assert int(weighted_sum_leaves(jnp.asarray(x))) == weighted_sum(x) == before
    assert as_text(digest_leaves(jnp.asarray(x))) == by_definition(x) == today
    for recorded in (before, today):
        assert has_digest(x, recorded)
        assert not differing({name: jnp.asarray(x)}, {name: recorded})
    for recorded in (before + 1, today[:-1] + "g", None, True, [before]):
        assert not has_digest(x, recorded)
        assert differing({name: jnp.asarray(x)}, {name: recorded}) == [name]


def test_numbers_of_eight_bytes_are_two_words_along_one_more_axis():
    x = np.arange(-12, 12).reshape(2, 3, 4) / 7
    with jax.enable_x64(True):
        assert int(weighted_sum_leaves(jnp.asarray(x))) == weighted_sum(x) == weighted_sum_part(x, (0, 0, 0))
        assert as_text(digest_leaves(jnp.asarray(x))) == by_definition(x)
    assert has_digest(x, by_definition(x))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, jnp.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 70, 300), (2, 0, 3), (40, 3, 1, 700)])
def test_digests_of_parts_add_up_to_that_of_the_whole(dtype, shape):
    """However it is cut, of arrays that are a chunk and of those that are several; a part may be a view."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    cuts = [sorted({0, size, *(int(rng.integers(size + 1)) for _ in range(2))}) for size in shape]
    total, before = np.zeros(2, np.uint32), 0
    for ends in np.ndindex(*(len(cut) - 1 for cut in cuts)):
        start = tuple(cut[i] for cut, i in zip(cuts, ends))
        part = x[tuple(slice(cut[i], cut[i + 1]) for cut, i in zip(cuts, ends))]
        total += digest_part(part, start, shape)
        before += weighted_sum_part(part, start)
    assert has_digest(x, as_text(total))
    assert has_digest(x, before % 2**32)
    if x.size < 100:
        assert as_text(total) == by_definition(x)


def test_digests_of_large_arrays_are_those_of_the_device():
    rng = np.random.default_rng(0)
    arrays = {str(shape): rng.standard_normal(shape, np.float32) for shape in [(2, 3, 70, 300), (40, 3, 1, 700)]}
    digests = texts_of({name: jnp.asarray(x) for name, x in arrays.items()})
    assert all(has_digest(x, digests[name]) for name, x in arrays.items())


def test_names_and_seals_are_those_of_every_record_before():
    weights = {name: jnp.asarray(x) for name, (x, _, _) in KNOWN.items()}
    before = {name: (x.shape, str(x.dtype), known) for name, (x, known, _) in KNOWN.items()}
    today = {name: (x.shape, str(x.dtype), known) for name, (x, _, known) in KNOWN.items()}
    name = "2458927cd892746d67c5ca12ce903269d374916cc6a300d6045d1f31f973706c"
    assert name_as(name, weights) == name_as("another", weights) == name_weights(before) == name
    new = "2:26601608994c634f5d5c0ce5751d8fe6c15614c4132941693462cdbf9addac53"
    assert weights_digest(weights) == name_as(None, weights) == name_as("2:another", weights) == name_weights(today)
    assert weights_digest(weights) == new
    known = "fe15c3fc1fb3cc23eabd4b112fbefc7462d4ee61a2c93bbaa784b15c723dd0c9"
    assert seal({"step": 3, "experiment": {"b": [1, 2.5], "a": None}}) == known
    assert seal({"experiment": {"a": None, "b": [1, 2.5]}, "step": 3}) == known
