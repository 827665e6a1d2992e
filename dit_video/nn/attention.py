"""Multi-head attention over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.nn.embed import rotate
from dit_video.nn.norm import RMSNorm


class Attention(nnx.Module):
    """Full self-attention with RMS-normalised queries and keys and rotary positions.

    Normalising queries and keys bounds the logits, which keeps bf16 training stable (Dehghani et al., ViT-22B,
    2302.05442; used by SD3, 2403.03206 section 5.3.2). One kernel holds q, k and v with a `heads` axis of its
    own, so that sharding over heads needs no communication to split them.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if hidden_size % num_heads:
            raise ValueError(f"{hidden_size=} is not a multiple of {num_heads=}")
        head_dim = hidden_size // num_heads
        xavier = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        zeros = nnx.initializers.zeros
        self.qkv = nnx.LinearGeneral(
            hidden_size,
            (3, num_heads, head_dim),
            dtype=dtype,
            kernel_init=nnx.with_metadata(xavier, axes=("embed", None, "heads", "head_dim")),
            bias_init=nnx.with_metadata(zeros, axes=(None, "heads", "head_dim")),
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            (num_heads, head_dim),
            hidden_size,
            axis=(-2, -1),
            dtype=dtype,
            kernel_init=nnx.with_metadata(xavier, axes=("heads", "head_dim", "embed")),
            bias_init=nnx.with_metadata(zeros, axes=("embed",)),
            rngs=rngs,
        )
        self.query_norm = RMSNorm(head_dim, rngs=rngs)
        self.key_norm = RMSNorm(head_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], angles: Float[Array | np.ndarray, "N r"]) -> Float[Array, "B N D"]:
        """Attends from every token to every token; `angles` are those of `rope_angles`."""
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        q = rotate(self.query_norm(q), angles)
        k = rotate(self.key_norm(k), angles)
        return self.out(jax.nn.dot_product_attention(q, k, v))
