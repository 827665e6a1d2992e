"""Batch sizes of the shapes of clips: as many clips of each as take equal work, counted in FLOPs, not in tokens.

Attention is quadratic, so that equal tokens are not equal time.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from dit_video.config.user_file import ExperimentError
from dit_video.data import shape_choice
from dit_video.data.shape_choice import Budget, Loss
from dit_video.data.shapes import BatchShape, Extents, assigned
from dit_video.experiment import Experiment
from dit_video.run.workload import step_flops

# The spread of work that is asked for: (largest - smallest) / mean.
MOST_SPREAD = 0.1


# A step of so few clips cannot be cut much finer.
FEW_CLIPS = 16


def balanced(experiment: Experiment) -> Experiment:
    """The experiment with a batch size for each of its shapes that has none.

    A step of each then takes, as nearly as multiples of `Data.batch_multiple` allow, the FLOPs of a step on
    `Data.batch_size` clips of `Data.clips`. A function of the experiment alone, whatever the devices.

    Raises:
        ExperimentError: a shape that the task cannot take, with the remedy.
    """
    shapes = experiment.data.shapes
    if all(shape.batch_size is not None for shape in shapes):
        return experiment
    sized = _Sized(experiment)
    chosen = tuple(shape if shape.batch_size else sized(shape, clip_flops(experiment, shape)) for shape in shapes)
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, shapes=chosen))


def largest(experiment: Experiment) -> Experiment:
    """A balanced experiment on its shape with the most tokens in a batch, which takes the most memory."""

    def tokens(one: Experiment) -> int:
        return one.data.batch_size * (one.task.num_tokens(one.data) or one.data.clips.num_frames)

    return max(experiment.by_shape(), key=tokens)


def clip_flops(experiment: Experiment, shape: BatchShape | None = None) -> float:
    """FLOPs of a training step for each clip of a shape; None: of `Data.clips`."""
    data, multiple = experiment.data, experiment.data.batch_multiple
    clips = data.clips if shape is None else shape.cut(data.clips)
    alone = dataclasses.replace(data, clips=clips, batch_size=multiple, shapes=())
    try:
        experiment.task.check(alone, None)
    except ValueError as error:
        raise ExperimentError(f"{'' if shape is None else f'config.data.shapes: {shape}: '}{error}") from error
    return step_flops(dataclasses.replace(experiment, data=alone)) / multiple


def spread(flops: Sequence[int | float]) -> float:
    """(largest - smallest) / mean."""
    return (max(flops) - min(flops)) * len(flops) / sum(flops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeUse:
    """What becomes of a set in one shape.

    Attributes:
        shape: with its batch size.
        clips: videos that go there.
        cut: share of their area-time that is cut off.
        filled: share that is filled up.
        tokens: of one clip; None where the task has none.
        flops: of a step.
    """

    shape: BatchShape
    clips: int
    cut: float
    filled: float
    tokens: int | None
    flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Shapes for a set, with what others lose for comparison.

    Attributes:
        too_short: videos that no shape takes.
        loss: of these shapes; `single` of the best shape alone, `grid` of as many as somebody would write down.
        enough: the batch size of `Data.clips` from which on works are no farther apart than `MOST_SPREAD`; None where
            they are.
    """

    uses: tuple[ShapeUse, ...]
    too_short: int
    loss: Loss
    single: Loss
    grid: Loss
    enough: int | None

    @property
    def spread(self) -> float:
        """Of the FLOPs of steps."""
        return spread([use.flops for use in self.uses])


def budget_of(experiment: Experiment) -> Budget:
    """The largest clip of an experiment's shapes, `Data.clips`, and how much smaller ones may be.

    Raises:
        ExperimentError: the task takes no such clips.
    """
    data = experiment.data

    def valid(*clip: int) -> bool:
        cut = BatchShape(num_frames=clip[0], size=(clip[1], clip[2])).cut(data.clips)
        try:
            experiment.task.check(dataclasses.replace(data, clips=cut, shapes=()), None)
        except ValueError:
            return False
        return True

    try:
        return Budget.of(data.clips, valid)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def choice(experiment: Experiment, extents: Extents, num: int | None) -> Choice:
    """The `num` shapes in which a set loses least, or those of the experiment where `num` is None."""
    budget, sized, estimate = budget_of(experiment), _Sized(experiment), work_estimate(experiment)

    def estimated(shape: BatchShape) -> float:
        return sized.number(estimate(shape)) * estimate(shape)

    def loss(shapes: Sequence[BatchShape]) -> Loss:
        return shape_choice.loss_of(shapes, extents, budget, [estimated(shape) for shape in shapes])

    fixed = experiment.data.shapes if num is None else ()
    shapes = list(fixed) or shape_choice.choose(extents, budget, num or 1, estimated)
    where = assigned(extents, shapes, budget.clips)
    lost = shape_choice.lost_by(shapes, extents, budget)
    uses, each = [], []
    for number, shape in enumerate(shapes):
        flops, mine = clip_flops(experiment, shape), where == number
        shape = sized(shape, flops)
        alone = dataclasses.replace(experiment.data, clips=shape.cut(budget.clips), shapes=())
        each.append(flops)
        uses.append(
            ShapeUse(
                shape=shape,
                clips=int(mine.sum()),
                cut=float(lost.cut[mine, number].mean()) if mine.any() else 0.0,
                filled=float(lost.filled[mine, number].mean()) if mine.any() else 0.0,
                tokens=experiment.task.num_tokens(alone),
                flops=(shape.batch_size or 1) * flops,
            )
        )
    return Choice(
        uses=tuple(uses),
        too_short=int((where < 0).sum()),
        loss=shape_choice.loss_of(shapes, extents, budget, [use.flops for use in uses]),
        single=loss(shape_choice.best_single(extents, budget, estimated)),
        grid=loss(shape_choice.grid(extents, budget, len(shapes))),
        enough=None if spread([use.flops for use in uses]) <= MOST_SPREAD else sized.enough(each),
    )


class _Sized:
    """Batch sizes of the work of a step on `Data.batch_size` clips of `Data.clips`."""

    def __init__(self, experiment: Experiment):
        self._clip, self._data = clip_flops(experiment), experiment.data

    def number(self, flops: float, batch_size: int | None = None) -> int:
        """Clips of so many FLOPs each that do the work of `batch_size` of `Data.clips`."""
        work, multiple = (batch_size or self._data.batch_size) * self._clip, self._data.batch_multiple
        return max(1, round(work / flops / multiple)) * multiple

    def __call__(self, shape: BatchShape, flops: float) -> BatchShape:
        """The shape with a batch size, its own where it has one."""
        return dataclasses.replace(shape, batch_size=shape.batch_size or self.number(flops))

    def enough(self, flops: Sequence[float]) -> int:
        """The smallest multiple of `Data.batch_size` for which works are no farther apart than `MOST_SPREAD`."""
        size = self._data.batch_size
        while spread([self.number(each, size) * each for each in flops]) > MOST_SPREAD:
            size += self._data.batch_size
        return size


def work_estimate(experiment: Experiment) -> Callable[[BatchShape], float]:
    """FLOPs of a step for each clip of any shape, estimated: a parabola in its tokens, exact for full attention."""
    budget = budget_of(experiment)
    task, data = experiment.task, experiment.data

    def tokens(shape: BatchShape) -> int:
        alone = dataclasses.replace(data, clips=shape.cut(data.clips), shapes=())
        return task.num_tokens(alone) or math.prod(shape.clip)

    T, (H, W) = budget.lengths[-1], data.clips.size
    middle = budget.shape(budget.lengths[len(budget.lengths) // 2], H / 2, W)
    probes = {shape.clip: shape for shape in (budget.shape(1, H / 2, W / 2), middle, budget.shape(T, H, W)) if shape}
    points = [(tokens(shape), clip_flops(experiment, shape)) for shape in probes.values()]
    x, y = (np.array(values, float) for values in zip(*points))
    parabola = np.polynomial.Polynomial.fit(x, y, min(2, len(set(x)) - 1))
    # A parabola may turn where there are fewer tokens than were tried; work never is below a part of the least.
    return lambda shape: max(float(parabola(tokens(shape))), float(y.min()) * tokens(shape) / float(x[y.argmin()]) / 4)
