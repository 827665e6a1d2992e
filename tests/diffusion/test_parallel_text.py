"""What parallel writing costs with a denoiser that knows a Markov chain exactly: by order, in bits per token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.diffusion.masked import Absorbing
from dit_video.diffusion.unmasking import Confidence, RandomOrder, Spread, Unmasking

V, L, B = 6, 64, 256
CHAIN = np.random.default_rng(0).dirichlet(np.full(V, 0.5), V)
VALUES, VECTORS = np.linalg.eig(CHAIN.T)
FIRST = np.real(VECTORS[:, np.argmax(np.real(VALUES))])
FIRST /= FIRST.sum()
ENTROPY = -(FIRST[:, None] * CHAIN * np.log2(CHAIN)).sum()
PROCESS, KEYS = Absorbing(num_tokens=V), jax.random.split(jax.random.key(0), B)


def exact(x_t, t=None):
    """log p(x_i | what is not masked), by the forward-backward algorithm."""
    del t
    evidence = jnp.where((x_t == V)[..., None], 1.0, jax.nn.one_hot(x_t, V))
    by_place = jnp.moveaxis(evidence, 1, 0)
    normal = lambda p: p / p.sum(-1, keepdims=True)  # noqa: E731

    def forward(p, e):
        here = normal(p * e)
        return normal(here @ CHAIN), p

    def backward(p, e):
        return normal((p * e) @ CHAIN.T), p

    start = jnp.broadcast_to(jnp.asarray(FIRST, jnp.float32), (B, V))
    _, before = jax.lax.scan(forward, start, by_place)
    _, after = jax.lax.scan(backward, jnp.ones((B, V)), by_place, reverse=True)
    return jnp.log(jnp.moveaxis(normal(before * after), 0, 1) + 1e-30)


def bits(order) -> tuple[float, float]:
    """Bits per token of what is written, under the chain, and the entropy of its tokens."""
    x = np.asarray(jax.jit(lambda: Unmasking(order=order)(exact, PROCESS, PROCESS.prior(KEYS, (L,)), KEYS))())
    nats = -np.log2(FIRST[x[:, 0]]).sum() - np.log2(CHAIN[x[:, :-1], x[:, 1:]]).sum()
    share = np.bincount(x.ravel(), minlength=V) / x.size
    return nats / x.size, -(share * np.log2(share + 1e-30)).sum()


@pytest.mark.parametrize(
    "tokens", [16, pytest.param(8, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_spread_order_is_within_a_twentieth_of_a_bit_of_the_source_at_16_tokens_a_pass(tokens):
    assert abs(bits(Spread(tokens=tokens))[0] - ENTROPY) < 0.05


def test_random_order_is_not():
    assert bits(RandomOrder(tokens=16))[0] > ENTROPY + 0.1


@pytest.mark.slow
def test_confidence_is_likelier_than_the_source_and_less_various():
    """Why a low number under a judge is no quality."""
    likely, various = bits(Confidence(tokens=2))
    assert likely < ENTROPY - 0.1
    assert various < -(FIRST * np.log2(FIRST)).sum() - 0.1
