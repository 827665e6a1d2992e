"""RMSNorm and LayerNorm: per position, so that chunks, tiles and whole clips agree."""

import enum
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dit_video.distributed.sharding import platform
from dit_video.nn.module import recomputed
from dit_video.nn.reductions import mean_over_features


def rms_normalize(x: Float[Array, "*batch features"], epsilon: float = 1e-6) -> Float[Array, "*batch features"]:
    """RMS normalisation, x / rms(x) over the last axis, in float32; the result has the input's dtype."""
    return _normalize(x, epsilon, centred=False)


def layer_normalize(x: Float[Array, "*batch features"], epsilon: float = 1e-6) -> Float[Array, "*batch features"]:
    """Layer normalisation over the last axis, in float32, without scale or bias; the input's dtype."""
    return _normalize(x, epsilon, centred=True)


def _normalize(x: Array, epsilon: float, *, centred: bool) -> Array:
    if platform() == "cpu":
        return _normalize_by_products(x, epsilon, centred)
    return recomputed(lambda x: _normalized(x, epsilon, centred)[0].astype(x.dtype))(x)


def _normalized(x: Array, epsilon: float, centred: bool) -> tuple[Array, Array]:
    """x / rms(x), of what differs from the mean if that is taken out, and 1 / rms(x)."""
    y = x.astype(jnp.float32)
    if centred:
        y = y - mean_over_features(y)
    scale = jax.lax.rsqrt(mean_over_features(jnp.square(y)) + epsilon)
    return y * scale, scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _normalize_by_products(x: Array, epsilon: float, centred: bool) -> Array:
    """`_normalize`, whose backward pass takes its means as products too: derived by JAX they would be sums."""
    return _normalized(x, epsilon, centred)[0].astype(x.dtype)


def _backward(epsilon: float, centred: bool, x: Array, d_out: Array) -> tuple[Array]:
    normed, scale = _normalized(x, epsilon, centred)
    d_normed = d_out.astype(jnp.float32)
    d_x = d_normed - normed * mean_over_features(d_normed * normed)
    if centred:
        d_x = d_x - mean_over_features(d_normed)
    return ((d_x * scale).astype(x.dtype),)


_normalize_by_products.defvjp(
    lambda x, epsilon, centred: (_normalize_by_products(x, epsilon, centred), x),
    _backward,
)


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
