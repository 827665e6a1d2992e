"""Multi-head self-attention and cross-attention, with QK normalisation and rotary positions."""

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.nn.attention_mask import FULL, AttentionMask, Full
from dit_video.nn.module import recomputed
from dit_video.nn.positions import rotate
from dit_video.nn.softmax_attention import cross_attention, self_attention

_XAVIER = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_ZEROS = nnx.initializers.zeros
_QK_NORM_EPSILON = 1e-6
_Heads = Float[Array, "B N K d"]
Attend = Callable[..., _Heads]


class QKNorm(enum.Enum):
    """QK normalisation: over what queries and keys are RMS-normalised, each with a learnt scale."""

    NONE = "none"
    PER_HEAD = "per_head"
    ACROSS_HEADS = "across_heads"  # over all heads of a token together (Wan, 2503.20314)


class HeadsNorm(nnx.Module):
    """RMS normalisation of queries or keys, sharded over heads like them."""

    def __init__(self, kind: QKNorm, num_heads: int, head_dim: int, *, rngs: nnx.Rngs):
        across = kind is QKNorm.ACROSS_HEADS
        self.axes = (-2, -1) if across else (-1,)
        shape, axes = ((num_heads, head_dim), ("heads", None)) if across else ((head_dim,), (None,))
        init = nnx.with_metadata(nnx.initializers.ones, axes=axes)
        self.scale = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(self, x: Float[Array, "B N K d"]) -> Float[Array, "B N K d"]:
        @recomputed
        def normalize(x, scale):
            y = x.astype(jnp.float32)
            y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=self.axes, keepdims=True) + _QK_NORM_EPSILON)
            return (y * scale).astype(x.dtype)

        return normalize(x, self.scale[...])


class Attention(nnx.Module):
    """Multi-head self-attention, with optional QK normalisation and rotary positions.

    Normalising queries and keys bounds the logits, which keeps bf16 training stable (Dehghani et al., ViT-22B,
    2302.05442; used by SD3, 2403.03206 section 5.3.2). One kernel holds q, k and v with a `heads` axis of its
    own, so that sharding over heads needs no communication to split them.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        qk_norm: QKNorm = QKNorm.PER_HEAD,
    ):
        head_dim = _head_dim(hidden_size, num_heads)
        init = kernel_init(qk_norm)
        self.qkv = to_heads(hidden_size, (3, num_heads, head_dim), init, dtype=dtype, rngs=rngs)
        self.out = from_heads(num_heads, hidden_size, init, dtype=dtype, rngs=rngs)
        self.query_norm = heads_norm(qk_norm, num_heads, head_dim, rngs=rngs)
        self.key_norm = heads_norm(qk_norm, num_heads, head_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        angles: Float[Array | np.ndarray, "N r"] | None,
        attend: Attend = self_attention,
        mask: AttentionMask = FULL,
    ) -> Float[Array, "B N D"]:
        """Attends from every token to those that `mask` allows.

        Args:
            angles: those of `rope_angles`; None leaves queries and keys without positions.
            attend: softmax attention of queries, keys and values; it takes a `mask` where one is given.
        """
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(attend(q, k, v) if isinstance(mask, Full) else attend(q, k, v, mask=mask))


class CrossAttention(nnx.Module):
    """Attention from tokens to those of another sequence, of width `others_size`; normalised as in `Attention`.

    It gives zero until it has learnt otherwise: a block that gains it stays the function it was.
    """

    def __init__(
        self,
        hidden_size: int,
        others_size: int,
        num_heads: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        qk_norm: QKNorm = QKNorm.PER_HEAD,
    ):
        head_dim = _head_dim(hidden_size, num_heads)
        init = kernel_init(qk_norm)
        self.query = to_heads(hidden_size, (num_heads, head_dim), init, dtype=dtype, rngs=rngs)
        self.key_value = to_heads(others_size, (2, num_heads, head_dim), init, dtype=dtype, rngs=rngs)
        self.out = from_heads(num_heads, hidden_size, _ZEROS, dtype=dtype, rngs=rngs)
        self.query_norm = heads_norm(qk_norm, num_heads, head_dim, rngs=rngs)
        self.key_norm = heads_norm(qk_norm, num_heads, head_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array | np.ndarray, "B L E"],
        num_context: Int[Array | np.ndarray, "B"] | None,
    ) -> Float[Array, "B N D"]:
        """Attends from every token to the first `num_context` tokens of `context`, at least one; None: to all."""
        k, v = jnp.moveaxis(self.key_value(jnp.asarray(context)), 2, 0)
        q = self.query(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return self.out(cross_attention(q, k, v, None if num_context is None else jnp.asarray(num_context)))


def heads_norm(kind: QKNorm, num_heads: int, head_dim: int, *, rngs: nnx.Rngs) -> HeadsNorm | None:
    return None if kind is QKNorm.NONE else HeadsNorm(kind, num_heads, head_dim, rngs=rngs)


def kernel_init(qk_norm: QKNorm) -> nnx.Initializer:
    """Initialiser of the qkv kernel: without QK normalisation their scale matters, and is as in DiT."""
    return nnx.initializers.xavier_uniform() if qk_norm is QKNorm.NONE else _XAVIER


def _head_dim(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise ValueError(f"{hidden_size=} is not a multiple of {num_heads=}")
    return hidden_size // num_heads


def to_heads(
    features: int,
    heads: tuple[int, int] | tuple[int, int, int],
    init: nnx.Initializer,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """Linear layer from features to (heads, head size), or to several of these side by side (qkv)."""
    axes = (None, "heads", "head_dim")[-len(heads) :]
    return nnx.LinearGeneral(
        features,
        heads,
        dtype=dtype,
        kernel_init=nnx.with_metadata(init, axes=("embed", *axes)),
        bias_init=nnx.with_metadata(_ZEROS, axes=axes),
        rngs=rngs,
    )


def from_heads(
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
