"""Checkpoint retention: keep the latest, every n-th step, and the best by an evaluator's score."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

from dit_video.config.bounds import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """Keep the checkpoints with the best score.

    A step is saved before it is judged, so that nothing is lost where an evaluator fails. Its score counts from the
    next save on, and until then it stays as the latest. A step that was not judged, or whose score is not finite, is
    not among the best: let `Schedule.save_every` divide the evaluator's `every`, or the other way round.

    Attributes:
        evaluator: its name in `Experiment.evaluators`.
        scalar: which of the numbers that it measures.
        higher: whether more is better; of FVD or an error, less is.
        num: how many are kept.
    """

    evaluator: str
    scalar: str
    higher: bool = False
    num: int = 1

    def __post_init__(self):
        at_least(self, 1, "num", why="leave out Keep.best to keep none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Retention policy: a checkpoint is kept while any of these rules keeps it.

    Attributes:
        latest: this many of the last ones; with 2 or more there is one to fall back on where the last is damaged.
        every: each whose step is a multiple of it.
    """

    latest: int = 3
    every: int | None = None
    best: Best | None = None

    def __post_init__(self):
        at_least(self, 1, "latest", "every")

    def to_delete(self, steps: Iterable[int], scores: Mapping[int, float]) -> set[int]:
        """Steps that no rule keeps; `scores` are those that `best` names, by step."""
        ordered = sorted(steps)
        keep = set(ordered[-self.latest :])
        if self.every is not None:
            keep |= {step for step in ordered if step % self.every == 0}
        if self.best is not None:
            sign = -1 if self.best.higher else 1
            scored = [step for step in ordered if math.isfinite(scores.get(step, math.nan))]
            # Of equal scores the later step is the better trained.
            keep |= set(sorted(scored, key=lambda step: (sign * scores[step], -step))[: self.best.num])
        return set(ordered) - keep


@dataclasses.dataclass(frozen=True)
class Retention:
    """A retention policy with the scores that it goes by.

    Attributes:
        scores: reads the scores that `keep.best` names, by step; called at each save of a run that keeps the best.
    """

    keep: Keep = Keep()
    scores: Callable[[Best], Mapping[int, float]] = lambda best: {}

    def to_delete(self, steps: Iterable[int]) -> set[int]:
        """Steps that no rule keeps; none where the scores cannot be read, for the best may be among them."""
        try:
            scores = {} if self.keep.best is None else self.scores(self.keep.best)
        except OSError:
            return set()
        return self.keep.to_delete(steps, scores)
