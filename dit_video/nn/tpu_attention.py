"""Full softmax attention as Pallas kernels for TPUs: FlashAttention-2 (2307.08691), with one kernel for the way back.

Beside `splash_attention` of JAX: blocks are as large as the memory of a core allows, the backward pass makes five
products in one kernel instead of seven in two, heads and blocks of keys are independent of each other, so that chips of
two cores use both, and where nothing is padded nothing is masked. The price is the gradient of queries: every block of
keys writes its part of it, and parts are added up afterwards, for so many heads at a time that they take no more than
`PARTS_BYTES`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from dit_video.nn.whole_attention import Heads, OtherHeads, named

ByHead = Float[Array, "B K N d"]
_LANES = 128
# What blocks of queries and of keys have at most; more keys at a time than those of a part are not computed with.
_QUERIES, _KEYS = 1024, 2048
# Parts of keys: units of v6e and later are twice as wide.
_PART = {"TPU v6 lite": 1024, "TPU7x": 1024}
_SMALLER_PART = 512
_ONCE = 64
PARTS_BYTES = 2 * 2**30
# What a kernel may take of a core's own memory, of which chips since v5 have 64 MiB and more.
_VMEM_BYTES = 48 * 2**20
_LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)
_ROWS = (((1,), (1,)), ((), ()))  # a b^T


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes in tokens: blocks of queries and of keys, and the parts of the latter that are computed with at a time."""

    queries: int
    keys: int
    part: int


def choose_blocks(num_queries: int, num_keys: int, device_kind: str) -> Blocks:
    """Large blocks that pad sequences of these lengths little."""
    largest = min(_PART.get(device_kind, _SMALLER_PART), _up(num_keys, _LANES))
    parts = range(largest + _LANES, largest // 2, -_LANES)
    keys, part = min((_cut(num_keys, _KEYS, part) for part in parts), key=lambda cut: _cost(num_keys, cut[0]))
    return Blocks(_cut(num_queries, _QUERIES, _LANES)[0], keys, part)


def _cut(num_tokens: int, largest: int, part: int) -> tuple[int, int]:
    """The block of whole parts into which tokens are cut, as few as there can be, and its part."""
    num_blocks = -(-num_tokens // (largest // part * part))
    return part * -(-num_tokens // (num_blocks * part)), part


def _cost(num_tokens: int, block: int) -> float:
    """Tokens that are computed with; what is done once a block takes as long as some more."""
    return _up(num_tokens, block) * (1 + _ONCE / block)


def attend_in_kernel(
    q: Heads,
    k: OtherHeads,
    v: OtherHeads,
    num_keys: Int[Array, "B"] | None,
    blocks: Blocks,
    *,
    interpret: bool = False,
) -> Heads:
    """softmax(q k^T / sqrt(d)) v over the first `num_keys` keys, at least one; None for all of them.

    Args:
        interpret: runs where there is no TPU.
    """
    num_queries, num_tokens = q.shape[1], k.shape[1]
    if num_keys is None and num_tokens % blocks.keys:
        num_keys = jnp.full(len(k), num_tokens)
    q, k, v = (
        jnp.swapaxes(jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0))), 1, 2)
        for x, block in ((q * q.shape[-1] ** -0.5, blocks.queries), (k, blocks.keys), (v, blocks.keys))
    )
    limits = None if num_keys is None else num_keys.astype(jnp.int32)
    return jnp.swapaxes(_attend(q, k, v, limits, blocks, interpret), 1, 2)[:, :num_queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q: ByHead, k: Array, v: Array, limits: Int[Array, "B"] | None, blocks: Blocks, interpret: bool) -> ByHead:
    return _forward(q, k, v, limits, blocks, interpret)[0]


def _forward(q: ByHead, k: Array, v: Array, limits: Int[Array, "B"] | None, blocks: Blocks, interpret: bool):
    B, K, N, d = q.shape
    of_queries, of_keys = (lambda b, h, i, j, *_: (b, h, i, 0)), (lambda b, h, i, j, *_: (b, h, j, 0))
    scratch = [(blocks.queries, _LANES), (blocks.queries, _LANES), (blocks.queries, d)]
    out, logsumexp = _call(
        functools.partial(_forward_kernel, part=blocks.part, masked=limits is not None),
        "attention_mha_forward",
        grid=(B, K, N // blocks.queries, k.shape[2] // blocks.keys),
        in_specs=[_block(blocks.queries, d, of_queries)] + [_block(blocks.keys, d, of_keys)] * 2,
        out_specs=[
            _block(blocks.queries, d, of_queries),
            pl.BlockSpec((None, None, 1, blocks.queries), lambda b, h, i, j, *_: (b, h, 0, i)),
        ],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, K, 1, N), jnp.float32)],
        scratch=scratch,
        interpret=interpret,
    )(_scalars(limits), q, k, v)
    out, logsumexp = named(out), named(logsumexp)
    return out, (q, k, v, limits, out, logsumexp)


def _backward(blocks: Blocks, interpret: bool, residuals: Any, d_out: ByHead):
    q, k, v, limits, out, logsumexp = residuals
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)[:, :, None]
    of_heads = functools.partial(_backward_of_heads, limits=limits, blocks=blocks, interpret=interpret)
    parts_bytes = k.shape[2] // blocks.keys * q.size * q.dtype.itemsize
    num_groups = next(n for n in range(1, q.shape[1] + 1) if q.shape[1] % n == 0 and _fits(parts_bytes, n, q.shape[1]))
    arrays = (q, k, v, d_out, logsumexp, delta)
    if num_groups == 1:
        return *of_heads(arrays), None
    grouped = [jnp.moveaxis(x.reshape(x.shape[0], num_groups, -1, *x.shape[2:]), 1, 0) for x in arrays]
    gradients = lax.map(of_heads, grouped)
    return *(jnp.moveaxis(x, 0, 1).reshape(like.shape) for x, like in zip(gradients, (q, k, v), strict=True)), None


def _fits(parts_bytes: int, num_groups: int, num_heads: int) -> bool:
    return num_groups == num_heads or parts_bytes <= num_groups * PARTS_BYTES


def _backward_of_heads(arrays, *, limits: Int[Array, "B"] | None, blocks: Blocks, interpret: bool):
    """Gradients of queries, keys and values."""
    q, k, v, d_out, logsumexp, delta = arrays
    B, K, N, d = q.shape
    num_blocks = k.shape[2] // blocks.keys
    of_queries, of_keys = (lambda b, h, j, i, *_: (b, h, i, 0)), (lambda b, h, j, i, *_: (b, h, j, 0))
    rows, columns = _block(blocks.queries, d, of_queries), _block(blocks.keys, d, of_keys)
    number = pl.BlockSpec((None, None, 1, blocks.queries), lambda b, h, j, i, *_: (b, h, 0, i))
    parts, d_k, d_v = _call(
        functools.partial(_backward_kernel, part=blocks.part, masked=limits is not None),
        "attention_mha_backward",
        grid=(B, K, num_blocks, N // blocks.queries),
        in_specs=[rows, columns, columns, rows, number, number],
        out_specs=[
            pl.BlockSpec((None, None, None, blocks.queries, d), lambda b, h, j, i, *_: (j, b, h, i, 0)),
            columns,
            columns,
        ],
        out_shape=[jax.ShapeDtypeStruct(shape, q.dtype) for shape in ((num_blocks, *q.shape), k.shape, v.shape)],
        scratch=[(blocks.keys, d), (blocks.keys, d), (blocks.queries, d)],
        interpret=interpret,
    )(_scalars(limits), q, k, v, d_out, logsumexp, delta)
    # One by one: XLA makes one fusion of it, six times faster than a reduction.
    d_q = functools.reduce(lambda total, j: total + parts[j].astype(jnp.float32), range(num_blocks), jnp.float32(0))
    return d_q.astype(q.dtype), d_k, d_v


_attend.defvjp(_forward, _backward)


def _block(tokens: int, width: int, index_map: Any) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, tokens, width), index_map)


def _call(kernel: Any, name: str, *, grid, in_specs, out_specs, out_shape, scratch, interpret: bool) -> Any:
    """`pallas_call` of a kernel that sums along the last axis of its grid only, with scalars fetched before."""
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
        ),
        name=name,
        interpret=interpret,
    )


def _scalars(limits: Int[Array, "B"] | None) -> Int[Array, "n"]:
    return jnp.zeros(1, jnp.int32) if limits is None else limits


def _forward_kernel(limits, q_ref, k_ref, v_ref, out_ref, logsumexp_ref, peak, total, sums, *, part: int, masked: bool):
    j, last, limit = pl.program_id(3), pl.num_programs(3) - 1, limits[pl.program_id(0)] if masked else None

    @pl.when(j == 0)
    def _():
        peak[...] = jnp.full_like(peak, _LOWEST)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    def visit(some_hidden: bool) -> None:
        def of_part(index, _):
            keys = pl.ds(index * part, part)
            logits = _dot(q_ref[...], k_ref[keys, :], _ROWS)
            if some_hidden:
                logits = _hide(logits, 1, j * k_ref.shape[0] + index * part, limit)
            before = peak[...]
            highest = jnp.maximum(before, logits.max(-1, keepdims=True))
            weights = jnp.exp(logits - _spread(highest, part))
            fade = jnp.exp(before - highest)
            peak[...] = highest
            total[...] = fade * total[...] + weights.sum(-1, keepdims=True)
            # In float32: the matrix unit rounds weights itself, and faster.
            values = _dot(weights, v_ref[keys, :].astype(jnp.float32))
            sums[...] = _spread(fade, sums.shape[1]) * sums[...] + values

        lax.fori_loop(0, k_ref.shape[0] // part, of_part, None, unroll=True)

    _visit_seen(visit, limit, j * k_ref.shape[0], k_ref.shape[0])

    @pl.when(j == last)
    def _():
        out_ref[...] = (sums[...] * _spread(1.0 / total[...], sums.shape[1])).astype(out_ref.dtype)
        logsumexp_ref[...] = (peak[...] + jnp.log(total[...])).T[:1]


def _backward_kernel(
    limits,
    q_ref,
    k_ref,
    v_ref,
    d_out_ref,
    logsumexp_ref,
    delta_ref,
    d_q_ref,
    d_k_ref,
    d_v_ref,
    d_k,
    d_v,
    d_q,
    *,
    part: int,
    masked: bool,
):
    """Gradients of a block of keys, summed over queries, and its part of the gradient of queries.

    Logits are transposed, [keys queries]: what belongs to a query then lies along lanes, as it is stored.
    """
    j, i, last = pl.program_id(2), pl.program_id(3), pl.num_programs(3) - 1
    limit = limits[pl.program_id(0)] if masked else None

    @pl.when(i == 0)
    def _():
        d_k[...] = jnp.zeros_like(d_k)
        d_v[...] = jnp.zeros_like(d_v)

    d_q[...] = jnp.zeros_like(d_q)

    def visit(some_hidden: bool) -> None:
        def of_part(index, _):
            keys = pl.ds(index * part, part)
            q, k, d_out = q_ref[...], k_ref[keys, :], d_out_ref[...]
            logits = _dot(k, q, _ROWS)
            if some_hidden:
                logits = _hide(logits, 0, j * k_ref.shape[0] + index * part, limit)
            weights = jnp.exp(logits - logsumexp_ref[...])
            d_v[keys, :] += _dot(weights.astype(d_out.dtype), d_out)
            d_logits = weights * (_dot(v_ref[keys, :], d_out, _ROWS) - delta_ref[...])
            d_k[keys, :] += _dot(d_logits.astype(q.dtype), q)
            d_q[...] += _dot(d_logits.T.astype(k.dtype), k)

        lax.fori_loop(0, k_ref.shape[0] // part, of_part, None, unroll=True)

    _visit_seen(visit, limit, j * k_ref.shape[0], k_ref.shape[0])
    d_q_ref[...] = d_q[...].astype(d_q_ref.dtype)

    @pl.when(i == last)
    def _():
        d_k_ref[...] = d_k[...].astype(d_k_ref.dtype)
        d_v_ref[...] = d_v[...].astype(d_v_ref.dtype)


def _visit_seen(visit: Any, limit: Any, first: Any, size: int) -> None:
    """Visits a block of keys: whole where all of it is seen, masked where some is, not at all where none is."""
    if limit is None:
        visit(False)
        return
    pl.when(first + size <= limit)(lambda: visit(False))
    pl.when((first < limit) & (limit < first + size))(lambda: visit(True))


def _hide(logits: Array, axis: int, first: Any, limit: Any) -> Array:
    keys = first + lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    return jnp.where(keys < limit, logits, _LOWEST)


def _spread(x: Float[Array, "q lanes"], width: int) -> Float[Array, "q width"]:
    """Numbers that every lane holds, in as many lanes as are asked for."""
    return jnp.tile(x, (1, -(-width // x.shape[1])))[:, :width]


def _dot(a: Array, b: Array, dims: Any = (((1,), (0,)), ((), ()))) -> Array:
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
