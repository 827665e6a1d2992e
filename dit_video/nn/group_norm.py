"""Group normalisation: its statistics reach over all frames, rows and columns that come in one call."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class GroupNorm(nnx.Module):
    """Normalisation over groups of channels and all positions of a clip (Wu & He 2018, arXiv:1803.08494, eq. 1, 7).

    What is cut into parts, along frames or into tiles, is therefore not what the whole is: whoever streams says which
    frames are normalised together. The computation is float32 whatever the input; the result has the input's dtype.
    """

    def __init__(self, features: int, *, num_groups: int, epsilon: float = 1e-6, rngs: nnx.Rngs):
        if features % num_groups:
            raise ValueError(f"{features=} is not a multiple of {num_groups=}")
        ones, zeros = (
            nnx.with_metadata(init, axes=(None,)) for init in (nnx.initializers.ones, nnx.initializers.zeros)
        )
        self.scale = nnx.Param(ones(rngs.params(), (features,), jnp.float32))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), jnp.float32))
        self.num_groups = num_groups
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        y = x.astype(jnp.float32).reshape(*x.shape[:-1], self.num_groups, -1)
        axes = (1, 2, 3, 5)
        y = y - jnp.mean(y, axis=axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axes, keepdims=True) + self.epsilon)
        return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)
