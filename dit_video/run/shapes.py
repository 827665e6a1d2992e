"""Batch sizes of the shapes of clips: as many clips of each as take equal work, counted in FLOPs, not in tokens.

Attention is quadratic, so that equal tokens are not equal time.
"""

import dataclasses
from collections.abc import Sequence

from dit_video.config.user_file import ExperimentError
from dit_video.data.shapes import BatchShape
from dit_video.experiment import Experiment
from dit_video.run.workload import step_flops

# The spread of work that is asked for: (largest - smallest) / mean.
MOST_SPREAD = 0.1


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
    work = experiment.data.batch_size * clip_flops(experiment)
    sized = tuple(shape if shape.batch_size is not None else _sized(experiment, shape, work) for shape in shapes)
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, shapes=sized))


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


def _sized(experiment: Experiment, shape: BatchShape, work: float) -> BatchShape:
    multiple = experiment.data.batch_multiple
    number = max(1, round(work / clip_flops(experiment, shape) / multiple))
    return dataclasses.replace(shape, batch_size=number * multiple)
