"""Transformer over text tokens, for masked diffusion, block diffusion and autoregression alike.

Which of them it is the attention mask says, and nothing else: the parameters are the same. It has no time input: the
masks in its input say how much is to be written (MDLM, 2406.07524, appendix E.3, loses nothing by leaving it out), and
without one what is computed for a token stays valid in a cache.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.config.bounds import above
from dit_video.distributed.sharding import constrain
from dit_video.dit.network import TransformerConfig, scan_blocks
from dit_video.nn.attention import Attend, Attention
from dit_video.nn.attention_mask import FULL, AttentionMask
from dit_video.nn.cache import KeyValueCache
from dit_video.nn.linear import linear
from dit_video.nn.mlp import MLPKind
from dit_video.nn.norm import RMSNorm
from dit_video.nn.positions import rope_angles
from dit_video.nn.softmax_attention import self_attention

Tokens = Int[Array | np.ndarray, "B N"]
Logits = Float[Array, "B N V"]
_NORMAL = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTransformerConfig(TransformerConfig):
    """Configuration of a text transformer: RMSNorm, normalised queries and keys, rotary positions, SwiGLU.

    Attributes:
        mlp_ratio: width of the MLP over that of the stream, for an MLP without a gate (`MLPKind.size`).
    """

    mlp_ratio: float = 4.0

    def __post_init__(self):
        super().__post_init__()
        above(self, 0, "mlp_ratio")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"TextTransformerConfig.hidden_size={self.hidden_size}: must be a multiple of 2 num_heads = "
                f"{2 * self.num_heads}, for rotary positions turn pairs of features"
            )

    @property
    def mlp_size(self) -> int:
        return MLPKind.SWIGLU.size(self.hidden_size, self.mlp_ratio)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def build(self, num_tokens: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "TextTransformer":
        """The network for a vocabulary of `num_tokens`, with fresh parameters; dtype is that of activations."""
        return TextTransformer(self, num_tokens, dtype=dtype, rngs=rngs)


class TextBlock(nnx.Module):
    """Pre-norm transformer block: attention and SwiGLU."""

    def __init__(self, config: TextTransformerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D = config.hidden_size
        self.attention_norm, self.mlp_norm = RMSNorm(D, rngs=rngs), RMSNorm(D, rngs=rngs)
        self.attention = Attention(D, config.num_heads, dtype=dtype, rngs=rngs)
        self.mlp = MLPKind.SWIGLU.build(D, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        angles: Float[Array | np.ndarray, "N r"],
        attend: Attend = self_attention,
        mask: AttentionMask = FULL,
    ) -> Float[Array, "B N D"]:
        x = x + self.attention(self.attention_norm(x), angles, attend, mask)
        return x + self.mlp(self.mlp_norm(x))


class TextTransformer(nnx.Module):
    """Tokens, the mask token among them, to logits of all tokens but the mask."""

    def __init__(self, config: TextTransformerConfig, num_tokens: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype, D = config, dtype, config.hidden_size
        table = nnx.with_metadata(_NORMAL, axes=("vocab", "embed"))
        # The row after the last token is the mask.
        self.embedding = nnx.Param(table(rngs.params(), (num_tokens + 1, D), jnp.float32), axes=("vocab", "embed"))
        # One stacked block: every parameter gains a leading axis of `depth` layers.
        self.blocks = jax.vmap(lambda key: TextBlock(config, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.final_norm = RMSNorm(D, rngs=rngs)
        self.head = linear(D, num_tokens, ("embed", "vocab"), rngs=rngs, dtype=dtype, init=_NORMAL, use_bias=False)

    def __call__(
        self, tokens: Tokens, mask: AttentionMask = FULL, positions: Int[np.ndarray, "N"] | None = None
    ) -> Logits:
        """Logits of every token of whole sequences, float32.

        Args:
            mask: which tokens see which.
            positions: of the tokens in their sequence; None: 0 ... N - 1.
        """
        places = np.arange(tokens.shape[1]) if positions is None else positions
        angles = rope_angles(places[:, None].astype(np.float32), self.config.head_dim)

        def apply(x: Array, block: TextBlock) -> Array:
            return block(constrain(x, "batch", "tokens", None), angles, mask=mask)

        x, _ = scan_blocks(apply, self._embed(tokens), self.blocks, remat=self.config.remat)
        return self._logits(x)

    def layers(self) -> list[TextBlock]:
        """The blocks one by one; made before a loop over tokens, for what is cut out within is copied each time."""
        return [jax.tree.map(lambda x, i=i: x[i], self.blocks) for i in range(self.config.depth)]

    def cached(
        self,
        layers: list[TextBlock],
        tokens: Tokens,
        first: Int[Array, ""] | int,
        cache: KeyValueCache,
        mask: AttentionMask,
    ) -> tuple[Logits, KeyValueCache]:
        """Logits of the tokens `first` ... of sequences whose tokens before are in the cache; and the cache with them.

        Args:
            layers: those of `layers`.
            mask: of the whole sequence.
        """
        num = tokens.shape[1]
        table = rope_angles(np.arange(cache.capacity, dtype=np.float32)[:, None], self.config.head_dim)
        angles = jax.lax.dynamic_slice_in_dim(jnp.asarray(table), first, num)
        cache = cache.at(first, num)
        allowed = cache.allowed(mask, first, num)
        x = self._embed(tokens)
        for layer, block in enumerate(layers):

            def attend(q: Array, k: Array, v: Array, layer: int = layer) -> Array:
                nonlocal cache
                cache = cache.write(layer, k, v, first)
                return cache.attend(layer, q, allowed)

            x = block(x, angles, attend)
        return self._logits(x), cache

    def empty_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        config = self.config
        return KeyValueCache.empty(
            num_layers=config.depth,
            batch_size=batch_size,
            capacity=capacity,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            dtype=self.dtype,
        )

    def _embed(self, tokens: Tokens) -> Float[Array, "B N D"]:
        # Looked up in the whole table: rows that are split over devices would be brought together one by one.
        table = constrain(self.embedding[...], None, None)
        return table.at[jnp.asarray(tokens)].get(mode="clip").astype(self.dtype)

    def _logits(self, x: Float[Array, "B N D"]) -> Logits:
        return self.head(self.final_norm(x)).astype(jnp.float32)
