"""Attention kernels for TPUs, interpreted here: equal to whole logits in value and gradient at shapes across blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.nn import tpu_attention
from dit_video.nn.tpu_attention import Blocks, attend_in_kernel, choose_blocks
from dit_video.nn.whole_attention import attend_whole

KINDS = ("TPU v5", "TPU v5 lite", "TPU v6 lite", "TPU7x")
SMALL = Blocks(queries=128, keys=256, part=128)


def random_heads(num_tokens: int, num_heads: int, head_dim: int, seed: int, dtype) -> jax.Array:
    shape = (2, num_tokens, num_heads, head_dim)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def value_and_gradients(attend, q, k, v, d_out):
    out, back = jax.vjp(attend, q, k, v)
    return out, *back(d_out)


def equal_to_whole(shape, blocks: Blocks, num_keys, dtype=jnp.float32, tolerance: float = 1e-6) -> None:
    """In the relative error of the whole array (root mean square)."""
    num_queries, num_tokens, num_heads, head_dim = shape
    q, d_out = (random_heads(num_queries, num_heads, head_dim, seed, dtype) for seed in (0, 3))
    k, v = (random_heads(num_tokens, num_heads, head_dim, seed, dtype) for seed in (1, 2))
    limits = None if num_keys is None else jnp.array(num_keys, jnp.int32)
    kernel = functools.partial(attend_in_kernel, num_keys=limits, blocks=blocks, interpret=True)
    actual = jax.jit(functools.partial(value_and_gradients, kernel))(q, k, v, d_out)
    expected = jax.jit(functools.partial(value_and_gradients, functools.partial(attend_whole, num_keys=limits)))(
        q, k, v, d_out
    )
    for one, other in zip(actual, expected, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [1, 70, 128, 300, 1280, 4032, 4101, 32_760, 129_600])
def test_blocks_are_whole_parts_and_pad_an_eighth_at_most(num_tokens, kind):
    blocks = choose_blocks(num_tokens, num_tokens, kind)
    assert blocks.keys % blocks.part == 0
    assert blocks.part % 128 == blocks.queries % 128 == 0
    assert blocks.queries <= 1024
    assert blocks.keys <= 2048
    for block in (blocks.queries, blocks.keys):
        assert -num_tokens % block <= max(127, num_tokens / 8)


def test_long_sequences_have_the_largest_blocks():
    assert choose_blocks(32_760, 32_760, "TPU v5") == Blocks(1024, 2048, 512)
    assert choose_blocks(32_760, 32_760, "TPU v6 lite") == Blocks(1024, 2048, 1024)
    assert choose_blocks(32_760, 512, "TPU v5") == Blocks(1024, 512, 512)


@pytest.mark.slow
@pytest.mark.parametrize("num_keys", [None, (200, 130)], ids=["all", "some"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)], ids=["f32", "bf16"])
def test_tokens_across_blocks_have_the_value_and_gradient_of_whole_logits(dtype, tolerance, num_keys):
    equal_to_whole((300, 300, 2, 32), SMALL, num_keys, dtype, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [70, 256])
def test_other_tokens_of_any_number(num_tokens):
    equal_to_whole((300, num_tokens, 2, 24), choose_blocks(300, num_tokens, ""), None)


@pytest.mark.slow
def test_five_more_than_whole_blocks():
    equal_to_whole((4096 + 5, 4096 + 5, 1, 16), choose_blocks(4101, 4101, "TPU v5"), None)


@pytest.mark.slow
def test_heads_in_turn_have_the_gradients_of_all_at_once(monkeypatch):
    """Where the parts of the gradient of queries would take too much memory."""
    monkeypatch.setattr(tpu_attention, "PARTS_BYTES", 1)
    equal_to_whole((256, 256, 2, 24), Blocks(128, 128, 128), None)


def test_value_and_gradients_are_those_of_softmax_over_the_first_keys():
    """Equations in NumPy; of a second block of keys one row sees a part, and the other none."""
    limits, rng = (20, 11), np.random.default_rng(0)
    q, k, v, d_out = (rng.standard_normal((2, 20, 1, 8), np.float32) for _ in range(4))
    kernel = functools.partial(
        attend_in_kernel, num_keys=jnp.array(limits), blocks=Blocks(queries=16, keys=16, part=8), interpret=True
    )
    actual = jax.jit(functools.partial(value_and_gradients, kernel))(q, k, v, d_out)
    for row, limit in enumerate(limits):
        queries, keys, values, d = (x[row, :, 0].astype(float) for x in (q, k, v, d_out))
        p = np.exp(queries @ keys.T / 8**0.5) * (np.arange(20) < limit)
        p /= p.sum(1, keepdims=True)
        d_p = d @ values.T
        d_logits = p * (d_p - (p * d_p).sum(1, keepdims=True)) / 8**0.5
        expected = p @ values, d_logits @ keys, d_logits.T @ queries, p.T @ d
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one[row, :, 0], other, atol=2e-6)
