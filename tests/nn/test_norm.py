import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video.nn.norm import LayerNorm, Norm, RMSNorm, layer_normalize, rms_normalize


def test_every_position_has_unit_root_mean_square():
    x = 7.0 * jax.random.normal(jax.random.key(0), (2, 3, 16))
    y = RMSNorm(16, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(y**2, axis=-1)), 1.0, rtol=1e-5)


def test_a_position_does_not_see_the_others():
    norm = RMSNorm(8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 8))
    changed = norm(x.at[3].mul(10.0).at[3].add(1.0))
    np.testing.assert_array_equal(np.delete(changed, 3, axis=0), np.delete(norm(x), 3, axis=0))


def test_half_precision_input_is_normalised_in_float32():
    """The squares of 1e4 overflow float16; the norm must not."""
    x = jnp.full((4,), 1e4, jnp.float16)
    y = RMSNorm(4, rngs=nnx.Rngs(0))(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, 1.0, rtol=1e-3)


def test_a_layer_norm_forgets_scale_and_shift_of_each_position():
    x = jax.random.normal(jax.random.key(0), (5, 16))
    y = layer_normalize(3.0 * x + jnp.arange(5.0)[:, None])
    np.testing.assert_allclose(y, layer_normalize(x), atol=1e-5)
    np.testing.assert_allclose(jnp.mean(y, axis=-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(jnp.std(y, axis=-1), 1.0, rtol=1e-5)
    assert layer_normalize(x.astype(jnp.float16)).dtype == jnp.float16


def test_a_learnt_layer_norm_scales_and_shifts_each_feature_in_float32():
    norm = LayerNorm(4, rngs=nnx.Rngs(0), epsilon=1e-5)
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_allclose(norm(x), layer_normalize(x, 1e-5), rtol=1e-6)
    norm.scale[...], norm.bias[...] = jnp.arange(4.0), jnp.full(4, 1000.25)
    np.testing.assert_allclose(norm(x), layer_normalize(x, 1e-5) * jnp.arange(4.0) + 1000.25, rtol=1e-6)
    half = norm(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half[:, 0], jnp.bfloat16(1000.25))


def test_epsilon_is_added_to_the_variance():
    x = jnp.array([-1e-3, 1e-3])
    np.testing.assert_allclose(layer_normalize(x, 1e-6), x / np.sqrt(2e-6), rtol=1e-5)


def test_a_norm_is_the_function_it_names():
    x = 1.0 + jax.random.normal(jax.random.key(0), (3, 8))
    np.testing.assert_array_equal(Norm.RMS(x, 1e-3), rms_normalize(x, 1e-3))
    np.testing.assert_array_equal(Norm.LAYER(x, 1e-3), layer_normalize(x, 1e-3))


def test_of_small_numbers_a_millionth_beside_their_mean_square_tells():
    x = jnp.array([[1e-3, -3e-3, 2e-3, 5e-3]])
    root = np.sqrt(np.square(x).mean() + 1e-6)
    np.testing.assert_allclose(rms_normalize(x), x / root, rtol=1e-5)
    np.testing.assert_allclose(RMSNorm(4, rngs=nnx.Rngs(0))(x), x / root, rtol=1e-5)
    centred = x - x.mean()
    root = np.sqrt(np.square(centred).mean() + 1e-6)
    for norm in (layer_normalize, LayerNorm(4, rngs=nnx.Rngs(0)), Norm.LAYER):
        np.testing.assert_allclose(norm(x), centred / root, rtol=1e-4)
    np.testing.assert_allclose(Norm.RMS(x), rms_normalize(x), rtol=1e-6)


def test_a_learnt_scale_multiplies_each_feature_in_float32():
    norm = RMSNorm(4, rngs=nnx.Rngs(0), epsilon=1e-3)
    norm.scale[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_allclose(norm(x), rms_normalize(x, 1e-3) * jnp.arange(4.0), rtol=1e-6)
