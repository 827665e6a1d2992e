"""Axial attention: which tokens see which, and the same result on any mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.nn.axial_attention import spatial_attention, split_attention, temporal_attention

B, PLACES, FRAMES, K, D = 2, 8, 3, 4, 2
SHAPE = (B, PLACES * FRAMES, K, D)


@pytest.fixture(scope="module")
def heads() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal(SHAPE, np.float32)) for _ in range(3))
    return q, k, v


def one_by_one(heads, over_space) -> np.ndarray:
    """For each head and token the mean of values that it sees, weighed by exponentials; in float64."""
    q, k, v = (np.asarray(x, np.float64).reshape(B, PLACES, FRAMES, K, D) for x in heads)
    out = np.empty_like(q)
    for b, place, frame, head in np.ndindex(B, PLACES, FRAMES, K):
        seen = (b, slice(None), frame, head) if over_space(head) else (b, place, slice(None), head)
        weights = np.exp(k[seen] @ q[b, place, frame, head] / np.sqrt(D))
        out[b, place, frame, head] = weights @ v[seen] / weights.sum()
    return out.reshape(SHAPE)


KINDS = {
    "space": (spatial_attention, lambda head: True),
    "time": (temporal_attention, lambda head: False),
    "split": (split_attention, lambda head: head % 2 == 0),
}


@pytest.mark.parametrize(("attend", "over_space"), KINDS.values(), ids=KINDS)
def test_a_token_sees_those_of_its_frame_or_of_its_place(attend, over_space, heads):
    np.testing.assert_allclose(attend(*heads, FRAMES), one_by_one(heads, over_space), rtol=1e-4, atol=1e-5)


MESHES = ({"context": 8}, {"fsdp": 2, "context": 2, "tensor": 2}, {"context": 4, "tensor": 2})


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize(("attend", "over_space"), KINDS.values(), ids=KINDS)
def test_any_mesh_computes_the_same(attend, over_space, axes, heads):
    del over_space
    with jax.set_mesh(small_mesh(8, **axes)):
        actual = jax.jit(functools.partial(attend, num_frames=FRAMES))(*heads)
    np.testing.assert_allclose(actual, attend(*heads, FRAMES), rtol=1e-4, atol=1e-5)


def test_over_time_devices_that_share_tokens_send_nothing(heads):
    def sent(attend) -> list[str]:
        mesh = small_mesh(8, context=8)
        sharding = NamedSharding(mesh, PartitionSpec(None, "context"))
        with jax.set_mesh(mesh):
            placed = [jax.device_put(x, sharding) for x in heads]
            function = jax.jit(functools.partial(attend, num_frames=FRAMES), out_shardings=sharding)
            text = function.lower(*placed).compile().as_text()
        return re.findall(r"all-to-all|all-gather|all-reduce|collective-permute|reduce-scatter", text)

    assert not sent(temporal_attention)
    assert sent(spatial_attention), "what is looked for is found where something is sent"
