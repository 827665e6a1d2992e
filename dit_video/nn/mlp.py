"""MLP of a transformer block: SwiGLU or GELU."""

import enum

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.nn.linear import linear


class MLPKind(enum.Enum):
    """Activation of the MLP: SwiGLU (gated) or GELU."""

    SWIGLU = "swiglu"
    GELU = "gelu"

    def size(self, hidden_size: int, mlp_ratio: float) -> int:
        """Hidden width of the MLP."""
        return swiglu_size(hidden_size, mlp_ratio) if self is MLPKind.SWIGLU else int(hidden_size * mlp_ratio)

    def build(self, hidden_size: int, mlp_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "SwiGLU | PlainMLP":
        return (SwiGLU if self is MLPKind.SWIGLU else PlainMLP)(hidden_size, mlp_size, dtype=dtype, rngs=rngs)


def swiglu_size(hidden_size: int, mlp_ratio: float) -> int:
    """Width of SwiGLU: two thirds of the ungated MLP's, for as many parameters; a multiple of 64."""
    return max(64, round(hidden_size * mlp_ratio * 2 / 3 / 64) * 64)


class SwiGLU(nnx.Module):
    """SwiGLU, a gated MLP: silu(x W) * (x V), then W_2 (Shazeer, 2002.05202, eq. 6)."""

    def __init__(self, hidden_size: int, mlp_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.up = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(mlp_size, hidden_size, ("mlp", "embed"), rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class PlainMLP(nnx.Module):
    """GELU MLP: W_2 gelu(x W_1), with the tanh form of GELU (Hendrycks and Gimpel, 1606.08415, section 2)."""

    def __init__(
        self, features_in: int, mlp_size: int, features_out: int | None = None, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """`features_out` defaults to `features_in`."""
        self.up = linear(features_in, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(mlp_size, features_out or features_in, ("mlp", "embed"), rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b E"]:
        return self.down(nnx.gelu(self.up(x), approximate=True))
