import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import small_mesh

from dit_video.nn.attention import QKNorm
from dit_video.nn.joint_attention import QKV, JointAttention, attend_jointly
from dit_video.nn.module import define

# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
NUM_TEXT = jnp.array([3, 5], jnp.int32)


def random_heads(seed: int, num_tokens: int, num_heads: int = 4) -> QKV:
    keys = jax.random.split(jax.random.key(seed), 3)
    return QKV(*(jax.random.normal(key, (2, num_tokens, num_heads, 8)) for key in keys))


def by_hand(video: QKV, text: QKV, num_text: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(video, text))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    if num_text is not None:
        last = video.k.shape[1] + num_text
        logits = jnp.where(jnp.arange(k.shape[1]) < last[:, None, None, None], logits, -jnp.inf)
    out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
    return out[:, : video.q.shape[1]], out[:, video.q.shape[1] :]


@pytest.mark.parametrize("num_text", [None, NUM_TEXT], ids=["all", "masked"])
def test_it_is_softmax_over_both_streams(num_text):
    video, text = random_heads(0, 8), random_heads(1, 5)
    for actual, expected in zip(jax.jit(attend_jointly)(video, text, num_text), by_hand(video, text, num_text)):
        np.testing.assert_allclose(actual, expected, **ROUNDING)


def test_text_that_asks_nothing_is_read_all_the_same():
    video, text = random_heads(0, 8), random_heads(1, 5)
    actual, empty = jax.jit(attend_jointly)(video, text._replace(q=text.q[:, :0]), NUM_TEXT)
    assert empty.shape == (2, 0, 4, 8)
    np.testing.assert_allclose(actual, by_hand(video, text, NUM_TEXT)[0], **ROUNDING)


@pytest.mark.parametrize(
    ("axes", "num_heads"),
    [
        pytest.param({"fsdp": 2, "context": 2, "tensor": 2}, 4, id="heads change places"),
        pytest.param({"data": 2, "context": 4}, 2, id="keys are gathered"),
    ],
)
def test_tokens_that_are_split_give_the_same_values_and_gradients(axes, num_heads):
    video, text = random_heads(0, 8, num_heads), random_heads(1, 5, num_heads)
    weights = jax.tree.map(lambda q, seed: jax.random.normal(jax.random.key(seed), q.shape), (video.q, text.q), (2, 3))

    def value(video, text):
        actual = attend_jointly(video, text, NUM_TEXT)
        return sum(jnp.sum(w * x) for w, x in zip(weights, actual)), actual

    differentiate = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
    expected = jax.jit(differentiate)(video, text)
    with jax.set_mesh(small_mesh(8, **{"data": 1, **axes})):
        actual = jax.jit(differentiate)(video, text)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, **ROUNDING)


def test_positions_are_those_of_video_alone():
    """Turning all of video by the same angle changes nothing between its tokens, and something between it and text."""
    attention = jax.jit(
        lambda key: JointAttention(32, 2, qk_norm=QKNorm.PER_HEAD, dtype=jnp.float32, rngs=nnx.Rngs(key))
    )(jax.random.key(0))
    video, text = (jax.random.normal(jax.random.key(seed), (2, n, 32)) for seed, n in ((1, 6), (2, 3)))
    call = jax.jit(lambda module, *args: module(*args))
    still, turned = (call(attention, video, text, angle * jnp.ones((6, 8)), None) for angle in (0.0, 1.0))
    without = call(attention, video, text, None, None)
    for a, b in zip(still, without):
        np.testing.assert_allclose(a, b, **ROUNDING)
    assert float(jnp.abs(turned[0] - still[0]).max()) > 1e-3
    nobody = jnp.zeros(2, jnp.int32)
    still, turned = (call(attention, video, text, angle * jnp.ones((6, 8)), nobody)[0] for angle in (0.0, 1.0))
    np.testing.assert_allclose(still, turned, **ROUNDING)


def test_text_that_is_only_read_has_no_way_back():
    def make(key: jax.Array, *, text_output: bool) -> JointAttention:
        options = {"qk_norm": QKNorm.NONE, "text_output": text_output, "dtype": jnp.float32}
        return JointAttention(32, 2, rngs=nnx.Rngs(key), **options)

    whole, reading = (define(functools.partial(make, text_output=written)) for written in (True, False))
    assert whole.shapes.keys() - reading.shapes.keys() == {"text.out.kernel", "text.out.bias"}
    video, text = jnp.ones((1, 4, 32)), jnp.ones((1, 3, 32))
    assert jax.eval_shape(lambda params: reading.bind(params)(video, text, None, None), reading.shapes)[1] is None
