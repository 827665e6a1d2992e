"""Byte-level text encoder: a small transformer over the bytes of a caption, trained with the network that it serves.

There is nothing to download.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import Captions, Text
from dit_video.distributed.sharding import constrain
from dit_video.nn.attention import Attention
from dit_video.nn.mlp import SwiGLU, swiglu_size
from dit_video.nn.norm import RMSNorm, rms_normalize
from dit_video.nn.positions import rope_angles
from dit_video.nn.softmax_attention import cross_attention

_NUM_BYTES = 256
_MLP_RATIO = 4.0


class TextBlock(nnx.Module):
    """Transformer block of the text encoder: self-attention and MLP with RMS pre-norm."""

    def __init__(self, hidden_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention = Attention(hidden_size, num_heads, dtype=dtype, rngs=rngs)
        self.mlp = SwiGLU(hidden_size, swiglu_size(hidden_size, _MLP_RATIO), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L E"], angles: Float[np.ndarray, "L r"], num_tokens: Int[Array, "B"]
    ) -> Float[Array, "B L E"]:
        x = x + self.attention(rms_normalize(x), angles, lambda q, k, v: cross_attention(q, k, v, num_tokens))
        return x + self.mlp(rms_normalize(x))


class TextEncoder(nnx.Module):
    """Bidirectional transformer: bytes of captions -> one token of width E for each byte, and their mean.

    Positions are rotary and padding is masked, so that a caption means the same at any length it is padded to.
    """

    def __init__(self, hidden_size: int, depth: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.hidden_size = self.pooled_size = hidden_size
        self.head_dim, self.dtype = hidden_size // num_heads, dtype
        init = nnx.with_metadata(nnx.initializers.normal(1.0), axes=("vocab", "embed"))
        self.table = nnx.Param(init(rngs.params(), (_NUM_BYTES, hidden_size), jnp.float32), axes=("vocab", "embed"))
        self.blocks = jax.vmap(lambda key: TextBlock(hidden_size, num_heads, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), depth)
        )
        self.norm = RMSNorm(hidden_size, rngs=rngs)

    def __call__(self, caption: Captions) -> Text:
        num_tokens = jnp.count_nonzero(caption, axis=1)
        angles = rope_angles(np.arange(caption.shape[1], dtype=np.float32)[:, None], self.head_dim)

        def apply_block(x, block):
            # Devices that share out the tokens of a clip share out those of its caption, until all need all of them.
            return block(constrain(x, "batch", "tokens", None), angles, num_tokens), None

        # As in LabelEmbedding, in the whole table.
        embedded = constrain(self.table[...], None, None)[caption].astype(self.dtype)
        x, _ = jax.lax.scan(apply_block, embedded, self.blocks)
        tokens = constrain(self.norm(x), "batch", None, None)
        real = jnp.arange(tokens.shape[1]) < num_tokens[:, None]
        pooled = jnp.sum(tokens * real[..., None], axis=1) / num_tokens[:, None].astype(tokens.dtype)
        return Text(tokens, num_tokens, pooled)
