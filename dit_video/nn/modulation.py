"""Adaptive layer norm (AdaLN): shift, scale and gate made from the noise level and a condition."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.distributed.sharding import constrain
from dit_video.nn.reductions import plus, times

# Shift, scale and gate for attention and for the MLP, or what else a layer is modulated by.
Modulation = list[Float[Array, "B #f D"]]


class AdaLN(nnx.Module):
    """Adaptive layer norm (adaLN-zero): `num` modulation vectors from the conditioning vector, zero at initialisation.

    With gates starting at zero every residual block is the identity (adaLN-zero, 2212.09748 section 3.2). The kernel
    has an axis of its own for the `num` vectors, so that they are separated without communication between devices.
    """

    def __init__(self, num: int, hidden_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.projection = nnx.LinearGeneral(
            hidden_size,
            (num, hidden_size),
            dtype=dtype,
            kernel_init=nnx.with_metadata(zeros, axes=("embed", "modulation", "mlp")),
            bias_init=nnx.with_metadata(zeros, axes=("modulation", "mlp")),
            rngs=rngs,
        )

    def __call__(self, conditioning: Float[Array, "B #f D"]) -> Modulation:
        vectors = constrain(self.projection(nnx.silu(conditioning)), "batch", None, None, None)
        return [vectors[:, :, i] for i in range(vectors.shape[2])]


class ModulationOffset(nnx.Module):
    """adaLN-single: a block's own offset to the modulation vectors that all blocks share; zero at initialisation.

    From PixArt-alpha (2310.00426, section 2.3). An AdaLN in every block holds 6 D^2 of its 18 D^2
    parameters, at the usual width of the MLP.
    """

    def __init__(self, num: int, hidden_size: int, *, rngs: nnx.Rngs):
        axes = ("modulation", "mlp")
        init = nnx.with_metadata(nnx.initializers.zeros, axes=axes)
        self.table = nnx.Param(init(rngs.params(), (num, hidden_size), jnp.float32), axes=axes)

    def __call__(self, shared: Modulation) -> Modulation:
        table = self.table[...]
        return [vector + table[i].astype(vector.dtype) for i, vector in enumerate(shared)]


def with_frames(
    apply: Callable[..., Float[Array, "..."]], x: Float[Array, "B N D"], *vectors: Float[Array, "#B #f D"]
) -> Float[Array, "B N D"]:
    """Applies an elementwise function to tokens, in the order of `patchify`, and per-clip or per-frame vectors.

    Frames are an axis of their own meanwhile. Vectors of frames that were spread over tokens would be as large as the
    stream, and the backward pass would keep them.
    """
    num_frames = vectors[0].shape[1]
    if num_frames == 1:
        return apply(x, *vectors)
    by_frame = x.reshape(x.shape[0], -1, num_frames, x.shape[-1])
    return apply(by_frame, *(vector[:, None] for vector in vectors)).reshape(x.shape)


def modulate(
    x: Float[Array, "B N D"], shift: Float[Array, "B #f D"], scale: Float[Array, "B #f D"]
) -> Float[Array, "B N D"]:
    """Modulates: x (1 + scale) + shift, by the vectors of each clip or of each frame."""
    return with_frames(lambda x, shift, scale: plus(times(x, 1 + scale), shift), x, shift, scale)


def gated(gate: Float[Array, "B #f D"], branch: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """Gates a residual branch: gate * branch, by the vector of each clip or of each frame."""
    return with_frames(times, branch, gate)
