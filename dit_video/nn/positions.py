"""Position embeddings: rotary (RoPE), also beyond the sizes of training, and sine-cosine."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dit_video.config.bounds import at_least
from dit_video.nn.module import recomputed
from dit_video.nn.patches import PatchSize


@dataclasses.dataclass(frozen=True, kw_only=True)
class NTKAware:
    """NTK-aware extrapolation of rotary positions, by axis (bloc97, 2023; 2309.00071, eq. 11 to 13).

    Along an axis of n planes that is s times as long as in training, theta is theta s^(n / (n - 1)): the slowest plane
    turns no further than it did in training, the fastest as fast as before. Axes that are no longer stay as they are,
    so that at the size of training, and below, nothing changes.

    Attributes:
        trained: (t, h, w) of the largest latents of training, in cells.
    """

    trained: tuple[int, int, int]

    def __post_init__(self):
        at_least(self, 1, "trained")

    def stretch(self, shape: tuple[int, int, int]) -> tuple[float, ...]:
        """How many times longer than in training latents of `shape` (t, h, w) are along each axis; at least 1."""
        return tuple(max(1.0, n / trained) for n, trained in zip(shape, self.trained))


def stretch_of(extrapolation: NTKAware | None, shape: tuple[int, int, int]) -> tuple[float, ...] | None:
    """`NTKAware.stretch`; None where positions are as they are."""
    return None if extrapolation is None else extrapolation.stretch(shape)


def rope_angles(
    positions: Float[np.ndarray, "N A"],
    head_dim: int,
    *,
    theta: float = 10_000.0,
    stretch: Sequence[float] | None = None,
) -> Float[np.ndarray, "N R"]:
    """Rotation angles of axial rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15, per axis).

    The R = head_dim / 2 planes are shared out among the A axes as evenly as possible, the first axis
    (time) taking what is left over; each axis has its own geometric ladder of frequencies.

    Args:
        stretch: of each axis, as `NTKAware` has it; None: 1 for all.
    """
    if head_dim % 2:
        raise ValueError(f"{head_dim=}: rotary position embedding needs an even head size")
    num_axes = positions.shape[1]
    base = head_dim // 2 // num_axes
    planes = [head_dim // 2 - base * (num_axes - 1)] + [base] * (num_axes - 1)
    # A single plane is the fastest and stays.
    thetas = [theta * s ** (n / (n - 1)) if n > 1 else theta for s, n in zip(stretch or (1.0,) * num_axes, planes)]
    angles = [
        positions[:, axis, None] * thetas[axis] ** (-np.arange(n, dtype=np.float64) / max(n, 1))
        for axis, n in enumerate(planes)
    ]
    return np.concatenate(angles, axis=-1).astype(np.float32)


def patch_angles(
    shape: tuple[int, int, int],
    patch_size: PatchSize,
    head_dim: int,
    frames: Int[Array | np.ndarray, "f"] | None = None,
    stretch: Sequence[float] | None = None,
) -> Float[Array, "N R"]:
    """`rope_angles` of the true (frame, row, column) of each patch's first cell, in the order of `patchify`.

    In latent cells, not patches: a model keeps its sense of distance when the patch size changes.

    Args:
        frames: numbers of the frames, one for each of the patches one after the other, which may be known only when
            the program runs; None: the clip begins with number 0. Their angles are float32: after 100,000 frames the
            fastest plane is off by less than 0.01.
        stretch: as in `rope_angles`.
    """

    def of_axis(axis: int) -> Float[np.ndarray, "n R"]:
        cells = np.arange(0, shape[axis], patch_size[axis])
        positions = np.zeros((len(cells), 3), np.float32)
        positions[:, axis] = cells
        return rope_angles(positions, head_dim, stretch=stretch)

    # Angles are linear in positions, and each axis has planes of its own: the sum is exact.
    def of_frames() -> Float[Array | np.ndarray, "f R"]:
        if frames is None:
            return of_axis(0)
        of_one = rope_angles(np.eye(1, 3, dtype=np.float32), head_dim, stretch=stretch)
        return jnp.asarray(frames, jnp.float32)[:, None] * of_one

    return at_patches(rows=of_axis(1), columns=of_axis(2), frames=of_frames())


def sincos_positions(
    shape: tuple[int, int, int], patch_size: PatchSize, hidden_size: int, *, grid: int | None = None
) -> Float[Array, "N D"]:
    """2-D sine-cosine position embedding of each patch within its frame, in `patchify` order (2212.09748, appendix A).

    It is the same for all frames.

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
    """2-D sine-cosine table of a grid, in row-major order, as weight files store it."""
    of_rows, of_columns = sincos_axes(rows, columns, hidden_size)
    return (of_rows[:, None] + of_columns).reshape(-1, hidden_size)


def sincos_axes(
    rows: Float[np.ndarray, "R"], columns: Float[np.ndarray, "C"], hidden_size: int
) -> tuple[Float[np.ndarray, "R D"], Float[np.ndarray, "C D"]]:
    """Sine-cosine vectors of rows and of columns, whose sum embeds a place.

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
    rows: Float[np.ndarray, "R D"], columns: Float[np.ndarray, "C D"], frames: Float[Array | np.ndarray, "f D"]
) -> Float[Array, "N D"]:
    """Position embedding of each patch as the sum of its row's, column's and frame's vectors, in `patchify` order.

    Added up inside the program: the sum would be a constant of it as large as the stream of tokens of a clip.
    """
    of_rows, of_columns, of_frames = (jnp.asarray(table) for table in (rows, columns, frames))
    return (of_rows[:, None, None] + of_columns[:, None] + of_frames).reshape(-1, rows.shape[1])


@recomputed
def rotate(x: Float[Array, "B N K d"], angles: Float[Array | np.ndarray, "N r"]) -> Float[Array, "B N K d"]:
    """Applies rotary position embedding: rotates each plane (x[i], x[i + d/2]) of every head, in float32."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
