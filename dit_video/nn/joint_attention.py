"""Joint attention of MMDiT: video and text streams attend to both, each with its own weights (SD3, 2403.03206).

Tokens of video may be split over devices; those of text, which are few, are on every one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.distributed.sharding import map_parts, platform, split_over
from dit_video.nn.attention import QKNorm, from_heads, heads_norm, kernel_init, to_heads
from dit_video.nn.positions import rotate
from dit_video.nn.softmax_attention import Kernel, attend_local, choose_kernel

Heads = Float[Array, "B N K d"]
TextHeads = Float[Array, "B L K d"]


class QKV(NamedTuple):
    """Queries, keys and values of a stream; queries may be fewer."""

    q: Float[Array, "B Q K d"]
    k: Float[Array, "B N K d"]
    v: Float[Array, "B N K d"]


class Stream(nnx.Module):
    """Weights of one stream in joint attention: one kernel for q, k and v as in `Attention`, norms, and `out`.

    A stream that is only read has no `out`.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, qk_norm: QKNorm, writes: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        head_dim, init = hidden_size // num_heads, kernel_init(qk_norm)
        self.qkv = to_heads(hidden_size, (3, num_heads, head_dim), init, dtype=dtype, rngs=rngs)
        self.query_norm = heads_norm(qk_norm, num_heads, head_dim, rngs=rngs)
        self.key_norm = heads_norm(qk_norm, num_heads, head_dim, rngs=rngs)
        self.out = from_heads(num_heads, hidden_size, init, dtype=dtype, rngs=rngs) if writes else None

    def heads(self, x: Float[Array, "B N D"]) -> QKV:
        """Normalised queries, keys and values; no queries where the stream is only read."""
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return QKV(q if self.out is not None else q[:, :0], k, v)


class JointAttention(nnx.Module):
    """Joint attention layer: every token of video and of text attends to all of both.

    Without `text_output` text is read and not written. As published it has the weights of queries all the same, which
    nothing uses.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        qk_norm: QKNorm,
        text_output: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.video = Stream(hidden_size, num_heads, qk_norm=qk_norm, writes=True, dtype=dtype, rngs=rngs)
        self.text = Stream(hidden_size, num_heads, qk_norm=qk_norm, writes=text_output, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        video: Float[Array, "B N D"],
        text: Float[Array, "B L D"],
        angles: Float[Array | np.ndarray, "N r"] | None,
        num_text: Int[Array, "B"] | None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B L D"] | None]:
        """Attention outputs for each stream; None for text that is only read.

        Args:
            angles: rotary positions of the tokens of video, those of `rope_angles`; text has none.
            num_text: how many tokens of each text are attended to; None for all of them.
        """
        of_video, of_text = self.video.heads(video), self.text.heads(text)
        if angles is not None:
            of_video = of_video._replace(q=rotate(of_video.q, angles), k=rotate(of_video.k, angles))
        output, text_output = attend_jointly(of_video, of_text, num_text)
        assert self.video.out is not None, "the video stream is made with an output projection"
        return self.video.out(output), None if self.text.out is None else self.text.out(text_output)


def attend_jointly(video: QKV, text: QKV, num_text: Int[Array, "B"] | None) -> tuple[Heads, Array]:
    """Joint softmax attention over the keys of both streams, for the queries of each; sharded by Ulysses or all-gather.

    Exact in value and gradient, however tokens of video are split: an all-to-all then gives each device all of them
    for some heads, and a second one undoes it (Ulysses, 2309.14509). Where heads do not divide over these devices,
    each gathers the keys and values of video, which is as much as a ring sends.
    """
    kernel = choose_kernel(platform(), video.q.dtype, video.q.shape[-1])
    axis = split_over("tokens")
    attend = functools.partial(_attend, kernel=kernel) if axis is None else _across(axis, kernel)
    of_video, of_text = ("batch", "tokens", "heads", "head_dim"), ("batch", None, "heads", "head_dim")
    axes = [*[of_video] * 3, *[of_text] * 3, ("batch",)]
    arrays = [*video, *text] if num_text is None else [*video, *text, num_text]
    return map_parts(attend, axes[: len(arrays)], like=(0, 3))(*arrays)


def _attend(
    q: Heads,
    k: Array,
    v: Array,
    q_text: TextHeads,
    k_text: Array,
    v_text: Array,
    num_text: Int[Array, "B"] | None = None,
    *,
    kernel: Kernel,
) -> tuple[Heads, TextHeads]:
    """Joint attention on one device. Text comes last, so that its padding does."""
    num_queries, num_keys = q.shape[1], None if num_text is None else num_text + k.shape[1]
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in ((q, q_text), (k, k_text), (v, v_text)))
    out = attend_local(q, k, v, num_keys, kernel=kernel)
    return out[:, :num_queries], out[:, num_queries:]


def _across(axis: str, kernel: Kernel) -> Callable[..., tuple[Array, Array]]:
    """As `_attend`, inside shard_map: video tokens are split over a mesh axis."""

    def by_heads(*arrays: Array) -> tuple[Array, Array]:
        video, text, num_text = arrays[:3], arrays[3:6], arrays[6:]
        num_heads = video[0].shape[2] // jax.lax.axis_size(axis)
        first = jax.lax.axis_index(axis) * num_heads
        gather = functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=2, concat_axis=1, tiled=True)
        own = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=num_heads, axis=2)
        output, text_output = _attend(*map(gather, video), *map(own, text), *num_text, kernel=kernel)
        output = jax.lax.all_to_all(output, axis, split_axis=1, concat_axis=2, tiled=True)
        return output, jax.lax.all_gather(text_output, axis, axis=2, tiled=True)

    def by_queries(q: Array, k: Array, v: Array, *text: Array) -> tuple[Array, Array]:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
        return _attend(q, gather(k), gather(v), *text, kernel=kernel)

    def attend(q: Array, *rest: Array) -> tuple[Array, Array]:
        divides = q.shape[2] % jax.lax.axis_size(axis) == 0
        return (by_heads if divides else by_queries)(q, *rest)

    return attend
