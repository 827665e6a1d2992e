"""Softmax attention with fused kernels (cuDNN, Pallas) and sequence parallelism (Ulysses, ring attention).

The kind of device is that of the mesh at trace time, so a program that is compiled for accelerators that are not there
contains their kernels: cuDNN's fused attention on GPUs, Pallas kernels (nn/tpu_attention.py) on TPUs, XLA elsewhere.
The first two never hold the [N N] logits; XLA does, one layer's at a time. Under a mask it is XLA on every kind of
device, in blocks.

Where tokens are split over devices, two exact ways bring queries and keys together:
- Ulysses (Jacobs et al., 2309.14509): an all-to-all gives each device all tokens of some heads, a second one undoes it;
- ring (Liu et al., 2310.01889): keys and values travel round, and each device merges what it sees by log-sum-exp.
Ulysses sends less and keeps the kernels; it is taken wherever the heads of a device divide over the tokens' devices.
"""

import enum
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.distributed.sharding import device_kind, map_parts, platform, split_over
from dit_video.nn.attention_mask import FULL, AttentionMask, Full
from dit_video.nn.blockwise_attention import attend_in_blocks
from dit_video.nn.whole_attention import attend_whole

Heads = Float[Array, "B N K d"]
_TOKENS_AND_HEADS = ("batch", "tokens", "heads", "head_dim")


class Kernel(enum.Enum):
    """Attention kernel on one device."""

    XLA = enum.auto()
    CUDNN = enum.auto()
    PALLAS = enum.auto()


def choose_kernel(on: str | None, dtype: DTypeLike, head_dim: int) -> Kernel:
    """Chooses the kernel for a platform; None means no mesh, where programs are only counted or tested."""
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    # cuDNN takes half precision and head sizes up to 128 in steps of 8, on every generation since Ampere.
    if on == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return Kernel.CUDNN
    return Kernel.PALLAS if on == "tpu" else Kernel.XLA


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
    """Attention on one device; `interpret` runs the Pallas kernel where there is no TPU."""
    match kernel:
        case Kernel.XLA:
            return attend_whole(q, k, v, num_keys)
        case Kernel.CUDNN:
            return _cudnn(q, k, v, num_keys)
        case Kernel.PALLAS:
            return _pallas(q, k, v, num_keys, interpret)


def _cudnn(q: Heads, k: Array, v: Array, num_keys: Array | None) -> Heads:
    """cuDNN fused attention; tokens are padded to even numbers, since JAX refuses the backward pass of others."""
    num_queries, num_tokens = q.shape[1], k.shape[1]
    if num_keys is None and num_tokens % 2:
        num_keys = jnp.full(len(k), num_tokens, jnp.int32)
    q, k, v = (_pad(x, x.shape[1] + x.shape[1] % 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=num_keys, implementation="cudnn")
    return out[:, :num_queries]


def _pallas(q: Heads, k: Array, v: Array, num_keys: Array | None, interpret: bool) -> Heads:
    # Here: only programs for TPUs need Pallas.
    from dit_video.nn.tpu_attention import attend_in_kernel, choose_blocks

    blocks = choose_blocks(q.shape[1], k.shape[1], device_kind())
    return attend_in_kernel(q, k, v, num_keys, blocks, interpret=interpret)


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
