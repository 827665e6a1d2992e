"""Digests of arrays: any bit changes them, no layout does; and the name that weights have by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.weights.digest import digest_leaves, digest_part, name_weights, seal, weights_digest

MESHES = [small_mesh(1), small_mesh(8, data=8), small_mesh(8, fsdp=4, tensor=2)]

ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "bfloat16": np.random.default_rng(0).normal(size=(7,)).astype(jnp.bfloat16),
    "int32": np.int32(-2),
    "uint8": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
}


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_any_single_bit_changes_the_digest(x):
    raw = np.frombuffer(np.asarray(x).tobytes(), np.uint8)
    flipped = np.repeat(raw[None], 8 * len(raw), axis=0)
    for bit in range(8 * len(raw)):
        flipped[bit, bit // 8] ^= 1 << bit % 8
    versions = np.concatenate([raw[None], flipped]).view(np.asarray(x).dtype).reshape(-1, *np.shape(x))
    digests = jax.jit(lambda xs: jax.lax.map(digest_leaves, xs))(versions)
    assert not np.any(np.asarray(digests[1:]) == digests[0])


def test_layout_does_not_change_the_digest_and_order_does():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)
    digest = jax.jit(digest_leaves)
    for mesh in MESHES:
        spec = PartitionSpec("fsdp", "tensor")
        assert digest(jax.device_put(x, NamedSharding(mesh, spec))) == digest(x)
    assert digest(x[::-1]) != digest(x)
    assert digest(x.T) != digest(x)


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


# Records of runs, exports and published weights hold digests: these values may never change.
KNOWN = {
    "float32": (np.arange(-12, 12).reshape(2, 3, 4).astype(np.float32) / 8, 1950351360),
    "bfloat16": (np.arange(-3, 3).reshape(3, 2).astype(jnp.bfloat16), 3143013568),
    "int32": (np.arange(-4, 4, dtype=np.int32).reshape(2, 1, 2, 2), 2140813772),
    "bool": (np.array([True, False, True]), 4055616914),
    "scalar": (np.float32(0.1), 3110495847),
}


def by_definition(x: np.ndarray) -> int:
    """The sum of words times 2 p + 1 modulo 2^32, where p is 1 and, for each axis, index times an odd number."""
    size = min(x.dtype.itemsize, 4)
    shape = (*x.shape, 2) if x.dtype.itemsize == 8 else x.shape
    words = np.frombuffer(x.tobytes(), f"uint{8 * size}").reshape(shape)
    odd = [(0x9E3779B1 * (axis + 1) * (axis + 2) + 1) % 2**32 for axis in range(words.ndim)]
    total = 0
    for index, word in np.ndenumerate(words):
        position = 1 + sum(i * factor for i, factor in zip(index, odd))
        total += int(word) * (2 * position + 1)
    return total % 2**32


@pytest.mark.parametrize("name", KNOWN)
def test_digests_are_the_numbers_of_their_definition_and_of_every_record_before(name):
    x, known = KNOWN[name]
    assert int(digest_leaves(jnp.asarray(x))) == by_definition(np.asarray(x)) == known


def test_numbers_of_eight_bytes_are_two_words_along_one_more_axis():
    x = np.arange(-12, 12).reshape(2, 3, 4) / 7
    with jax.enable_x64(True):
        assert int(digest_leaves(jnp.asarray(x))) == by_definition(x)


def test_digests_of_parts_add_up_to_that_of_the_whole():
    """A part's is below 2^32 like any other."""
    x = KNOWN["float32"][0]
    parts = [digest_part(x[i : i + 1, :, j : j + 2], (i, 0, j)) for i in (0, 1) for j in (0, 2)]
    assert sum(parts) % 2**32 == digest_part(x, (0, 0, 0)) == by_definition(x)
    assert all(0 <= part < 2**32 for part in parts)


def test_names_and_seals_are_those_of_every_record_before():
    weights = {name: jnp.asarray(x) for name, (x, _) in KNOWN.items()}
    arrays = {name: (x.shape, str(x.dtype), known) for name, (x, known) in KNOWN.items()}
    name = "2458927cd892746d67c5ca12ce903269d374916cc6a300d6045d1f31f973706c"
    assert weights_digest(weights) == name_weights(arrays) == name
    known = "fe15c3fc1fb3cc23eabd4b112fbefc7462d4ee61a2c93bbaa784b15c723dd0c9"
    assert seal({"step": 3, "experiment": {"b": [1, 2.5], "a": None}}) == known
    assert seal({"experiment": {"a": None, "b": [1, 2.5]}, "step": 3}) == known
