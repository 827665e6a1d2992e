"""The MLP of a transformer block."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.nn.embed import linear


def swiglu_size(hidden_size: int, mlp_ratio: float) -> int:
    """Width of SwiGLU: two thirds of the ungated MLP's, for as many parameters; a multiple of 64."""
    return max(64, round(hidden_size * mlp_ratio * 2 / 3 / 64) * 64)


class SwiGLU(nnx.Module):
    """Gated MLP, silu(x W) * (x V), then W_2 (Shazeer, 2002.05202, eq. 6)."""

    def __init__(self, hidden_size: int, mlp_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.up = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(mlp_size, hidden_size, ("mlp", "embed"), rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))
