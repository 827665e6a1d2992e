import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dit_video.nn.group_norm import GroupNorm


def test_it_is_that_of_torch_over_frames_rows_and_columns():
    rng = np.random.default_rng(0)
    x = (3.0 + rng.standard_normal((2, 3, 4, 5, 6))).astype(np.float32)
    norm = GroupNorm(6, num_groups=3, epsilon=1e-3, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.arange(6.0), jnp.ones(6)
    theirs = torch.nn.GroupNorm(3, 6, eps=1e-3)
    theirs.load_state_dict({"weight": torch.arange(6.0), "bias": torch.ones(6)})
    expected = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(jax.jit(norm)(x), np.moveaxis(expected, 1, -1), rtol=1e-4, atol=1e-5)


def test_half_precision_is_normalised_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(100.0, 1.0, (1, 2, 4, 4, 4)), jnp.bfloat16)
    y = GroupNorm(4, num_groups=1, rngs=nnx.Rngs(0))(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32).std(), 1.0, rtol=1e-2)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="features=6 is not a multiple of num_groups=4"):
        GroupNorm(6, num_groups=4, rngs=nnx.Rngs(0))
