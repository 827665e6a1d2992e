"""Digests of arrays: any bit changes them, no layout does; and the name that weights have by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.weights.digest import digest_leaves, weights_digest

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
