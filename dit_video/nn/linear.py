"""Linear layer with logical axis names for sharding."""

from flax import nnx
from jax.typing import DTypeLike


def linear(
    features_in: int,
    features_out: int,
    axes: tuple[str | None, str | None],
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    init: nnx.Initializer | None = None,
    use_bias: bool = True,
) -> nnx.Linear:
    """`nnx.Linear` in float32 parameters and `dtype` compute, its kernel labelled with logical `axes`."""
    init = init or nnx.initializers.xavier_uniform()
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nnx.with_metadata(init, axes=axes),
        bias_init=nnx.with_metadata(nnx.initializers.zeros, axes=axes[-1:]),
        rngs=rngs,
    )
