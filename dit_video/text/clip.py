"""The text model of CLIP (Radford et al., 2103.00020, section 2.4) and of OpenCLIP (2212.07143).

A causal transformer with learnt positions: blocks normalise before attention and MLP, and the state of the token that
ends a caption stands for the whole of it. Blocks are stacked and scanned.
"""

import dataclasses
import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.nn.embed import linear
from dit_video.nn.norm import LayerNorm
from dit_video.sharding import constrain


class Activation(enum.Enum):
    """What lies between the two products of the MLP."""

    QUICK_GELU = "quick_gelu"  # x sigmoid(1.702 x), in the models of OpenAI
    GELU = "gelu"  # the exact one, in those of OpenCLIP

    def __call__(self, x: Float[Array, "*b M"]) -> Float[Array, "*b M"]:
        if self is Activation.QUICK_GELU:
            return x * nnx.sigmoid(1.702 * x)
        return nnx.gelu(x, approximate=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """What a text model of CLIP is.

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
    """What a text model of CLIP makes of captions.

    Attributes:
        last: each token after all blocks, normalised.
        penultimate: each token before the last block, not normalised.
        pooled: the normalised state of the token that ends the caption, projected where there is a projection.
    """

    last: Float[Array, "B L D"]
    penultimate: Float[Array, "B L D"]
    pooled: Float[Array, "B P"]


class CLIPTextModel(nnx.Module):
    """Ids of tokens -> what each means with the tokens before it, and what all of them mean.

    Attributes:
        dtype: what is computed in. Parameters may be of any type that `Definition.bind` is given.
    """

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.table = _table(config.vocab_size, config.hidden_size, ("vocab", "embed"), rngs=rngs)
        self.positions = _table(config.num_positions, config.hidden_size, (None, "embed"), rngs=rngs)
        self.blocks = jax.vmap(lambda key: CLIPBlock(config, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), config.depth)
        )
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


class CLIPBlock(nnx.Module):
    """Causal attention and MLP, each of the normalised stream and added to it."""

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, epsilon = config.hidden_size, config.norm_epsilon
        self.attention_norm = LayerNorm(D, rngs=rngs, epsilon=epsilon)
        self.attention = CausalAttention(D, config.num_heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = LayerNorm(D, rngs=rngs, epsilon=epsilon)
        self.up = linear(D, config.mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(config.mlp_size, D, ("mlp", "embed"), rngs=rngs, dtype=dtype)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class CausalAttention(nnx.Module):
    """Every token attends to itself and to those before it."""

    def __init__(self, hidden_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        heads = (num_heads, hidden_size // num_heads)
        init, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
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

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla"))


def _table(num: int, features: int, axes: tuple[str | None, str | None], *, rngs: nnx.Rngs) -> nnx.Param:
    init = nnx.with_metadata(nnx.initializers.normal(0.02), axes=axes)
    return nnx.Param(init(rngs.params(), (num, features), jnp.float32), axes=axes)
