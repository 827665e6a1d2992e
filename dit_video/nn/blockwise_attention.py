"""Blockwise masked attention and ring attention in XLA: exact, and without the [N N] logits.

FlashAttention's algorithms (2205.14135, 1 and 4) as loops of XLA: the softmax of a query is made up from one block of
keys after another, and the backward pass computes logits again from the log-sum-exp. Pairs of blocks that the mask
hides whole are not visited. Where tokens are split over devices, keys and values travel round a ring (Liu et al.,
2310.01889) and each device merges what it sees.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dit_video.nn.attention_mask import AttentionMask, Full, Span
from dit_video.nn.whole_attention import named

Heads = Float[Array, "B N K d"]
Number = Int[Array, ""] | int
Carry = TypeVar("Carry")
# At most so many tokens are a block. In memory at a time are the logits of one block of queries and one of keys.
BLOCK_SIZE = 256
_LOWEST = float(np.finfo(np.float32).min)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend_in_blocks(
    q: Heads, k: Heads, v: Heads, mask: AttentionMask, axis: str | None = None, block_size: int = BLOCK_SIZE
) -> Heads:
    """Masked attention softmax(q k^T / sqrt(d)) v over the keys that the mask allows; zero where it allows none.

    What is kept for the backward pass is the result and its log-sum-exp; the ring goes round once more, with the
    gradients of keys and values travelling along.

    Args:
        mask: of the whole sequence. Under `Full` the tokens of a device are one block.
        axis: inside shard_map, the mesh axis along which devices have equal parts of the sequence, in order; None
            where all of it is here.
        block_size: tokens of a block, at most.
    """
    return _forward(q, k, v, mask, axis, block_size)[0]


class _Seen(NamedTuple):
    """What queries have made of the keys so far: a sum of values and of weights, relative to the highest logit."""

    total: Float[Array, "*n B K Q d"]
    weight: Float[Array, "*n B K Q"]
    peak: Float[Array, "*n B K Q"]


def _forward(q: Heads, k: Heads, v: Heads, mask: AttentionMask, axis: str | None, block_size: int):
    blocks = _cut(mask, q.shape[1], axis, block_size)
    hide = blocks.hide(mask)
    queries, *kv = (blocks.enter(x) for x in (q, k, v))

    def visit(seen: _Seen, kv: list[Array], turn: Number) -> _Seen:
        def visit_pair(seen: _Seen, i: Number, j: Number) -> _Seen:
            q, (k, v) = blocks.at(queries, i), blocks.at(kv, j)
            return blocks.put(seen, i, _merge(blocks.at(seen, i), hide(_logits(q, k), i, j, turn), v))

        return blocks.over_pairs(visit_pair, seen)

    def visit_and_pass_on(carry, turn: Number):
        seen, kv = carry
        # Sent before it is used, so that sending and computing overlap.
        return (visit(seen, kv, turn), _pass_on(kv, axis)), None

    *before, Q, K, d = queries.shape
    seen = _Seen(jnp.zeros((*before, K, Q, d)), jnp.zeros((*before, K, Q)), jnp.full((*before, K, Q), _LOWEST))
    last = blocks.num_devices - 1
    if last:
        (seen, kv), _ = jax.lax.scan(visit_and_pass_on, (seen, kv), jnp.arange(last))
    total, weight, peak = visit(seen, kv, last)
    weight = jnp.maximum(weight, 1.0)  # what the highest logit weighs: less is where nothing was seen
    out = named(blocks.leave(jnp.swapaxes(total / weight[..., None], -3, -2)).astype(q.dtype))
    return out, (q, k, v, mask, out, named(peak + jnp.log(weight)))


def _merge(seen: _Seen, logits: Float[Array, "B K Q M"], v: Float[Array, "B M K d"]) -> _Seen:
    highest = jnp.maximum(seen.peak, logits.max(-1))
    p, fade = jnp.exp(logits - highest[..., None]), jnp.exp(seen.peak - highest)
    total = seen.total * fade[..., None] + _sum("bhqk,bkhd->bhqd", p.astype(v.dtype), v)
    return _Seen(total, seen.weight * fade + p.sum(-1), highest)


def _backward(axis: str | None, block_size: int, residuals, d_out: Heads):
    q, k, v, mask, out, logsumexp = residuals
    blocks = _cut(mask, q.shape[1], axis, block_size)
    hide = blocks.hide(mask)
    queries, *kv, d_out, out = (blocks.enter(x) for x in (q, k, v, d_out, out))
    # The softmax's own term: the gradient with respect to the logits is p (dp - delta).
    of_queries = queries, d_out, logsumexp, _sum("...qhd,...qhd->...hq", d_out, out)

    def visit(d_q: Array, travelling: tuple[list[Array], list[Array]], turn: Number):
        kv, d_kv = travelling

        def visit_pair(gradients: list[Array], i: Number, j: Number) -> list[Array]:
            (q, d_out, logsumexp, delta), (k, v) = blocks.at(of_queries, i), blocks.at(kv, j)
            p = jnp.exp(hide(_logits(q, k), i, j, turn) - logsumexp[..., None])
            d_logits = p * (_sum("bqhd,bkhd->bhqk", d_out, v) - delta[..., None]) / math.sqrt(q.shape[-1])
            p, d_logits = p.astype(q.dtype), d_logits.astype(q.dtype)
            d_q, d_k, d_v = gradients
            return [
                blocks.add(d_q, i, _sum("bhqk,bkhd->bqhd", d_logits, k)),
                blocks.add(d_k, j, _sum("bhqk,bqhd->bkhd", d_logits, q)),
                blocks.add(d_v, j, _sum("bhqk,bqhd->bkhd", p, d_out)),
            ]

        d_q, *d_kv = blocks.over_pairs(visit_pair, [d_q, *d_kv])
        return d_q, (kv, d_kv)

    def visit_and_pass_on(carry, turn: Number):
        d_q, travelling = visit(*carry, turn=turn)
        return (d_q, _pass_on(travelling, axis)), None

    zeros = jnp.zeros(queries.shape)
    carry = zeros, (kv, [zeros, zeros])
    if blocks.num_devices == 1:
        carry = visit(*carry, turn=0)
    else:
        # As many rounds as devices: the gradients then have come home.
        carry, _ = jax.lax.scan(visit_and_pass_on, carry, jnp.arange(blocks.num_devices))
    d_q, (_, (d_k, d_v)) = carry
    d_q, d_k, d_v = (blocks.leave(d).astype(x.dtype) for d, x in ((d_q, q), (d_k, k), (d_v, v)))
    return d_q, d_k, d_v, None


attend_in_blocks.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True, eq=False)
class _Blocks:
    """How each device's tokens are cut into blocks, known when the program is made, and arrays of such blocks.

    An array of blocks [n B Q ...] has no axis n where there is one block.

    Attributes:
        tokens: [devices n Q] which token of the sequence stands where in n blocks; -1 is padding.
        pairs: [P 2] numbers of the blocks of queries and of keys of which, on some device, one may see the other.
        axis: the mesh axis along which devices have tokens.
    """

    tokens: Int[np.ndarray, "devices n Q"]
    pairs: Int[np.ndarray, "P 2"]
    axis: str | None

    @property
    def num_devices(self) -> int:
        return len(self.tokens)

    @property
    def num_blocks(self) -> int:
        return self.tokens.shape[1]

    def enter(self, x: Float[Array, "B N K d"]) -> Float[Array, "*n B Q K d"]:
        """A device's tokens as blocks; some token stands in place of padding."""
        x = _take(x, np.maximum(self.tokens[0].reshape(-1), 0))
        if self.num_blocks == 1:
            return x
        return jnp.moveaxis(x.reshape(len(x), *self.tokens.shape[1:], *x.shape[2:]), 1, 0)

    def leave(self, x: Float[Array, "*n B Q K d"]) -> Float[Array, "B N K d"]:
        """The inverse of `enter`."""
        own = self.tokens[0].reshape(-1)
        if self.num_blocks > 1:
            x = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], len(own), *x.shape[3:])
        return _take(x, np.argsort(own)[(own < 0).sum() :])

    def over_pairs(self, visit_pair: Callable[[Carry, Number, Number], Carry], carry: Carry) -> Carry:
        if len(self.pairs) == 1:
            return visit_pair(carry, *self.pairs[0].tolist())
        return jax.lax.scan(lambda carry, pair: (visit_pair(carry, *pair), None), carry, jnp.asarray(self.pairs))[0]

    def at(self, blocks: Any, number: Number) -> Any:
        if self.num_blocks == 1:
            return blocks
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), blocks)

    def put(self, blocks: Carry, number: Number, block: Carry) -> Carry:
        if self.num_blocks == 1:
            return block
        return jax.tree.map(functools.partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0), blocks, block)

    def add(self, blocks: Array, number: Number, block: Array) -> Array:
        return self.put(blocks, number, self.at(blocks, number) + block)

    def hide(self, mask: AttentionMask) -> Callable[..., Float[Array, "B K Q M"]]:
        """(logits, i, j, turn) -> the logits of queries of block i and keys of block j, which come from as many devices
        before this one as there were turns; -inf where the mask or padding hides them.
        """
        if isinstance(mask, Full):
            return lambda logits, *_: logits
        here = 0 if self.axis is None else jax.lax.axis_index(self.axis)
        places = self.tokens >= 0, mask.places(np.maximum(self.tokens, 0))
        places = jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x), (-3, -2), (0, 1)), places)

        def hide(logits: Float[Array, "B K Q M"], i: Number, j: Number, turn: Number) -> Float[Array, "B K Q M"]:
            there = (here - turn) % self.num_devices
            is_query, query = jax.tree.map(lambda x: x[here, i][..., :, None], places)
            is_key, key = jax.tree.map(lambda x: x[there, j][..., None, :], places)
            allowed = mask.sees(query, key) & is_query & is_key
            return jnp.where(jnp.expand_dims(allowed, -3), logits, -jnp.inf)

        return hide


def _cut(mask: AttentionMask, num_tokens: int, axis: str | None, block_size: int) -> _Blocks:
    """Cuts each device's `num_tokens` into blocks as equal as can be, so ordered as the mask would have them stand.

    All devices take the order of the first: their tokens are the same places' or equal stretches of the sequence.
    """
    num_devices = 1 if axis is None else jax.lax.axis_size(axis)
    size = num_tokens if isinstance(mask, Full) else -(-num_tokens // -(-num_tokens // block_size))
    rank = np.argsort(mask.order(num_devices * num_tokens)).reshape(num_devices, num_tokens)
    own = np.argsort(rank[0])

    def by_block(x: np.ndarray, **padding: Any) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, -num_tokens % size)), **padding).reshape(num_devices, -1, size)

    tokens = by_block(np.arange(num_devices)[:, None] * num_tokens + own, constant_values=-1)
    rank = by_block(rank[:, own], mode="edge")
    first, last = rank.min((0, 2)), rank.max((0, 2))
    pairs = np.argwhere(mask.any_allowed(Span(first[:, None], last[:, None]), Span(first, last)))
    return _Blocks(tokens.astype(np.int32), pairs.astype(np.int32), axis)


def _take(x: Array, order: Int[np.ndarray, "M"]) -> Array:
    """[B N ...] -> [B M ...]"""
    if np.array_equal(order, np.arange(x.shape[1])):
        return x
    return jnp.take(x, order, axis=1, mode="clip")


def _pass_on(x, axis: str | None):
    assert axis is not None, "blocks are passed on only where tokens are split over a mesh axis"
    num_devices = jax.lax.axis_size(axis)
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % num_devices) for i in range(num_devices)])


def _logits(q: Float[Array, "B Q K d"], k: Float[Array, "B M K d"]) -> Float[Array, "B K Q M"]:
    return _sum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])


def _sum(indices: str, a: Array, b: Array) -> Array:
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)
