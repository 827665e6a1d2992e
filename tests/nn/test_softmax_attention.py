"""However attention is computed, and however it is split over devices, it is the softmax of scaled products."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.distributed.collectives import read_traffic
from dit_video.nn.softmax_attention import Kernel, attend_local, choose_kernel, cross_attention, self_attention

# Heads, devices along the axes, and the collectives of forward and backward.
ULYSSES = {"all-to-all"}
RING = {"collective-permute"}
SPLITS = {
    "ulysses over 8": (8, {"context": 8}, ULYSSES),
    "ulysses over 4, heads over 2": (8, {"context": 4, "tensor": 2}, ULYSSES),
    "ring over 8, fewer heads": (2, {"context": 8}, RING),
    "ring over 2, heads over 2, rows over 2": (6, {"data": 2, "context": 2, "tensor": 2}, RING),
    "heads over 8": (8, {"tensor": 8}, set()),
}
# Float32 sums in another order.
ROUNDING = {"rtol": 2e-5, "atol": 2e-6}


def numbers(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def by_definition(q, k, v, num_keys=None):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if num_keys is not None:
        seen = jnp.arange(k.shape[1]) < num_keys[:, None]
        logits = jnp.where(seen[:, None, None], logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)


def value_and_gradients(attend, *arrays):
    """The result, and gradients of a sum in which every element has a weight of its own."""

    def total(q, k, v, *rest):
        out = attend(q, k, v, *rest)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

    return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)


@pytest.mark.parametrize(("num_heads", "axes", "kinds"), SPLITS.values(), ids=SPLITS)
def test_split_over_devices_value_and_gradients_are_the_same(num_heads, axes, kinds):
    q, k, v = (numbers(seed, 2, 16, num_heads, 8) for seed in range(3))
    (_, expected), gradients = jax.jit(functools.partial(value_and_gradients, by_definition))(q, k, v)
    mesh = small_mesh(8, **({"data": 1} | axes))
    names = [name if mesh.shape[name] > 1 else None for name in ("data", "context", "tensor")]
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*names))) for x in (q, k, v)]
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(value_and_gradients, self_attention)).lower(*placed).compile()
    (_, actual), actual_gradients = step(*placed)
    np.testing.assert_allclose(actual, expected, **ROUNDING)
    for one, other in zip(actual_gradients, gradients):
        np.testing.assert_allclose(one, other, **ROUNDING)
    traffic = read_traffic(step.as_text(), mesh.shape, [0] * 8)
    # The sum over all devices that the test makes is the only reduction.
    assert {c.kind for c in traffic.collectives} - {"all-reduce"} == kinds


def test_ulysses_and_ring_take_as_many_exchanges_as_they_should():
    """Ulysses: q, k, v and the result, each there and back. Ring of n: k and v n - 1 times; back, with gradients, n."""
    counts = {}
    for name in ("ulysses over 8", "ring over 8, fewer heads"):
        num_heads, axes, _ = SPLITS[name]
        mesh = small_mesh(8, data=1, **axes)
        shape = jax.ShapeDtypeStruct((2, 16, num_heads, 8), jnp.float32)
        placed = [
            jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, PartitionSpec(None, "context")))
        ] * 3
        with jax.set_mesh(mesh):
            text = jax.jit(functools.partial(value_and_gradients, self_attention)).lower(*placed).compile().as_text()
        counts[name] = {c.kind: c.count for c in read_traffic(text, mesh.shape, [0] * 8).collectives}
    assert counts["ulysses over 8"]["all-to-all"] == 8
    assert counts["ring over 8, fewer heads"]["collective-permute"] == 2 * 7 + 4 * 8


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "context": 2, "tensor": 2}], ids=str)
def test_attending_to_other_tokens_counts_only_those_there_are(axes):
    mesh = small_mesh(8, **axes)
    q, k, v = numbers(0, 8, 4, 2, 8), numbers(1, 8, 6, 2, 8), numbers(2, 8, 6, 2, 8)
    num_keys = jnp.array([1, 2, 3, 4, 5, 6, 6, 1], jnp.int32)
    (_, expected), gradients = jax.jit(functools.partial(value_and_gradients, by_definition))(q, k, v, num_keys)
    with jax.set_mesh(mesh):
        (_, actual), actual_gradients = jax.jit(functools.partial(value_and_gradients, cross_attention))(
            q, k, v, num_keys
        )
    np.testing.assert_allclose(actual, expected, **ROUNDING)
    for one, other in zip(actual_gradients, gradients):
        np.testing.assert_allclose(one, other, **ROUNDING)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(128, 128), (130, 70), (640, 5)])
def test_the_tpu_kernel_interpreted_here_is_exact_at_any_length(num_queries, num_keys):
    """Padding to whole blocks reaches neither value nor gradient."""
    q = numbers(0, 2, num_queries, 2, 24)
    k, v = numbers(1, 2, num_keys, 2, 24), numbers(2, 2, num_keys, 2, 24)
    there = jnp.array([num_keys, max(1, num_keys // 2)], jnp.int32)
    interpreted = functools.partial(attend_local, kernel=Kernel.PALLAS, interpret=True)
    (_, expected), gradients = jax.jit(functools.partial(value_and_gradients, by_definition))(q, k, v, there)
    (_, actual), actual_gradients = jax.jit(functools.partial(value_and_gradients, interpreted))(q, k, v, there)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(actual_gradients, gradients):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "kernel"),
    [
        ("gpu", jnp.bfloat16, 72, Kernel.CUDNN),
        ("gpu", jnp.bfloat16, 256, Kernel.XLA),
        ("gpu", jnp.float32, 64, Kernel.XLA),
        ("tpu", jnp.bfloat16, 72, Kernel.PALLAS),
        ("tpu", jnp.float32, 64, Kernel.PALLAS),
        ("cpu", jnp.bfloat16, 64, Kernel.XLA),
        (None, jnp.bfloat16, 64, Kernel.XLA),
    ],
)
def test_the_kernel_is_that_of_the_devices(platform, dtype, head_dim, kernel):
    assert choose_kernel(platform, dtype, head_dim) is kernel
