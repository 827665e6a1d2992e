"""Choice of shapes for a set: those, of so many, in which its videos lose the least area-time.

What is lost is what is cut off, what is filled up, what idles because steps of several shapes take unequal work, and
videos that are too short for any: of these the share of their number, or pictures among long videos would not count.
Shapes are added one by one, each the one that helps most, and then exchanged for others as long as that helps.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from dit_video.data.shapes import BatchShape, Extents, Losses, assigned, losses
from dit_video.data.transforms import ClipTransform

# Sizes and lengths that are tried are of so many kinds of videos, the most frequent.
_MOST_KINDS = 400
# Aspects and parts of the whole length that somebody would write down.
_COMMON_ASPECTS = (16 / 9, 1.0, 9 / 16, 4 / 3, 3 / 4, 21 / 9, 3 / 2, 2 / 3)

# (T, H, W) -> whether clips of this shape are ones that a task can take.
Valid = Callable[[int, int, int], bool]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The largest clip: its frames and the pixels of each; and the steps in which shapes may differ.

    Attributes:
        lengths: numbers of frames that a clip may have, growing.
        multiple: height and width are multiples of it.
    """

    clips: ClipTransform
    lengths: tuple[int, ...]
    multiple: int

    @classmethod
    def of(cls, clips: ClipTransform, valid: Valid) -> "Budget":
        """That of experiments whose largest clips are `clips`.

        Raises:
            ValueError: no clip as long, or of multiples up to that size, is valid.
        """
        T, (H, W) = clips.num_frames, clips.size
        lengths = tuple(n for n in range(1, T + 1) if valid(n, H, W))
        multiples = [n for n in range(1, max(H, W) + 1) if valid(T, n, W) and valid(T, H, n)]
        if not lengths or not multiples:
            raise ValueError(f"config.data.clips (num_frames, size) = {(T, H, W)}: the task takes no clips of it")
        return cls(clips, lengths, multiples[0])

    @property
    def area(self) -> int:
        return math.prod(self.clips.size)

    def shape(self, num_frames: int, height: int | float, width: int | float) -> BatchShape | None:
        """The shape nearest to these that is within the budget; None where none is."""
        size = [max(1, round(side / self.multiple)) * self.multiple for side in (height, width)]
        while math.prod(size) > self.area:
            longer = int(np.argmax(size))
            size[longer] -= self.multiple
            if size[longer] == 0:
                return None
        lengths = [n for n in self.lengths if n <= num_frames]
        return BatchShape(num_frames=lengths[-1], size=(size[0], size[1])) if lengths else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What a set of shapes loses of the area-time of a data set, as shares of it.

    Attributes:
        cut: off.
        filled: up.
        left_out: videos that are too short for every shape, as a share of their number.
        idle: of the work of steps, against steps that all take as much as the largest.
    """

    cut: float
    filled: float
    left_out: float
    idle: float

    @property
    def total(self) -> float:
        return self.cut + self.filled + self.left_out + self.idle


def choose(extents: Extents, budget: Budget, num: int, flops: Callable[[BatchShape], int | float]) -> list[BatchShape]:
    """The shapes, at most `num`, that lose least; the largest first.

    Args:
        flops: of a step on a batch of this shape.
    """
    candidates = _candidates(extents, budget)
    lost, weights = _lost(extents, candidates, budget)
    works = np.array([flops(shape) for shape in candidates])

    def score(chosen: Sequence[int]) -> Float[np.ndarray, "candidates"]:
        """Of those that are chosen with each of the candidates besides."""
        kept = lost[:, list(chosen)].min(1) if chosen else np.full(len(lost), np.inf)
        area_time = weights @ np.minimum(kept[:, None], lost)
        largest = np.maximum(works, works[list(chosen)].max(initial=0))
        mean = (works + works[list(chosen)].sum()) / (len(chosen) + 1)
        return area_time + 1 - mean / largest

    chosen: list[int] = []
    best = math.inf
    while len(chosen) < num:
        scores = score(chosen)
        if scores.min() >= best - 1e-9:
            break
        chosen.append(int(scores.argmin()))
        best = scores.min()
    exchanged = True
    while exchanged:
        exchanged = False
        for place in range(len(chosen)):
            others = chosen[:place] + chosen[place + 1 :]
            scores = score(others)
            if scores.min() < best - 1e-9:
                chosen, best, exchanged = [*others, int(scores.argmin())], scores.min(), True
    shapes = [candidates[number] for number in chosen]
    # One that its neighbours leave without a video is not needed.
    where = assigned(extents, shapes, budget.clips)
    used = [shape for number, shape in enumerate(shapes) if (where == number).any()]
    return sorted(used, key=lambda shape: (-math.prod(shape.clip), shape.clip))


def best_single(extents: Extents, budget: Budget, flops: Callable[[BatchShape], int | float]) -> list[BatchShape]:
    """The one shape that loses least, for comparison."""
    return choose(extents, budget, 1, flops)


def grid(extents: Extents, budget: Budget, num: int) -> list[BatchShape]:
    """`num` shapes as they are written down by hand, for comparison: common aspects, whole and half of the length."""
    whole = [shape for n in (1.0, 0.5) for shape in _of_aspects(budget, n)]
    shapes = list({shape.clip: shape for shape in whole}.values())
    # All aspects in both lengths, as many as there is room for.
    half = max(1, num // 2)
    longest = [shape for shape in shapes if shape.num_frames == shapes[0].num_frames][: num - num // 2]
    shorter = [shape for shape in shapes if shape.num_frames != shapes[0].num_frames][:half]
    chosen = (longest + shorter)[:num]
    where = assigned(extents, chosen, budget.clips)
    return [shape for number, shape in enumerate(chosen) if (where == number).any()] or chosen[:1]


def _of_aspects(budget: Budget, length: float) -> Iterator[BatchShape]:
    for aspect in _COMMON_ASPECTS:
        width = math.sqrt(budget.area * aspect)
        if (shape := budget.shape(max(1, int(budget.clips.num_frames * length)), width / aspect, width)) is not None:
            yield shape


def loss_of(shapes: Sequence[BatchShape], extents: Extents, budget: Budget, works: Sequence[int | float]) -> Loss:
    """What shapes lose of a set as records go to them in training.

    Args:
        works: FLOPs of a step of each shape.
    """
    where = assigned(extents, shapes, budget.clips)
    of_all = losses(extents, shapes, budget.clips, max_area=budget.area, max_frames=budget.lengths[-1])
    rows, weights = np.arange(len(where)), _weights(extents, budget)
    short = where < 0
    cut, filled = (np.where(short, 0, share[rows, where]) for share in of_all)
    return Loss(
        cut=float(weights @ cut),
        filled=float(weights @ filled),
        left_out=float(short.mean()),
        idle=1 - float(np.mean(works) / max(works)),
    )


def lost_by(shapes: Sequence[BatchShape], extents: Extents, budget: Budget) -> Losses:
    """What each record loses in each shape, measured by the largest clip that the budget allows."""
    return losses(extents, shapes, budget.clips, max_area=budget.area, max_frames=budget.lengths[-1])


def _lost(
    extents: Extents, candidates: Sequence[BatchShape], budget: Budget
) -> tuple[Float[np.ndarray, "n candidates"], Float[np.ndarray, "n"]]:
    """What each kind of record loses in each candidate, in units of its share of area-time, which is returned too."""
    first, weights, counts = _kinds(extents, budget)
    of_kinds = Extents(extents.num_frames[first], extents.fps[first], extents.sizes[first])
    lost = lost_by(candidates, of_kinds, budget).total
    return np.where(np.isinf(lost), (counts / counts.sum() / weights)[:, None], lost), weights


def _kinds(
    extents: Extents, budget: Budget
) -> tuple[Int[np.ndarray, "kinds"], Float[np.ndarray, "kinds"], Int[np.ndarray, "kinds"]]:
    """Where the first record of each extent is, the share of area-time of all that have it, and their number."""
    rows = np.column_stack([extents.num_frames, extents.fps, extents.sizes])
    _, first, inverse, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    return first, np.bincount(inverse.ravel(), weights=_weights(extents, budget)), counts


def _weights(extents: Extents, budget: Budget) -> Float[np.ndarray, "n"]:
    """Share of each record in the area-time of all: of the clip that it would be at its own aspect and length."""
    frames = np.minimum(extents.clip_frames(budget.clips), budget.lengths[-1])
    whole = np.minimum(extents.sizes.prod(1), budget.area) * frames
    return whole / whole.sum()


def _candidates(extents: Extents, budget: Budget) -> list[BatchShape]:
    """Shapes near those that records would have at their own aspect, of all their lengths."""
    first, weights, counts = _kinds(extents, budget)
    weights = np.maximum(weights, counts / counts.sum())
    frequent = first[np.argsort(-weights, kind="stable")[:_MOST_KINDS]]
    frames = extents.clip_frames(budget.clips)[frequent]
    lengths = {shape.num_frames for n in set(frames.tolist()) if (shape := budget.shape(n, 1, 1)) is not None}
    found: dict[tuple[int, int, int], BatchShape] = {}
    for height, width in {tuple(size) for size in extents.sizes[frequent].tolist()}:
        shrink = min(1.0, math.sqrt(budget.area / (height * width)))
        for length in lengths:
            # Rounded either way, for a frame cannot always be filled whole.
            for up in (-0.5, 0.0, 0.5):
                shift = up * budget.multiple
                for size in ((shrink * height + shift, shrink * width), (shrink * height, shrink * width + shift)):
                    if (shape := budget.shape(length, *size)) is not None:
                        found[shape.clip] = shape
    return [found[clip] for clip in sorted(found)]
