"""Laws of the text transformer: one set of parameters, three masks, and the cache."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.dit.text_transformer import TextTransformerConfig
from dit_video.nn.attention_mask import FULL, BlockCausal, Packed, TwoCopy
from dit_video.nn.module import define

V, N = 11, 8
CONFIG = TextTransformerConfig(hidden_size=16, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def network():
    """With random weights in all parameters."""
    definition = define(lambda key: CONFIG.build(V, dtype=jnp.float32, rngs=nnx.Rngs(key)))
    rng = np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.3 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, N)), jnp.int32)


@pytest.mark.parametrize("block", [1, 4])
def test_cached_is_uncached(network, block):
    mask, layers = BlockCausal(block), network.layers()
    cache, made = network.empty_cache(2, N), []
    for first in range(0, N, block):
        logits, cache = network.cached(layers, TOKENS[:, first : first + block], first, cache, mask)
        made.append(logits)
    np.testing.assert_allclose(np.concatenate(made, 1), network(TOKENS, mask), rtol=2e-4, atol=2e-4)


def test_a_clean_block_and_the_next_masked_one_go_in_one_pass(network):
    """The fused commit: n passes for a block of n steps, and not n + 1."""
    mask, layers = BlockCausal(4), network.layers()
    masked = TOKENS.at[:, 4:].set(V)
    fused, _ = network.cached(layers, masked, 0, network.empty_cache(2, N), mask)
    _, cache = network.cached(layers, TOKENS[:, :4], 0, network.empty_cache(2, N), mask)
    apart, _ = network.cached(layers, masked[:, 4:], 4, cache, mask)
    np.testing.assert_allclose(fused[:, 4:], apart, rtol=2e-4, atol=2e-4)


def test_two_copies_are_every_block_in_turn(network):
    """One pass over noisy and clean copies says of each block what a pass over clean blocks before it says."""
    x_t = jnp.where(jnp.arange(N) % 3 == 0, V, TOKENS)
    both = jnp.concatenate([x_t, TOKENS], axis=1)
    at_once = network(both, TwoCopy(4, N), np.tile(np.arange(N), 2))[:, :N]
    for first in (0, 4):
        seen = jnp.concatenate([TOKENS[:, :first], x_t[:, first:]], axis=1)
        in_turn = network(seen, BlockCausal(4))[:, first : first + 4]
        np.testing.assert_allclose(at_once[:, first : first + 4], in_turn, rtol=2e-4, atol=2e-4)


def test_a_block_as_long_as_the_text_with_two_copies_is_plain(network):
    both = jnp.concatenate([TOKENS, TOKENS], axis=1)
    at_once = network(both, TwoCopy(N, N), np.tile(np.arange(N), 2))[:, :N]
    np.testing.assert_allclose(at_once, network(TOKENS), rtol=2e-4, atol=2e-4)


def test_documents_of_a_row_do_not_see_each_other(network):
    documents = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0]] * 2)
    other = TOKENS.at[:, 3:].set((TOKENS[:, 3:] + 1) % V)
    first, second = (network(tokens, Packed(documents, FULL))[:, :3] for tokens in (TOKENS, other))
    np.testing.assert_array_equal(first, second)


def test_an_odd_width_of_heads_is_refused():
    with pytest.raises(ValueError, match=r"TextTransformerConfig\.hidden_size=18"):
        TextTransformerConfig(hidden_size=18, depth=1, num_heads=6)
