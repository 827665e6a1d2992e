"""From latents to tokens and back, positions, and the embeddings that modulate a transformer block."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.sharding import constrain

PatchSize = tuple[int, int, int]


def patchify(latents: Float[Array, "B t h w c"], patch_size: PatchSize) -> Float[Array, "B s f p"]:
    """Cuts latents into patches of (frames, rows, columns).

    Returns `[B s f p]`: s = patches of one patch frame in row-major order, f = t / patch frames, and
    p = the patch's cells, ordered (frame, row, column, channel). Time stays an axis of its own, because
    noise levels (and so modulation) may differ from frame to frame; space comes first, so that places are what
    devices split once the two axes are merged into one of tokens.
    """
    B, t, h, w, c = latents.shape
    pt, ph, pw = patch_size
    if t % pt or h % ph or w % pw:
        raise ValueError(f"latents of (t, h, w) = {(t, h, w)} do not divide into patches of {patch_size}")
    x = latents.reshape(B, t // pt, pt, h // ph, ph, w // pw, pw, c)
    x = x.transpose(0, 3, 5, 1, 2, 4, 6, 7)
    return x.reshape(B, (h // ph) * (w // pw), t // pt, pt * ph * pw * c)


def unpatchify(
    patches: Float[Array, "B s f p"], patch_size: PatchSize, shape: tuple[int, int, int]
) -> Float[Array, "B t h w c"]:
    """Inverse of `patchify` for latents of `shape` = (t, h, w)."""
    (t, h, w), (pt, ph, pw) = shape, patch_size
    B = patches.shape[0]
    x = patches.reshape(B, h // ph, w // pw, t // pt, pt, ph, pw, -1)
    x = x.transpose(0, 3, 4, 1, 5, 2, 6, 7)
    return x.reshape(B, t, h, w, -1)


def latent_shape(latents: Float[Array, "B t h w c"]) -> tuple[int, int, int]:
    """(t, h, w)"""
    return latents.shape[1], latents.shape[2], latents.shape[3]


def to_tokens(latents: Float[Array, "B t h w c"], patch_size: PatchSize) -> Float[Array, "B N p"]:
    """Patches in one row, in the order of `patchify`: a place with all its frames, then the next.

    Devices have tokens on two axes of their own, of which the smaller would be padded.
    """
    patches = patchify(latents, patch_size)
    return patches.reshape(patches.shape[0], -1, patches.shape[-1])


def from_tokens(
    tokens: Float[Array, "B N p"], patch_size: PatchSize, shape: tuple[int, int, int]
) -> Float[Array, "B t h w c"]:
    """Inverse of `to_tokens` for latents of `shape` = (t, h, w)."""
    num_frames = shape[0] // patch_size[0]
    patches = tokens.reshape(tokens.shape[0], -1, num_frames, tokens.shape[-1])
    return unpatchify(patches, patch_size, shape)


def per_patch_frame(t: Float[Array, "B #t"], patch_size: PatchSize) -> Float[Array, "B #f"]:
    """One noise level per patch frame; frames that share a patch must share their level."""
    return t if t.shape[1] == 1 else t[:, :: patch_size[0]]


def rope_angles(
    positions: Float[np.ndarray, "N A"], head_dim: int, *, theta: float = 10_000.0
) -> Float[np.ndarray, "N R"]:
    """Rotation angles of axial rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15, per axis).

    The R = head_dim / 2 planes are shared out among the A axes as evenly as possible, the first axis
    (time) taking what is left over; each axis has its own geometric ladder of frequencies.
    """
    if head_dim % 2:
        raise ValueError(f"{head_dim=}: rotary position embedding needs an even head size")
    num_axes = positions.shape[1]
    base = head_dim // 2 // num_axes
    planes = [head_dim // 2 - base * (num_axes - 1)] + [base] * (num_axes - 1)
    angles = [
        positions[:, axis, None] * theta ** (-np.arange(n, dtype=np.float64) / max(n, 1))
        for axis, n in enumerate(planes)
    ]
    return np.concatenate(angles, axis=-1).astype(np.float32)


def patch_angles(shape: tuple[int, int, int], patch_size: PatchSize, head_dim: int) -> Float[Array, "N R"]:
    """`rope_angles` of the true (frame, row, column) of each patch's first cell, in the order of `patchify`.

    In latent cells, not patches: a model keeps its sense of distance when the patch size changes.
    """

    def of_axis(axis: int) -> Float[np.ndarray, "n R"]:
        cells = np.arange(0, shape[axis], patch_size[axis])
        positions = np.zeros((len(cells), 3), np.float32)
        positions[:, axis] = cells
        return rope_angles(positions, head_dim)

    # Angles are linear in positions, and each axis has planes of its own: the sum is exact.
    return at_patches(rows=of_axis(1), columns=of_axis(2), frames=of_axis(0))


def sincos_positions(
    shape: tuple[int, int, int], patch_size: PatchSize, hidden_size: int, *, grid: int | None = None
) -> Float[Array, "N D"]:
    """Fixed vectors for the place of each patch within its frame, in the order of `patchify` (2212.09748, appendix A).

    Nothing tells the frame.

    Args:
        shape: (t, h, w) of the latents.
        hidden_size: a multiple of 4.
        grid: rows and columns of patches that the positions are of; latents that have other numbers of them are
            stretched over it. None: positions count patches, however many there are.
    """
    frames, rows, columns = (n // p for n, p in zip(shape, patch_size))
    at_rows, at_columns = (np.arange(n) * (1.0 if grid is None else grid / n) for n in (rows, columns))
    return at_patches(*sincos_axes(at_rows, at_columns, hidden_size), np.zeros((frames, hidden_size), np.float32))


def sincos_places(
    rows: Float[np.ndarray, "R"], columns: Float[np.ndarray, "C"], hidden_size: int
) -> Float[np.ndarray, "s D"]:
    """The vectors of `sincos_axes` for all places of a grid, in row-major order: as files of weights hold them."""
    of_rows, of_columns = sincos_axes(rows, columns, hidden_size)
    return (of_rows[:, None] + of_columns).reshape(-1, hidden_size)


def sincos_axes(
    rows: Float[np.ndarray, "R"], columns: Float[np.ndarray, "C"], hidden_size: int
) -> tuple[Float[np.ndarray, "R D"], Float[np.ndarray, "C D"]]:
    """Fixed vectors for positions of rows and for those of columns, of which a place has the sum.

    The first half of the features tells the column and the second the row; of each, the first half are sines and the
    second cosines of the same frequencies.
    """
    frequencies = 10_000.0 ** (-np.arange(hidden_size // 4, dtype=np.float64) / (hidden_size // 4))

    def encode(position: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n half"]:
        phase = position[:, None] * frequencies
        return np.concatenate([np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)

    half = hidden_size // 2
    return np.pad(encode(rows), ((0, 0), (half, 0))), np.pad(encode(columns), ((0, 0), (0, half)))


def at_patches(
    rows: Float[np.ndarray, "R D"], columns: Float[np.ndarray, "C D"], frames: Float[np.ndarray, "f D"]
) -> Float[Array, "N D"]:
    """What each patch has of its row, its column and its frame, added up, in the order of `patchify`.

    Added up inside the program: the sum would be a constant of it as large as the stream of tokens of a clip.
    """
    of_rows, of_columns, of_frames = (jnp.asarray(table) for table in (rows, columns, frames))
    return (of_rows[:, None, None] + of_columns[:, None] + of_frames).reshape(-1, rows.shape[1])


def rotate(x: Float[Array, "B N K d"], angles: Float[Array | np.ndarray, "N r"]) -> Float[Array, "B N K d"]:
    """Rotates each plane (x[i], x[i + d/2]) of every head by its angle, in float32."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def linear(
    features_in: int,
    features_out: int,
    axes: tuple[str | None, str | None],
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
    init: nnx.Initializer | None = None,
    use_bias: bool = True,
) -> nnx.Linear:
    """`nnx.Linear` in float32 parameters and `dtype` compute, its kernel labelled with logical `axes`."""
    init = init or nnx.initializers.xavier_uniform()
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nnx.with_metadata(init, axes=axes),
        bias_init=nnx.with_metadata(nnx.initializers.zeros, axes=axes[-1:]),
        rngs=rngs,
    )


NUM_TIMESTEPS = 1000
"""What a network is told of the noise level t in [0, 1] is the timestep NUM_TIMESTEPS * t, as others count levels."""


def sinusoid(
    t: Float[Array, "B #t"], features: int, *, offset: int = 0, frequency_shift: int = 0
) -> Float[Array, "B #t F"]:
    """Sinusoidal features of the noise level t in [0, 1], scaled to DiT's 0..1000 (Peebles and Xie, 2212.09748).

    Args:
        offset: added to the timestep.
        frequency_shift: frequencies fall from 1 to 1/10000, which would be the next after the last; with 1 it is the
            last.
    """
    half = features // 2
    ladder = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - frequency_shift))
    phase = (NUM_TIMESTEPS * t.astype(jnp.float32)[..., None] + offset) * ladder
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class VectorEmbedding(nnx.Module):
    """A vector for each clip or frame -> one of width D, a part of what modulates: linear, SiLU, linear."""

    def __init__(self, features: int, hidden_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.up = linear(features, hidden_size, (None, "embed"), rngs=rngs, dtype=dtype, init=normal)
        self.down = linear(hidden_size, hidden_size, ("embed", "mlp"), rngs=rngs, dtype=dtype, init=normal)

    def __call__(self, x: Float[Array, "*b P"], /) -> Float[Array, "*b D"]:
        return self.down(nnx.silu(self.up(x)))


class TimeEmbedding(VectorEmbedding):
    """Noise level -> vector of width D, one per clip or per frame: that of its sinusoid."""

    num_frequencies = 256

    def __init__(
        self, hidden_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs, offset: int = 0, frequency_shift: int = 0
    ):
        """`offset` and `frequency_shift` as in `sinusoid`."""
        super().__init__(self.num_frequencies, hidden_size, dtype=dtype, rngs=rngs)
        self.offset, self.frequency_shift = offset, frequency_shift

    def __call__(self, t: Float[Array, "B #t"], /) -> Float[Array, "B #t D"]:
        shift = self.frequency_shift
        return super().__call__(sinusoid(t, self.num_frequencies, offset=self.offset, frequency_shift=shift))


class LabelEmbedding(nnx.Module):
    """Class label -> vector of width D; the row after the last class stands for "no label"."""

    def __init__(self, num_classes: int, hidden_size: int, *, rngs: nnx.Rngs):
        init = nnx.with_metadata(nnx.initializers.normal(0.02), axes=("vocab", "embed"))
        self.table = nnx.Param(
            init(rngs.params(), (num_classes + 1, hidden_size), jnp.float32), axes=("vocab", "embed")
        )

    def __call__(self, label: Int[Array, "B"]) -> Float[Array, "B D"]:
        # Looked up in the whole table: rows that are split over devices would be brought together one by one.
        return constrain(self.table[...], None, None)[label]


# Shift, scale and gate for attention and for the MLP, or what else a layer is modulated by.
Modulation = list[Float[Array, "B #f D"]]


class AdaLN(nnx.Module):
    """Adaptive modulation: `num` vectors per block from the conditioning vector, zero at initialisation.

    With gates starting at zero every residual block is the identity (adaLN-zero, 2212.09748 section 3.2). The kernel
    has an axis of its own for the `num` vectors, so that they are told apart without moving anything between devices.
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
    """What one block adds to the modulation vectors that all blocks share; zero at initialisation.

    This is adaLN-single (PixArt-alpha, 2310.00426, section 2.3). An AdaLN in every block holds 6 D^2 of its 18 D^2
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
    """`apply`, elementwise, to tokens in the order of `patchify` and to vectors that clips have, or all their frames.

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
    """x (1 + scale) + shift, by the vectors of each clip or of each frame."""
    return with_frames(lambda x, shift, scale: x * (1 + scale) + shift, x, shift, scale)


def gated(gate: Float[Array, "B #f D"], branch: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """gate * branch, by the vector of each clip or of each frame."""
    return with_frames(jnp.multiply, branch, gate)
