"""Multi-head attention over tokens: of one sequence to itself, and of one to another."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.nn.embed import rotate
from dit_video.nn.norm import RMSNorm
from dit_video.nn.softmax_attention import cross_attention, self_attention

_XAVIER = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_ZEROS = nnx.initializers.zeros


class Attention(nnx.Module):
    """Full self-attention, with RMS-normalised queries and keys and rotary positions where they are asked for.

    Normalising queries and keys bounds the logits, which keeps bf16 training stable (Dehghani et al., ViT-22B,
    2302.05442; used by SD3, 2403.03206 section 5.3.2). One kernel holds q, k and v with a `heads` axis of its
    own, so that sharding over heads needs no communication to split them.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs, normalize_qk: bool = True
    ):
        head_dim = _head_dim(hidden_size, num_heads)
        # The scale of queries and keys matters where nothing normalises them: there it is as DiT's.
        init = _XAVIER if normalize_qk else nnx.initializers.xavier_uniform()
        self.qkv = _to_heads(hidden_size, (3, num_heads, head_dim), init, dtype=dtype, rngs=rngs)
        self.out = _from_heads(num_heads, hidden_size, init, dtype=dtype, rngs=rngs)
        self.query_norm = RMSNorm(head_dim, rngs=rngs) if normalize_qk else None
        self.key_norm = RMSNorm(head_dim, rngs=rngs) if normalize_qk else None

    def __call__(
        self,
        x: Float[Array, "B N D"],
        angles: Float[Array | np.ndarray, "N r"] | None,
        num_tokens: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Attends from every token to every token, or to the first `num_tokens`, at least one, where they are given.

        Args:
            angles: those of `rope_angles`; None leaves queries and keys without positions.
        """
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(self_attention(q, k, v) if num_tokens is None else cross_attention(q, k, v, num_tokens))


class CrossAttention(nnx.Module):
    """Attention from tokens to those of another sequence, of width `others_size`; normalised as in `Attention`.

    It gives zero until it has learnt otherwise: a block that gains it stays the function it was.
    """

    def __init__(self, hidden_size: int, others_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        head_dim = _head_dim(hidden_size, num_heads)
        self.query = _to_heads(hidden_size, (num_heads, head_dim), _XAVIER, dtype=dtype, rngs=rngs)
        self.key_value = _to_heads(others_size, (2, num_heads, head_dim), _XAVIER, dtype=dtype, rngs=rngs)
        self.out = _from_heads(num_heads, hidden_size, _ZEROS, dtype=dtype, rngs=rngs)
        self.query_norm = RMSNorm(head_dim, rngs=rngs)
        self.key_norm = RMSNorm(head_dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], others: Float[Array, "B L E"], num_others: Int[Array, "B"]
    ) -> Float[Array, "B N D"]:
        """Attends from every token to the first `num_others` of the others, at least one."""
        k, v = jnp.moveaxis(self.key_value(others), 2, 0)
        q, k = self.query_norm(self.query(x)), self.key_norm(k)
        return self.out(cross_attention(q, k, v, num_others))


def _head_dim(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise ValueError(f"{hidden_size=} is not a multiple of {num_heads=}")
    return hidden_size // num_heads


def _to_heads(
    features: int,
    heads: tuple[int, int] | tuple[int, int, int],
    init: nnx.Initializer,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """features -> (heads, head size), or several of these side by side."""
    axes = (None, "heads", "head_dim")[-len(heads) :]
    return nnx.LinearGeneral(
        features,
        heads,
        dtype=dtype,
        kernel_init=nnx.with_metadata(init, axes=("embed", *axes)),
        bias_init=nnx.with_metadata(_ZEROS, axes=axes),
        rngs=rngs,
    )


def _from_heads(
    num_heads: int, hidden_size: int, init: nnx.Initializer, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    return nnx.LinearGeneral(
        (num_heads, hidden_size // num_heads),
        hidden_size,
        axis=(-2, -1),
        dtype=dtype,
        kernel_init=nnx.with_metadata(init, axes=("heads", "head_dim", "embed")),
        bias_init=nnx.with_metadata(_ZEROS, axes=("embed",)),
        rngs=rngs,
    )
