"""Softmax attention in XLA with whole logits [B K N L], which the backward pass computes again instead of keeping them.

FlashAttention's backward pass (2205.14135, appendix B.2) in one block: kept are the result and its log-sum-exp.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

Heads = Float[Array, "B N K d"]
OtherHeads = Float[Array, "B L K d"]
# What rematerialisation keeps of attention, however it is computed: the result and the log-sum-exp of its logits.
ATTENTION_RESULT = "attention result"


def named(x: Array) -> Array:
    """`x` under the name by which rematerialisation knows what attention made."""
    return checkpoint_name(x, ATTENTION_RESULT)


@jax.custom_vjp
def attend_whole(q: Heads, k: OtherHeads, v: OtherHeads, num_keys: Int[Array, "B"] | None = None) -> Heads:
    """softmax(q k^T / sqrt(d)) v over the first `num_keys` keys, at least one; None for all. The softmax is float32."""
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=num_keys, implementation="xla")


def _forward(q: Heads, k: OtherHeads, v: OtherHeads, num_keys: Int[Array, "B"] | None) -> tuple[Heads, Any]:
    logits = _logits(q, k, num_keys)
    peak = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True)
    out = named(jnp.einsum("bkqs,bskd->bqkd", (weights / total).astype(v.dtype), v))
    return out, (q, k, v, num_keys, out, named(peak + jnp.log(total)))


def _backward(residuals: Any, d_out: Heads) -> tuple[Heads, OtherHeads, OtherHeads, None]:
    q, k, v, num_keys, out, logsumexp = residuals
    weights = jnp.exp(_logits(q, k, num_keys) - logsumexp)
    d_weights = jnp.einsum("bqkd,bskd->bkqs", d_out, v, preferred_element_type=jnp.float32)
    # The softmax's own term: the gradient of logits is p (dp - delta).
    delta = jnp.einsum("bqkd,bqkd->bkq", d_out, out, preferred_element_type=jnp.float32)
    d_logits = (weights * (d_weights - delta[..., None]) * _scale(q)).astype(q.dtype)
    d_q = jnp.einsum("bkqs,bskd->bqkd", d_logits, k)
    d_k = jnp.einsum("bkqs,bqkd->bskd", d_logits, q)
    d_v = jnp.einsum("bkqs,bqkd->bskd", weights.astype(v.dtype), d_out)
    return d_q, d_k, d_v, None


attend_whole.defvjp(_forward, _backward)


def _logits(q: Heads, k: OtherHeads, num_keys: Int[Array, "B"] | None) -> Float[Array, "B K N L"]:
    logits = jnp.einsum("bqkd,bskd->bkqs", q, k, preferred_element_type=jnp.float32) * _scale(q)
    if num_keys is None:
        return logits
    seen = jnp.arange(k.shape[1]) < num_keys[:, None]
    return jnp.where(seen[:, None, None], logits, -jnp.inf)


def _scale(q: Heads) -> float:
    return 1 / math.sqrt(q.shape[-1])
