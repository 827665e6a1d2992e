"""Axial (factorised) attention: spatial attention within a frame, temporal attention at a place.

Tokens are in the order of `patchify`: a place with all its frames, then the next. Devices that split tokens split
places, so that attention over time sends nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.distributed.sharding import map_parts
from dit_video.nn.softmax_attention import self_attention

Heads = Float[Array, "B N K d"]
_BY_PLACE = ("batch", "tokens", None, "heads", "head_dim")


def spatial_attention(q: Heads, k: Heads, v: Heads, num_frames: int) -> Heads:
    """Spatial attention: every token with those of its own frame."""
    B, N, K, d = q.shape
    places = N // num_frames

    def by_frame(x: Heads) -> Float[Array, "Bf s K d"]:
        return x.reshape(B, places, num_frames, K, d).swapaxes(1, 2).reshape(B * num_frames, places, K, d)

    out = self_attention(by_frame(q), by_frame(k), by_frame(v))
    return out.reshape(B, num_frames, places, K, d).swapaxes(1, 2).reshape(B, N, K, d)


def temporal_attention(q: Heads, k: Heads, v: Heads, num_frames: int) -> Heads:
    """Temporal attention: every token with those of its own place.

    By XLA on every platform: of each token and head it holds as many logits as there are frames, about as many numbers
    as a query has, and fused kernels fill up so short sequences with padding.
    """

    def attend(*heads: Float[Array, "b s f k d"]) -> Float[Array, "b s f k d"]:
        rows = (x.reshape(-1, *x.shape[2:]) for x in heads)
        return jax.nn.dot_product_attention(*rows, implementation="xla").reshape(heads[0].shape)

    B, N, K, d = q.shape
    by_place = (x.reshape(B, N // num_frames, num_frames, K, d) for x in (q, k, v))
    return map_parts(attend, [_BY_PLACE] * 3)(*by_place).reshape(B, N, K, d)


def split_attention(q: Heads, k: Heads, v: Heads, num_frames: int) -> Heads:
    """Half of the heads attend over space, the other half over time.

    They take turns, so that devices which share heads out have as many of either kind.
    """
    B, N, K, d = q.shape

    def half(x: Heads, which: int) -> Float[Array, "B N k d"]:
        return x.reshape(B, N, K // 2, 2, d)[..., which, :]

    over_space = spatial_attention(half(q, 0), half(k, 0), half(v, 0), num_frames)
    over_time = temporal_attention(half(q, 1), half(k, 1), half(v, 1), num_frames)
    return jnp.stack([over_space, over_time], axis=3).reshape(B, N, K, d)
