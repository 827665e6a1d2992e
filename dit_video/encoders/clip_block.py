"""CLIP transformer block, of its text and vision models (Radford et al., 2103.00020, sections 2.4 and 3.2)."""

import enum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.nn.linear import linear
from dit_video.nn.norm import LayerNorm


class Activation(enum.Enum):
    """Activation function of the MLP."""

    QUICK_GELU = "quick_gelu"  # x sigmoid(1.702 x), in the models of OpenAI
    GELU = "gelu"  # the exact one, in those of OpenCLIP

    def __call__(self, x: Float[Array, "*b M"]) -> Float[Array, "*b M"]:
        if self is Activation.QUICK_GELU:
            return x * nnx.sigmoid(1.702 * x)
        return nnx.gelu(x, approximate=False)


class CLIPBlock(nnx.Module):
    """Pre-norm transformer block: attention and MLP.

    Args:
        causal: whether a token attends to itself and those before it alone, as in captions; else to all.
        epsilon: added to the variance by the norms.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_size: int,
        activation: Activation,
        *,
        causal: bool,
        epsilon: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = LayerNorm(hidden_size, rngs=rngs, epsilon=epsilon)
        self.attention = _Attention(hidden_size, num_heads, causal=causal, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(hidden_size, rngs=rngs, epsilon=epsilon)
        self.up = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(mlp_size, hidden_size, ("mlp", "embed"), rngs=rngs, dtype=dtype)
        self.activation = activation

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class _Attention(nnx.Module):
    """Multi-head self-attention with biases; softmax in float32."""

    def __init__(self, hidden_size: int, num_heads: int, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        heads = (num_heads, hidden_size // num_heads)
        init, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        self.causal = causal
        self.qkv = nnx.LinearGeneral(
            hidden_size,
            (3, *heads),
            dtype=dtype,
            kernel_init=nnx.with_metadata(init, axes=("embed", None, "heads", "head_dim")),
            bias_init=nnx.with_metadata(zeros, axes=(None, "heads", "head_dim")),
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            heads,
            hidden_size,
            axis=(-2, -1),
            dtype=dtype,
            kernel_init=nnx.with_metadata(init, axes=("heads", "head_dim", "embed")),
            bias_init=nnx.with_metadata(zeros, axes=("embed",)),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=self.causal, implementation="xla"))
