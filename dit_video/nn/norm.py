"""RMSNorm and LayerNorm: per position, so that chunks, tiles and whole clips agree."""

import enum

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dit_video.nn.module import recomputed


def rms_normalize(x: Float[Array, "*batch features"], epsilon: float = 1e-6) -> Float[Array, "*batch features"]:
    """RMS normalisation, x / rms(x) over the last axis, in float32; the result has the input's dtype."""

    @recomputed
    def normalize(x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
        return y.astype(x.dtype)

    return normalize(x)


def layer_normalize(x: Float[Array, "*batch features"], epsilon: float = 1e-6) -> Float[Array, "*batch features"]:
    """Layer normalisation over the last axis, in float32, without scale or bias; the input's dtype."""

    @recomputed
    def normalize(x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
        return y.astype(x.dtype)

    return normalize(x)


class Norm(enum.Enum):
    """Kind of pre-norm of a transformer block, before modulation."""

    RMS = "rms"
    LAYER = "layer"

    def __call__(self, x: Float[Array, "*batch features"], epsilon: float = 1e-6) -> Float[Array, "*batch features"]:
        return rms_normalize(x, epsilon) if self is Norm.RMS else layer_normalize(x, epsilon)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

    No statistic crosses positions. The computation is float32 whatever the input; the result has the
    input's dtype.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6):
        init = nnx.with_metadata(nnx.initializers.ones, axes=(None,))
        self.scale = nnx.Param(init(rngs.params(), (features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return _scaled(Norm.RMS, x, self.scale[...], None, self.epsilon)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, with scale and bias (Ba et al. 2016, arXiv:1607.06450, eq. 4).

    The computation is float32 whatever the input; the result has the input's dtype.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6):
        ones, zeros = (
            nnx.with_metadata(init, axes=(None,)) for init in (nnx.initializers.ones, nnx.initializers.zeros)
        )
        self.scale = nnx.Param(ones(rngs.params(), (features,), jnp.float32))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        return _scaled(Norm.LAYER, x, self.scale[...], self.bias[...], self.epsilon)


def _scaled(
    norm: Norm,
    x: Float[Array, "*batch features"],
    scale: Float[Array, "features"],
    bias: Float[Array, "features"] | None,
    epsilon: float,
) -> Float[Array, "*batch features"]:
    @recomputed
    def apply(x: Array, scale: Array, bias: Array | None) -> Array:
        y = norm(x.astype(jnp.float32), epsilon) * scale
        return (y if bias is None else y + bias).astype(x.dtype)

    return apply(x, scale, bias)
