"""CLIP text encoder (Radford et al., 2103.00020, section 2.4; OpenCLIP, 2212.07143).

A causal transformer with learnt positions: blocks normalise before attention and MLP, and the state of the token that
ends a caption stands for the whole of it. Blocks are stacked and scanned.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from dit_video.distributed.sharding import constrain
from dit_video.encoders.clip_block import Activation, CLIPBlock
from dit_video.nn.linear import linear
from dit_video.nn.norm import LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of a CLIP text encoder.

    Attributes:
        num_positions: the most tokens that a caption may have, ends included.
        end_token: the id of the token that ends a caption.
        projection_size: width that the whole caption is projected to; None where the weights come without projection.
        norm_epsilon: added to the variance.
    """

    vocab_size: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_size: int
    activation: Activation
    end_token: int
    num_positions: int = 77
    projection_size: int | None = None
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"CLIPTextConfig.hidden_size={self.hidden_size}: must be a multiple of num_heads={self.num_heads}"
            )


class CLIPStates(NamedTuple):
    """Hidden states and pooled embedding of a CLIP text encoder.

    Attributes:
        last: each token after all blocks, normalised.
        penultimate: each token before the last block, not normalised.
        pooled: the normalised state of the token that ends the caption, projected where there is a projection.
    """

    last: Float[Array, "B L D"]
    penultimate: Float[Array, "B L D"]
    pooled: Float[Array, "B P"]


class CLIPTextModel(nnx.Module):
    """CLIP text encoder: token ids -> causal hidden states and a pooled embedding.

    Attributes:
        dtype: what is computed in. Parameters may be of any type that `Definition.bind` is given.
    """

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.table = _table(config.vocab_size, config.hidden_size, ("vocab", "embed"), rngs=rngs)
        self.positions = _table(config.num_positions, config.hidden_size, (None, "embed"), rngs=rngs)

        def block(key: Key[Array, ""]) -> CLIPBlock:
            sizes = (config.hidden_size, config.num_heads, config.mlp_size, config.activation)
            rest = {"causal": True, "epsilon": config.norm_epsilon}
            return CLIPBlock(*sizes, **rest, dtype=dtype, rngs=nnx.Rngs(key))

        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), config.depth))
        self.norm = LayerNorm(config.hidden_size, rngs=rngs, epsilon=config.norm_epsilon)
        self.projection = (
            None
            if config.projection_size is None
            else linear(
                config.hidden_size, config.projection_size, ("embed", None), rngs=rngs, dtype=dtype, use_bias=False
            )
        )

    def __call__(self, ids: Int[Array, "B L"]) -> CLIPStates:
        """States of captions of at most `num_positions` tokens; padding follows a caption's end, so none sees it."""
        num_tokens = ids.shape[1]
        table = constrain(self.table[...], None, None)
        embedded = (table[ids] + self.positions[...][:num_tokens]).astype(self.dtype)

        def apply_block(states, block):
            x, _ = states
            return (block(constrain(x, "batch", None, None)), x), None

        (x, penultimate), _ = jax.lax.scan(apply_block, (embedded, embedded), self.blocks)
        last = self.norm(x)
        ends = jnp.argmax(ids == self.config.end_token, axis=1)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        return CLIPStates(last, penultimate, pooled if self.projection is None else self.projection(pooled))


def _table(num: int, features: int, axes: tuple[str | None, str | None], *, rngs: nnx.Rngs) -> nnx.Param:
    init = nnx.with_metadata(nnx.initializers.normal(0.02), axes=axes)
    return nnx.Param(init(rngs.params(), (num, features), jnp.float32), axes=axes)
