import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.stats import norm

from dit_video.nn.mlp import MLPKind, swiglu_size

FLOAT32 = jnp.dtype("float32")


def test_the_ungated_mlp_is_gelu_between_two_products():
    mlp = MLPKind.GELU.build(8, MLPKind.GELU.size(8, 4.0), dtype=FLOAT32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    inner = x @ mlp.up.kernel[...] + mlp.up.bias[...]
    assert inner.shape == (2, 3, 32)
    exact = inner * norm.cdf(inner) @ mlp.down.kernel[...] + mlp.down.bias[...]
    # The tanh form is GELU to three digits, and no more.
    np.testing.assert_allclose(mlp(x), exact, atol=2e-3)
    assert not np.allclose(mlp(x), exact, atol=1e-6)


def test_the_gated_mlp_has_about_as_many_parameters():
    sizes = {kind: kind.size(768, 4.0) for kind in MLPKind}
    assert sizes == {MLPKind.GELU: 3072, MLPKind.SWIGLU: 2048}
    assert 3 * sizes[MLPKind.SWIGLU] == 2 * sizes[MLPKind.GELU]


def test_the_width_of_the_gated_mlp_is_the_nearest_multiple_of_64_and_at_least_that():
    widths = {8: 64, 24: 64, 35: 64, 37: 128, 384: 1024, 1152: 3072}
    assert {size: swiglu_size(size, 4.0) for size in widths} == widths
