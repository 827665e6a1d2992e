"""On a CPU sums over tokens and means over features are products of matrices: the same in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import small_mesh

from dit_video.nn.modulation import gated, modulate
from dit_video.nn.norm import layer_normalize, rms_normalize


def branch(x, shift, scale, gate):
    return x + gated(gate, modulate(layer_normalize(x), shift, scale)) + rms_normalize(x)


@pytest.mark.parametrize("shape", [(2, 1, 16), (2, 3, 16)])
@pytest.mark.parametrize("split", [None, {"data": 2}, {"context": 2}])
def test_products_equal_sums_in_value_and_gradient(shape, split):
    keys = jax.random.split(jax.random.key(0), 5)
    x, d_out = (jax.random.normal(key, (2, 12, 16)) for key in keys[:2])
    vectors = [jax.random.normal(key, shape) for key in keys[2:]]

    def all_of(x, vectors, d_out):
        out, pullback = jax.vjp(branch, x, *vectors)
        return out, *pullback(d_out)

    expected = jax.jit(all_of)(x, vectors, d_out)  # outside a mesh they stand as sums
    with jax.set_mesh(small_mesh(2 if split else 1, **(split or {"data": 1}))):
        program = jax.jit(all_of).lower(x, vectors, d_out)
        actual = program.compile()(x, vectors, d_out)
    assert program.as_text().count("dot_general") > 0
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * np.abs(b).max())


def test_in_half_precision_gradients_have_the_type_of_what_they_are_of():
    x, vector = jnp.ones((2, 300, 8), jnp.bfloat16), jnp.ones((2, 1, 8), jnp.float32)
    with jax.set_mesh(small_mesh(1, data=1)):
        d_x, d_shift, d_scale = jax.grad(lambda *a: modulate(*a).astype(jnp.float32).sum(), (0, 1, 2))(
            x, vector, vector
        )
    assert (d_x.dtype, d_shift.dtype, d_scale.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    # Added up in float32: bfloat16 has no 300 among its whole numbers' neighbours that sums of ones would reach.
    np.testing.assert_array_equal(d_shift, 300)
    np.testing.assert_array_equal(d_scale, 300)
