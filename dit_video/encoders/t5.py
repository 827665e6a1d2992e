"""T5 v1.1 text encoder (Raffel et al., 1910.10683; Shazeer, 2002.05202) and UMT5 (Chung et al., 2304.09151).

Blocks normalise by RMS before attention and MLP, nothing has a bias, logits are not divided by sqrt(d), and the only
positions are a learnt number for each head and each range of distances, which is added to the logits. T5 has one table
of these numbers for all blocks, UMT5 one in each. Blocks are stacked and scanned.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.config.bounds import at_least
from dit_video.distributed.sharding import constrain
from dit_video.nn.linear import linear
from dit_video.nn.norm import RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of a T5 or UMT5 encoder.

    Attributes:
        head_dim: size of a head; `num_heads` of them need not be as wide as `hidden_size`.
        num_buckets: ranges of relative distances; half of them for tokens that come after.
        max_distance: from here on all distances are one range.
        bias_in_every_block: UMT5; else the blocks share one table of position biases.
        norm_epsilon: added to the mean square.
    """

    vocab_size: int
    hidden_size: int
    depth: int
    num_heads: int
    head_dim: int
    mlp_size: int
    num_buckets: int = 32
    max_distance: int = 128
    bias_in_every_block: bool = False
    norm_epsilon: float = 1e-6

    def __post_init__(self):
        at_least(self, 1, "vocab_size", "hidden_size", "depth", "num_heads", "head_dim", "mlp_size")
        at_least(self, 2, "num_buckets", "max_distance")


class T5Encoder(nnx.Module):
    """T5 encoder: token ids -> bidirectional hidden states, normalised.

    Attributes:
        dtype: what is computed in. Parameters may be of any type that `Definition.bind` is given.
    """

    def __init__(self, config: T5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        axes = ("vocab", "embed")
        init = nnx.with_metadata(nnx.initializers.normal(1.0), axes=axes)
        self.table = nnx.Param(init(rngs.params(), (config.vocab_size, config.hidden_size), jnp.float32), axes=axes)
        self.position_bias = None if config.bias_in_every_block else PositionBias(config, rngs=rngs)
        self.blocks = jax.vmap(lambda key: T5Block(config, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.norm = RMSNorm(config.hidden_size, rngs=rngs, epsilon=config.norm_epsilon)

    def __call__(self, ids: Int[Array, "B L"], num_tokens: Int[Array, "B"] | None) -> Float[Array, "B L D"]:
        """Attends to the first `num_tokens`, at least one; to all, padding too, where None."""
        buckets = position_buckets(ids.shape[1], self.config.num_buckets, self.config.max_distance)
        shared = None if self.position_bias is None else self.position_bias(buckets)

        def apply_block(x, block):
            bias = block.position_bias(buckets) if shared is None else shared
            return block(constrain(x, "batch", None, None), bias, num_tokens), None

        embedded = constrain(self.table[...], None, None)[ids].astype(self.dtype)
        x, _ = jax.lax.scan(apply_block, embedded, self.blocks)
        return self.norm(x)


class T5Block(nnx.Module):
    """Pre-norm T5 block: attention and gated MLP."""

    def __init__(self, config: T5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, epsilon = config.hidden_size, config.norm_epsilon
        self.position_bias = PositionBias(config, rngs=rngs) if config.bias_in_every_block else None
        self.attention_norm = RMSNorm(D, rngs=rngs, epsilon=epsilon)
        self.attention = T5Attention(config, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(D, rngs=rngs, epsilon=epsilon)
        self.mlp = GatedGELU(D, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], bias: Float[Array, "K L L"], num_tokens: Int[Array, "B"] | None
    ) -> Float[Array, "B L D"]:
        x = x + self.attention(self.attention_norm(x), bias, num_tokens)
        return x + self.mlp(self.mlp_norm(x))


class T5Attention(nnx.Module):
    """T5 self-attention with position bias: softmax(q k^T + bias) v."""

    def __init__(self, config: T5Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, heads = config.hidden_size, (config.num_heads, config.head_dim)
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.qkv = nnx.LinearGeneral(
            D,
            (3, *heads),
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.with_metadata(init, axes=("embed", None, "heads", "head_dim")),
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            heads,
            D,
            axis=(-2, -1),
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.with_metadata(init, axes=("heads", "head_dim", "embed")),
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "B L D"], bias: Float[Array, "K L L"], num_tokens: Int[Array, "B"] | None
    ) -> Float[Array, "B L D"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        attended = jax.nn.dot_product_attention(
            q, k, v, bias=bias[None], scale=1.0, key_value_seq_lengths=num_tokens, implementation="xla"
        )
        return self.out(attended)


class GatedGELU(nnx.Module):
    """(gelu(x W) * (x V)) W_2 without biases (2002.05202, eq. 6), with the tanh form of GELU."""

    def __init__(self, hidden_size: int, mlp_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype, use_bias=False)
        self.up = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype, use_bias=False)
        self.down = linear(mlp_size, hidden_size, ("mlp", "embed"), rngs=rngs, dtype=dtype, use_bias=False)

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        return self.down(nnx.gelu(self.gate(x), approximate=True) * self.up(x))


class PositionBias(nnx.Module):
    """Relative position bias of attention logits, per head (1910.10683, section 2.1)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        axes = (None, "heads")
        init = nnx.with_metadata(nnx.initializers.normal(1.0), axes=axes)
        self.table = nnx.Param(init(rngs.params(), (config.num_buckets, config.num_heads), jnp.float32), axes=axes)

    def __call__(self, buckets: Int[np.ndarray, "L L"]) -> Float[Array, "K L L"]:
        return jnp.moveaxis(self.table[...][buckets], -1, 0).astype(jnp.float32)


def position_buckets(num_tokens: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "L L"]:
    """Relative position bucket of the distance from each query (row) to each key (column).

    Half of the ranges are for keys that come after their query. Of each half, one half holds single distances, and the
    rest grow geometrically up to `max_distance`.
    """
    positions = np.arange(num_tokens)
    offset = positions[None, :] - positions[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # In float32, as the published code has it: rounding decides on which side of an edge a distance falls.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    return np.where(distance < exact, distance, far) + np.where(offset > 0, half, 0)
