import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video.nn.norm import RMSNorm


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
