"""Shapes of batches: the finite set of clips (frames, height, width) that a run is trained on, and who goes where.

A record goes to the shape that loses the least of it: what is cut off and what is filled up, as a share of the clip
that the record would be at its own aspect and length. Nothing but stored frame counts, rates and sizes decides that.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dit_video.config.bounds import at_least
from dit_video.data.record import Examples
from dit_video.data.transforms import ClipTransform, Usable

# Frames are counted in floating point where clips have a rate of their own.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Shape of the clips of a batch, and how many make one.

    Attributes:
        size: height and width.
        batch_size: clips of a global batch of this shape; None: as many as take the work of `Data.batch_size` clips of
            `Data.clips` (run/shapes.py).
    """

    num_frames: int
    size: tuple[int, int]
    batch_size: int | None = None

    def __post_init__(self):
        if len(self.size) != 2:
            raise ValueError(f"BatchShape.size={self.size}: must be (height, width)")
        at_least(self, 1, "num_frames", "size", "batch_size")

    def __str__(self) -> str:
        return "x".join(map(str, self.clip))

    @property
    def clip(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.num_frames, *self.size

    def cut(self, clips: ClipTransform) -> ClipTransform:
        """How clips of this shape are cut, in all else as `clips`."""
        return dataclasses.replace(clips, num_frames=self.num_frames, size=self.size)


class Extents(NamedTuple):
    """Extents of records, one a row, as far as they decide the shape of a clip.

    Attributes:
        num_frames: of the record, `fps` per second.
        sizes: height and width.
    """

    num_frames: Int[np.ndarray, "n"]
    fps: Float[np.ndarray, "n"]
    sizes: Int[np.ndarray, "n 2"]

    @classmethod
    def of(cls, examples: Examples) -> "Extents":
        """Those of all records; nothing is decoded.

        Raises:
            ValueError: the source does not say them.
        """
        num_frames, fps, sizes = examples.num_frames, examples.fps, examples.sizes
        if num_frames is None or sizes is None:
            raise ValueError(
                "config.data.shapes: the source does not say the length and size of its videos, which decide the shape "
                "of each; ingest them (dit-video data ingest), or leave shapes empty"
            )
        return cls(num_frames, np.ones(len(num_frames)) if fps is None else fps, sizes)

    def clip_frames(self, clips: ClipTransform) -> Int[np.ndarray, "n"]:
        """Frames of the longest clip that each record gives, as `clips` takes them."""
        if clips.fps is None:
            return (self.num_frames - 1) // clips.stride + 1
        return np.floor((self.num_frames - 1) / self.fps * clips.fps + _ROUNDING).astype(int) + 1


class Losses(NamedTuple):
    """What each record loses in each shape, as shares of the clip that it would be at its own aspect and length.

    Attributes:
        cut: pixels and frames that are cut off, or lost to scaling below the area of the largest shape as long.
        filled: pixels that are made up, where a record is smaller than its clip.
    """

    cut: Float[np.ndarray, "n shapes"]
    filled: Float[np.ndarray, "n shapes"]

    @property
    def total(self) -> Float[np.ndarray, "n shapes"]:
        """What decides; infinite where a record is too short for the shape."""
        return self.cut + self.filled


def losses(
    extents: Extents,
    shapes: Sequence[BatchShape],
    clips: ClipTransform,
    *,
    max_area: int | None = None,
    max_frames: int | None = None,
) -> Losses:
    """What records lose in shapes.

    The clip that a record would be has its own aspect, at most `max_area` pixels a frame (None: those of the largest
    shape of as many frames), is scaled down and never up, and has at most `max_frames` (None: those of the longest).
    """
    frames = np.array([shape.num_frames for shape in shapes])
    of_shapes = np.array([shape.size for shape in shapes], float)
    areas = of_shapes.prod(1)
    largest = np.array([areas[frames == number].max() if max_area is None else max_area for number in frames])
    longest = frames.max() if max_frames is None else max_frames
    there = extents.clip_frames(clips)[:, None]
    clip_frames = np.minimum(there, longest)
    # [n, shapes, 2]: the frame of the clip that each record would be.
    shrink = np.minimum(1, np.sqrt(largest / extents.sizes.prod(1, dtype=float)[:, None]))
    own = extents.sizes[:, None].astype(float) * shrink[..., None]
    whole = own.prod(2) * clip_frames
    scale = (of_shapes / own).max(2)
    taken = np.broadcast_to(areas * frames, whole.shape)
    real = taken / np.maximum(scale, 1) ** 2
    starts = [shape.cut(clips).num_starts(extents.num_frames, extents.fps) for shape in shapes]
    cut = np.where(np.stack(starts, 1) > 0, np.maximum(1 - real / whole, 0), np.inf)
    return Losses(cut, np.broadcast_to((taken - real) / whole, cut.shape))


def assigned(extents: Extents, shapes: Sequence[BatchShape], clips: ClipTransform) -> Int[np.ndarray, "n"]:
    """The shape that each record goes to: the one in which it loses least, of equals the larger; -1 where it is too
    short for any.
    """
    total = losses(extents, shapes, clips).total
    order = np.array(sorted(range(len(shapes)), key=lambda k: (-math.prod(shapes[k].clip), k)))
    # Equal to rounding counts as equal.
    best = order[np.argmin(np.round(total[:, order], 9), axis=1)]
    return np.where(np.isinf(total.min(1)), -1, best)


def records_by_shape(examples: Examples, shapes: Sequence[BatchShape], clips: ClipTransform) -> list[Usable]:
    """The records that go to each shape; nothing is decoded. Moments are of the shape that they were encoded in.

    Raises:
        ValueError: a shape that none goes to; or a source that does not say the sizes of its videos.
    """
    if examples.cut_to is not None:
        where = (examples.cut_to[:, None] == [shape.clip for shape in shapes]).all(2) @ np.arange(
            1, len(shapes) + 1
        ) - 1
        others = "its clips have other shapes: encode again"
    else:
        extents = Extents.of(examples)
        where, longest = assigned(extents, shapes, clips), extents.clip_frames(clips).max()
        others = f"the longest gives a clip of {longest} frames, and others lose less in another shape"
    for number, shape in enumerate(shapes):
        if not (where == number).any():
            raise ValueError(
                f"config.data.shapes[{number}]={shape}: none of the {len(examples)} training videos goes there; "
                f"{others}: leave it out, or let dit-video data shapes choose"
            )
    return [Usable(examples, np.flatnonzero(where == number)) for number in range(len(shapes))]


@dataclass(frozen=True)
class ShapeSchedule:
    """Which shape each global batch has: a pure function of the seed, the batch's index and the counts of records.

    In epoch e shape k has floor((e + 1) n_k / B_k) - floor(e n_k / B_k) batches, in an order of the epoch's own: so
    each record is seen as often as any other, whatever its shape.

    Attributes:
        num_records: n_k, of each shape.
        batch_sizes: B_k.
    """

    seed: int
    num_records: tuple[int, ...]
    batch_sizes: tuple[int, ...]

    def place(self, batch: int) -> tuple[int, int]:
        """(shape, how many batches of that shape came before) of the batch of this index."""
        if len(self.num_records) == 1:
            return 0, batch
        epoch = self._epoch_of(batch)
        before, after = self._before(epoch), self._before(epoch + 1)
        order = _shuffled(self.seed, epoch, tuple(b - a for a, b in zip(before, after)))
        number = batch - sum(before)
        shape = int(order[number])
        return shape, before[shape] + int((order[:number] == shape).sum())

    def _before(self, epoch: int) -> tuple[int, ...]:
        """Batches of each shape before an epoch."""
        return tuple(epoch * n // size for n, size in zip(self.num_records, self.batch_sizes))

    def _epoch_of(self, batch: int) -> int:
        each = sum(n / size for n, size in zip(self.num_records, self.batch_sizes))
        last = int((batch + len(self.num_records)) / each) + 2
        return bisect.bisect_right(range(last), batch, key=lambda epoch: sum(self._before(epoch + 1)))


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, epoch: int, counts: tuple[int, ...]) -> Int[np.ndarray, "batches"]:
    """Shapes of the batches of an epoch in order, of which shape k has counts[k]."""
    return np.random.default_rng((seed, epoch)).permutation(np.repeat(np.arange(len(counts)), counts))
