"""Softmax attention with fused kernels (cuDNN, splash) and sequence parallelism (Ulysses, ring attention).

The kind of device is that of the mesh at trace time, so a program that is compiled for accelerators that are not there
contains their kernels: cuDNN's fused attention on GPUs, the Pallas kernel "splash" on TPUs, XLA elsewhere. The first
two never hold the [N N] logits; XLA does. Under a mask it is XLA on every kind of device, in blocks.

Where tokens are split over devices, two exact ways bring queries and keys together:
- Ulysses (Jacobs et al., 2309.14509): an all-to-all gives each device all tokens of some heads, a second one undoes it;
- ring (Liu et al., 2310.01889): keys and values travel round, and each device merges what it sees by log-sum-exp.
Ulysses sends less and keeps the kernels; it is taken wherever the heads of a device divide over the tokens' devices.
"""

import enum
import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.distributed.sharding import map_parts, platform, split_over
from dit_video.nn.attention_mask import FULL, AttentionMask, Full
from dit_video.nn.blockwise_attention import attend_in_blocks
from dit_video.nn.whole_attention import ATTENTION_RESULT, attend_whole

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


def self_attention(q: Heads, k: Heads, v: Heads, mask: AttentionMask = FULL) -> Heads:
    """Self-attention softmax(q k^T / sqrt(d)) v over the keys that the mask allows; tokens may be split over devices.

    Exact in value and gradient, however it is split. What sees nothing gives zero.

    Raises:
        ValueError: the mask is for sequences of another length.
    """
    mask.check(q.shape[1])
    kernel = choose_kernel(platform(), q.dtype, q.shape[-1])
    axis = split_over("tokens")
    arrays, structure = jax.tree.flatten(mask)

    def attend(q: Heads, k: Heads, v: Heads, *arrays: Array) -> Heads:
        mask = jax.tree.unflatten(structure, arrays)
        if axis is None:
            return _attend(q, k, v, mask, kernel)
        if q.shape[2] % jax.lax.axis_size(axis) == 0:
            return ulysses(q, k, v, axis, functools.partial(_attend, mask=mask, kernel=kernel))
        return attend_in_blocks(q, k, v, mask, axis)

    return map_parts(attend, [*[_TOKENS_AND_HEADS] * 3, *[("batch", None)] * len(arrays)])(q, k, v, *arrays)


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
            return attend_whole(q, k, v, num_keys)
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
    # Here: only programs for TPUs need Pallas.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

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
        residual_checkpoint_name=ATTENTION_RESULT,
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


def _attend(q: Heads, k: Heads, v: Heads, mask: AttentionMask, kernel: Kernel) -> Heads:
    """Attention of a whole sequence on one device; the kernels know no mask."""
    return attend_local(q, k, v, kernel=kernel) if isinstance(mask, Full) else attend_in_blocks(q, k, v, mask)


def ulysses(q: Heads, k: Heads, v: Heads, axis: str, attend: Callable[[Heads, Heads, Heads], Heads]) -> Heads:
    """Ulysses sequence parallelism, inside shard_map: all-to-all to all tokens of some heads, attention, and back."""
    gather = functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=2, concat_axis=1, tiled=True)
    out = attend(gather(q), gather(k), gather(v))
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)
