"""Softmax attention with fused kernels (cuDNN, splash) and sequence parallelism (Ulysses, ring attention).

The kind of device is that of the mesh at trace time, so a program that is compiled for accelerators that are not there
contains their kernels: cuDNN's fused attention on GPUs, the Pallas kernel "splash" on TPUs, XLA elsewhere. The first
two never hold the [N N] logits; XLA does.

Where tokens are split over devices, two exact ways bring queries and keys together:
- Ulysses (Jacobs et al., 2309.14509): an all-to-all gives each device all tokens of some heads, a second one undoes it;
- ring (Liu et al., 2310.01889): keys and values travel round, and each device merges what it sees by log-sum-exp.
Ulysses sends less and keeps the kernels; it is taken wherever the heads of a device divide over the tokens' devices.
"""

import enum
import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.distributed.sharding import map_parts, platform, split_over

Heads = Float[Array, "B N K d"]
_TOKENS_AND_HEADS = ("batch", "tokens", "heads", "head_dim")
# The splash kernel works on blocks of so many queries and keys; shorter sequences are padded to one block's width.
_SPLASH_BLOCK = 512
_LANES = 128


class Kernel(enum.Enum):
    """Attention kernel on one device."""

    XLA = enum.auto()
    CUDNN = enum.auto()
    SPLASH = enum.auto()


def choose_kernel(on: str | None, dtype: DTypeLike, head_dim: int) -> Kernel:
    """Chooses the kernel for a platform; None means no mesh, where programs are only counted or tested."""
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    # cuDNN takes half precision and head sizes up to 128 in steps of 8, on every generation since Ampere.
    if on == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return Kernel.CUDNN
    return Kernel.SPLASH if on == "tpu" else Kernel.XLA


def self_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Self-attention softmax(q k^T / sqrt(d)) v; tokens may be split over devices.

    Exact in value and gradient, however it is split.
    """
    kernel = choose_kernel(platform(), q.dtype, q.shape[-1])
    axis = split_over("tokens")
    attend = functools.partial(attend_local, kernel=kernel) if axis is None else _across(axis, kernel)
    return map_parts(attend, [_TOKENS_AND_HEADS] * 3)(q, k, v)


def cross_attention(
    q: Heads, k: Float[Array, "B L K d"], v: Float[Array, "B L K d"], num_keys: Int[Array, "B"] | None
) -> Heads:
    """Cross-attention to L other tokens, which are on every device: the first `num_keys`, at least one; None
    stands for all.
    """
    kernel = choose_kernel(platform(), q.dtype, q.shape[-1])
    whole = ("batch", None, "heads", "head_dim")
    attend = functools.partial(attend_local, kernel=kernel)
    labels = [_TOKENS_AND_HEADS, whole, whole]
    if num_keys is None:
        return map_parts(attend, labels)(q, k, v)
    return map_parts(attend, [*labels, ("batch",)])(q, k, v, num_keys)


def attend_local(
    q: Heads,
    k: Float[Array, "B L K d"],
    v: Float[Array, "B L K d"],
    num_keys: Int[Array, "B"] | None = None,
    *,
    kernel: Kernel,
    interpret: bool = False,
) -> Heads:
    """Attention on one device; `interpret` runs the splash kernel where there is no TPU."""
    match kernel:
        case Kernel.XLA:
            return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=num_keys, implementation="xla")
        case Kernel.CUDNN:
            return _cudnn(q, k, v, num_keys)
        case Kernel.SPLASH:
            return _splash(q, k, v, num_keys, interpret)


def _cudnn(q: Heads, k: Array, v: Array, num_keys: Array | None) -> Heads:
    """cuDNN fused attention; tokens are padded to even numbers, since JAX refuses the backward pass of others."""
    num_queries, num_tokens = q.shape[1], k.shape[1]
    if num_keys is None and num_tokens % 2:
        num_keys = jnp.full(len(k), num_tokens, jnp.int32)
    q, k, v = (_pad(x, x.shape[1] + x.shape[1] % 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=num_keys, implementation="cudnn")
    return out[:, :num_queries]


def _splash(q: Heads, k: Array, v: Array, num_keys: Array | None, interpret: bool) -> Heads:
    """Splash attention on TPU; tokens are padded to whole blocks, which a segment of their own masks."""
    num_queries, num_tokens = q.shape[1], k.shape[1]
    (block_q, padded_q), (block_k, padded_k) = _blocks(num_queries), _blocks(num_tokens)
    q = _pad(q * q.shape[-1] ** -0.5, padded_q)
    k, v = _pad(k, padded_k), _pad(v, padded_k)
    limit = jnp.full(len(q), num_tokens) if num_keys is None else num_keys
    segments = splash.SegmentIds(
        jnp.zeros((len(q), padded_q), jnp.int32), (jnp.arange(padded_k) >= limit[:, None]).astype(jnp.int32)
    )
    attend = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((padded_q, padded_k))] * q.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            # Apart from keys and values: the fused kernel writes the gradient of queries once for every block of keys,
            # 20 GiB for 32k tokens with 40 heads.
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        interpret=interpret,
    )
    by_head = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    out = cast(Array, jax.vmap(attend)(*by_head, segments))  # a pair only where residuals are asked for
    return jnp.swapaxes(out, 1, 2)[:, :num_queries]


def _blocks(num_tokens: int) -> tuple[int, int]:
    """Block size of splash attention, and the number of tokens padded to whole blocks."""
    lanes = -(-num_tokens // _LANES) * _LANES
    block = min(_SPLASH_BLOCK, lanes)
    return block, -(-num_tokens // block) * block


def _pad(x: Array, num_tokens: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, num_tokens - x.shape[1]), (0, 0), (0, 0)))


def _across(axis: str, kernel: Kernel):
    """Sequence-parallel attention of tokens that are split over a mesh axis: Ulysses or ring."""

    def attend(q: Heads, k: Heads, v: Heads) -> Heads:
        if q.shape[2] % jax.lax.axis_size(axis) == 0:
            return ulysses(q, k, v, axis, kernel)
        return ring(q, k, v, axis)

    return attend


def ulysses(q: Heads, k: Heads, v: Heads, axis: str, kernel: Kernel) -> Heads:
    """Ulysses sequence parallelism, inside shard_map: all-to-all to all tokens of some heads, attention, and back."""
    gather = functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=2, concat_axis=1, tiled=True)
    out = attend_local(gather(q), gather(k), gather(v), kernel=kernel)
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def ring(q: Heads, k: Heads, v: Heads, axis: str) -> Heads:
    """Ring attention, inside shard_map: this device's queries with the keys of all devices along `axis`.

    Keys and values of one device at a time: the logits are [B K N/n N/n] for n devices. The backward pass sends the
    ring round again, with the gradients of keys and values travelling along, so that nothing but the result and its
    log-sum-exp is kept (as in FlashAttention, 2205.14135, algorithm 4).
    """
    return _ring_forward(q, k, v, axis)[0]


def _ring_forward(q: Heads, k: Heads, v: Heads, axis: str):
    def see(seen, k, v):
        total, weight, peak = seen
        logits = _logits(q, k)
        highest = jnp.maximum(peak, logits.max(-1))
        p, fade = jnp.exp(logits - highest[..., None]), jnp.exp(peak - highest)
        total = total * fade[..., None] + _sum("bhqk,bkhd->bhqd", p.astype(v.dtype), v)
        return total, weight * fade + p.sum(-1), highest

    def visit(carry, _):
        seen, kv = carry
        # Sent before it is used, so that sending and computing overlap.
        return (see(seen, *kv), _pass_on(kv, axis)), None

    B, N, K, d = q.shape
    seen = (jnp.zeros((B, K, N, d)), jnp.zeros((B, K, N)), jnp.full((B, K, N), -jnp.inf))
    (seen, kv), _ = jax.lax.scan(visit, (seen, (k, v)), None, length=jax.lax.axis_size(axis) - 1)
    total, weight, peak = see(seen, *kv)
    out = jnp.swapaxes(total / weight[..., None], 1, 2).astype(q.dtype)
    return out, (q, k, v, out, peak + jnp.log(weight))


def _ring_backward(axis: str, residuals, d_out: Heads):
    q, k, v, out, logsumexp = residuals
    # The softmax's own term: the gradient with respect to the logits is p (dp - delta).
    delta = _sum("bqhd,bqhd->bhq", d_out, out)

    def visit(carry, _):
        d_q, (k, v, d_k, d_v) = carry
        p = jnp.exp(_logits(q, k) - logsumexp[..., None])
        d_logits = p * (_sum("bqhd,bkhd->bhqk", d_out, v) - delta[..., None]) / math.sqrt(q.shape[-1])
        p, d_logits = p.astype(q.dtype), d_logits.astype(q.dtype)
        d_q += _sum("bhqk,bkhd->bqhd", d_logits, k)
        d_k += _sum("bhqk,bqhd->bkhd", d_logits, q)
        d_v += _sum("bhqk,bqhd->bkhd", p, d_out)
        return (d_q, _pass_on((k, v, d_k, d_v), axis)), None

    zeros = jnp.zeros(q.shape)
    # As many rounds as devices: the gradients then have come home.
    carry = (zeros, (k, v, zeros, zeros))
    (d_q, (_, _, d_k, d_v)), _ = jax.lax.scan(visit, carry, None, length=jax.lax.axis_size(axis))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


ring.defvjp(_ring_forward, _ring_backward)


def _pass_on(x, axis: str):
    num_devices = jax.lax.axis_size(axis)
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % num_devices) for i in range(num_devices)])


def _logits(q: Heads, k: Heads) -> Float[Array, "B K N M"]:
    return _sum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])


def _sum(indices: str, a: Array, b: Array) -> Array:
    return jnp.einsum(indices, a, b, preferred_element_type=jnp.float32)
