import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.nn.attention import Attention, CrossAttention, HeadsNorm, QKNorm
from dit_video.nn.norm import rms_normalize
from dit_video.nn.positions import patch_angles, rope_angles, rotate
from dit_video.nn.softmax_attention import cross_attention

FLOAT32 = jnp.dtype("float32")
ANGLES = patch_angles((2, 2, 2), (1, 1, 1), 16)
apply = jax.jit(lambda attention, x, angles: attention(x, angles))


@pytest.fixture(scope="module")
def attention() -> Attention:
    return Attention(32, 2, dtype=FLOAT32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tokens() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 8, 32))


def test_equals_softmax_of_scaled_products_head_by_head(attention, tokens):
    q, k, v = jnp.moveaxis(attention.qkv(tokens), 2, 0)
    q, k = rotate(rms_normalize(q), ANGLES), rotate(rms_normalize(k), ANGLES)
    heads = []
    for head in range(2):
        logits = q[:, :, head] @ k[:, :, head].swapaxes(1, 2) / np.sqrt(16)
        heads.append(jax.nn.softmax(logits, axis=-1) @ v[:, :, head])
    expected = attention.out(jnp.stack(heads, axis=2))
    np.testing.assert_allclose(apply(attention, tokens, ANGLES), expected, rtol=1e-4, atol=1e-5)


def test_without_norms_and_positions_it_is_softmax_of_the_products(tokens):
    plain = Attention(32, 2, dtype=FLOAT32, rngs=nnx.Rngs(0), qk_norm=QKNorm.NONE)
    assert plain.query_norm is None
    q, k, v = jnp.moveaxis(plain.qkv(tokens), 2, 0)
    weights = jax.nn.softmax(jnp.einsum("bnkd,bmkd->bknm", q, k) / np.sqrt(16), axis=-1)
    expected = plain.out(jnp.einsum("bknm,bmkd->bnkd", weights, v))
    np.testing.assert_allclose(apply(plain, tokens, None), expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_a_set_when_their_positions_go_with_them(attention, tokens):
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = apply(attention, tokens[:, order], ANGLES[order])
    np.testing.assert_allclose(shuffled, apply(attention, tokens, ANGLES)[:, order], rtol=1e-4, atol=1e-5)
    assert not np.allclose(apply(attention, tokens[:, order], ANGLES), shuffled, atol=1e-3)


def test_moving_all_positions_alike_changes_nothing(attention, tokens):
    moved = ANGLES + rope_angles(np.float32([[5, 3, 9]]), 16)
    np.testing.assert_allclose(apply(attention, tokens, moved), apply(attention, tokens, ANGLES), rtol=1e-4, atol=1e-5)


def test_logits_do_not_grow_with_queries_and_keys(attention, tokens):
    """Query and key norms: a kernel ten times as large gives the same attention."""
    loud = nnx.clone(attention)
    loud.qkv.kernel[...] = attention.qkv.kernel[...].at[:, :2].multiply(10.0)
    np.testing.assert_allclose(apply(loud, tokens, ANGLES), apply(attention, tokens, ANGLES), rtol=1e-3, atol=1e-4)


def test_width_must_divide_into_heads():
    with pytest.raises(ValueError, match="hidden_size=32 is not a multiple of num_heads=3"):
        Attention(32, 3, dtype=FLOAT32, rngs=nnx.Rngs(0))


def test_padding_is_not_attended_to(attention, tokens):
    """The first three tokens with whatever behind them are the first three alone."""
    three = apply(attention, tokens[:, :3], ANGLES[:3])
    attend = lambda q, k, v: cross_attention(q, k, v, jnp.array([3, 3]))  # noqa: E731
    masked = jax.jit(lambda a, x: a(x, ANGLES, attend))(attention, tokens)
    np.testing.assert_allclose(masked[:, :3], three, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def cross() -> CrossAttention:
    """From tokens of width 32 to others of width 12."""
    return CrossAttention(32, 12, 2, dtype=FLOAT32, rngs=nnx.Rngs(0))


def test_cross_attention_equals_softmax_head_by_head_over_each_rows_own_number_of_others(cross, tokens):
    awake = nnx.clone(cross)
    awake.out.kernel[...] = jax.random.normal(jax.random.key(3), cross.out.kernel[...].shape)
    context, num_context = jax.random.normal(jax.random.key(2), (2, 5, 12)), (2, 5)
    actual = jax.jit(lambda a, *args: a(*args))(awake, tokens, context, jnp.array(num_context))
    for row, length in enumerate(num_context):
        q, (k, v) = rms_normalize(awake.query(tokens[row])), jnp.moveaxis(awake.key_value(context[row, :length]), 1, 0)
        logits = jnp.einsum("nkd,lkd->knl", q, rms_normalize(k)) / np.sqrt(16)
        expected = awake.out(jnp.einsum("knl,lkd->nkd", jax.nn.softmax(logits), v))
        np.testing.assert_allclose(actual[row], expected, rtol=1e-4, atol=1e-5)


def test_fresh_cross_attention_gives_zero(cross, tokens):
    others = jax.random.normal(jax.random.key(2), (2, 5, 12))
    np.testing.assert_array_equal(cross(tokens, others, jnp.array([1, 5])), 0.0)


@pytest.mark.parametrize(
    ("kind", "axes", "shape"), [(QKNorm.PER_HEAD, -1, (4,)), (QKNorm.ACROSS_HEADS, (-2, -1), (3, 4))]
)
def test_queries_are_divided_by_their_root_mean_square_and_scaled(kind, axes, shape):
    """Small ones too, where 1e-6 beside the mean square tells."""
    norm = HeadsNorm(kind, 3, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(norm.scale[...], np.ones(shape))
    norm.scale[...] = 1 + jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    x = 1e-3 * np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    expected = x / np.sqrt(np.square(x).mean(axes, keepdims=True) + 1e-6) * np.asarray(norm.scale[...])
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_fresh_kernels_have_the_scale_that_their_norm_asks_for():
    """Variance 1 / fan-in where queries and keys are normalised; else Xavier's uniform, as in DiT."""
    normed, plain = (
        Attention(64, 4, dtype=FLOAT32, rngs=nnx.Rngs(0), qk_norm=n) for n in (QKNorm.PER_HEAD, QKNorm.NONE)
    )
    assert normed.qkv.kernel.shape == (64, 3, 4, 16)
    assert float(jnp.std(normed.qkv.kernel[...])) == pytest.approx(64**-0.5, rel=0.03)
    assert float(jnp.std(normed.out.kernel[...])) == pytest.approx(64**-0.5, rel=0.03)
    # Uniform within +-sqrt(6 / (64 + 192)), whose deviation is sqrt(2 / (64 + 192)).
    assert float(jnp.abs(plain.qkv.kernel[...]).max()) == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    assert float(jnp.std(plain.qkv.kernel[...])) == pytest.approx((2 / 256) ** 0.5, rel=0.03)


def test_kernels_and_biases_name_their_logical_axes(attention, cross):
    axes = lambda param: param.get_metadata()["axes"]  # noqa: E731
    assert axes(attention.qkv.kernel) == ("embed", None, "heads", "head_dim")
    assert axes(attention.qkv.bias) == (None, "heads", "head_dim")
    assert axes(attention.out.kernel) == ("heads", "head_dim", "embed")
    assert axes(attention.out.bias) == ("embed",)
    assert axes(cross.query.kernel) == ("embed", "heads", "head_dim")
    assert axes(cross.key_value.kernel) == ("embed", None, "heads", "head_dim")
    assert axes(HeadsNorm(QKNorm.ACROSS_HEADS, 2, 4, rngs=nnx.Rngs(0)).scale) == ("heads", None)


def test_without_norms_cross_attention_is_softmax_of_the_products_over_all(tokens):
    plain = CrossAttention(32, 12, 2, dtype=FLOAT32, rngs=nnx.Rngs(0), qk_norm=QKNorm.NONE)
    plain.out.kernel[...] = jax.random.normal(jax.random.key(3), plain.out.kernel[...].shape)
    others = jax.random.normal(jax.random.key(2), (2, 5, 12))
    q, (k, v) = plain.query(tokens), jnp.moveaxis(plain.key_value(others), 2, 0)
    weights = jax.nn.softmax(jnp.einsum("bnkd,blkd->bknl", q, k) / np.sqrt(16), axis=-1)
    expected = plain.out(jnp.einsum("bknl,blkd->bnkd", weights, v))
    np.testing.assert_allclose(
        jax.jit(lambda a, x, o: a(x, o, None))(plain, tokens, others), expected, rtol=1e-4, atol=1e-4
    )
