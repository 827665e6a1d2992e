"""Key/value cache of attention: keys and values of what was computed before, to which tokens are appended.

One for all that goes forward in a sequence: text token by token or block by block, video frame by frame. The buffer has
one size, so that a whole generation is one program. It grows up to its capacity, or is a ring in which the newest
tokens take the places of the oldest, for masks with a window.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dit_video.nn.attention_mask import AttentionMask

_STATIC = {"static": True}  # no leaf of the pytree
Heads = Float[Array, "B n K d"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the tokens that a network has seen, for each of its layers.

    What is written again at the same place takes the place of what was there: a block of noisy tokens may be tried many
    times before it is written clean.

    Attributes:
        keys, values: of each layer, [B K M d] for M places; heads come first, so that attention reads rows as they lie.
        tokens: int [M], which token of the sequence each place holds; -1 where none.
        ring: whether the newest take the places of the oldest.
    """

    # Of no checked types: plans rebuild the pytree with shapes in place of arrays.
    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    tokens: Any
    ring: bool = dataclasses.field(default=False, metadata=_STATIC)

    @classmethod
    def empty(
        cls,
        *,
        num_layers: int,
        batch_size: int,
        capacity: int,
        num_heads: int,
        head_dim: int,
        dtype: DTypeLike,
        ring: bool = False,
    ) -> "KeyValueCache":
        """A cache that holds nothing and has room for `capacity` tokens."""
        zeros = (jnp.zeros((batch_size, num_heads, capacity, head_dim), dtype),) * num_layers
        return cls(zeros, zeros, jnp.full((capacity,), -1, jnp.int32), ring)

    @property
    def capacity(self) -> int:
        return self.tokens.shape[0]

    def at(self, first: Int[Array, ""] | int, num_tokens: int) -> "KeyValueCache":
        """The cache with places for the tokens `first` ... `first + num_tokens - 1`, still to be written.

        The places of a cache that grows end at its capacity: the caller appends no more than fit.

        Raises:
            ValueError: more tokens at once than there are places, or a ring in which such blocks have no whole places.
        """
        if num_tokens > self.capacity or (self.ring and self.capacity % num_tokens):
            rule = "a ring has whole places for blocks" if self.ring else "they must fit"
            raise ValueError(f"{num_tokens} tokens at once in a cache of {self.capacity}: {rule}")
        numbers = (jnp.asarray(first) + jnp.arange(num_tokens)).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(self.tokens, numbers, (self._place(first),))
        return dataclasses.replace(self, tokens=tokens)

    def write(self, layer: int, k: Heads, v: Heads, first: Int[Array, ""] | int) -> "KeyValueCache":
        """The cache with keys and values of tokens from number `first` on, in one layer."""
        where = (0, 0, self._place(first), 0)

        def put(buffers: tuple[Array, ...], x: Heads) -> tuple[Array, ...]:
            by_head = jnp.swapaxes(x, 1, 2).astype(buffers[layer].dtype)
            written = jax.lax.dynamic_update_slice(buffers[layer], by_head, where)
            return (*buffers[:layer], written, *buffers[layer + 1 :])

        return dataclasses.replace(self, keys=put(self.keys, k), values=put(self.values, v))

    def allowed(self, mask: AttentionMask, first: Int[Array, ""] | int, num_tokens: int) -> Bool[Array, "n M"]:
        """Which places each of the tokens from `first` on may attend to."""
        queries = jnp.asarray(first) + jnp.arange(num_tokens)
        return jnp.asarray(mask.allowed(queries, self.tokens)) & (self.tokens >= 0)

    def attend(self, layer: int, q: Heads, allowed: Bool[Array, "n M"]) -> Heads:
        """softmax(q k^T / sqrt(d)) v over the places that are allowed; softmax in float32."""
        logits = jnp.einsum("bqkd,bkmd->bkqm", q, self.keys[layer], preferred_element_type=jnp.float32)
        logits = jnp.where(allowed, logits * q.shape[-1] ** -0.5, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(q.dtype)
        return jnp.einsum("bkqm,bkmd->bqkd", weights, self.values[layer])

    def _place(self, first: Int[Array, ""] | int) -> Int[Array, ""]:
        return jnp.asarray(first, jnp.int32) % self.capacity if self.ring else jnp.asarray(first, jnp.int32)
