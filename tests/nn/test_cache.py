"""The key/value cache: what is computed with it is what is computed without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.nn.attention_mask import AttentionMask, BlockCausal
from dit_video.nn.cache import KeyValueCache

B, N, K, D = 2, 12, 2, 4
Q, KEY, V = (jnp.asarray(np.random.default_rng(i).standard_normal((B, N, K, D), np.float32)) for i in range(3))


def attend(mask: AttentionMask) -> np.ndarray:
    """Attention of the whole sequence, written down."""
    logits = np.einsum("bqkd,bmkd->bkqm", Q, KEY) / D**0.5
    logits = np.where(mask.allowed(np.arange(N), np.arange(N)), logits, -np.inf)
    return np.einsum("bkqm,bmkd->bqkd", jax.nn.softmax(logits), V)


def step_by_step(cache: KeyValueCache, mask: AttentionMask, size: int) -> np.ndarray:
    """The same, `size` tokens at a time. Of each, something else is written first, to be written over."""
    made = []
    for first in range(0, N, size):
        q, k, v = (x[:, first : first + size] for x in (Q, KEY, V))
        cache = cache.at(first, size)
        allowed = cache.allowed(mask, first, size)
        cache = cache.write(0, v, q, first)
        cache = cache.write(0, k, v, first)
        made.append(cache.attend(0, q, allowed))
    return np.concatenate(made, axis=1)


def empty(**options) -> KeyValueCache:
    return KeyValueCache.empty(num_layers=1, batch_size=B, num_heads=K, head_dim=D, dtype=jnp.float32, **options)


@pytest.mark.parametrize(("block", "size"), [(1, 1), (1, 3), (2, 2), (2, 4), (4, 4)])
def test_a_growing_cache_gives_what_attention_without_it_gives(block, size):
    """Also with two blocks at once, a committed one and the next."""
    mask = BlockCausal(block)
    np.testing.assert_allclose(step_by_step(empty(capacity=N), mask, size), attend(mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("block", "window", "size"), [(1, 4, 1), (2, 2, 2), (2, 1, 2)])
def test_a_ring_as_long_as_the_window_gives_it_too(block, window, size):
    mask = BlockCausal(block, window=window)
    cache = empty(capacity=4, ring=True)
    np.testing.assert_allclose(step_by_step(cache, mask, size), attend(mask), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="5 tokens at once in a cache of 4"):
        empty(capacity=4).at(0, 5)
    with pytest.raises(ValueError, match="ring"):
        empty(capacity=4, ring=True).at(0, 3)
