"""Weights that a new run starts from (`train --init_from`): are they weights of the same network?

Shapes do not say it: sinusoids of other frequencies, another norm or another kind of attention have the same. So the
configurations are compared, that of the run that they come from with that of the run that starts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dit_video.config.components import diff
from dit_video.config.json_file import in_short
from dit_video.config.user_file import ExperimentError
from dit_video.experiment import Experiment
from dit_video.run.folder import EXPERIMENT_FILE, read_experiment
from dit_video.storage.mirror import local_copy


def source_of_weights(
    init_from: Path, experiment: Experiment, *, allow_change: bool, warn: Callable[[str], None]
) -> Path:
    """The folder, its copy here, of the run whose averaged weights `experiment` starts from.

    Args:
        allow_change: the network may compute another function of them; it is then said.
        warn: called with what is another and does not change the function.

    Raises:
        ExperimentError: there is no run, or its network computes another function; names fields and both values.
    """
    folder = local_copy(init_from, EXPERIMENT_FILE)
    if not (folder / EXPERIMENT_FILE).is_file():
        raise ExperimentError(
            f"--init_from={init_from}: there is no run in this folder; name one with a {EXPERIMENT_FILE}"
        )
    theirs, ours = (task.learnt() for task in (read_experiment(folder, experiment).task, experiment.task))
    if lines := _lines(theirs.function, ours.function):
        words = [f"--init_from={init_from}: its weights are of a network that computes something else:", *lines]
        if not allow_change:
            remedy = "give these fields its values, or add --allow_change to train on from there all the same"
            raise ExperimentError("\n".join([*words, remedy]))
        warn("\n".join(words))
    if lines := _lines(theirs.target, ours.target):
        warn("\n".join([f"--init_from={init_from}: its weights were trained for something else:", *lines]))
    return folder


def _lines(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """A line for each field that differs, with both values."""
    return [
        f"  config.task.{path}: there {there}, here {here}"
        for path, values in diff(theirs, ours).items()
        for there, here in [in_short(*values)]
    ]
