"""Preflight: an experiment is compared with its data before its train step is compiled, whenever a run starts."""

from collections.abc import Mapping

from dit_video.config.user_file import ExperimentError
from dit_video.data.inventory import Inventory
from dit_video.data.record import Split
from dit_video.data.transforms import pace_note, usable
from dit_video.experiment import Experiment
from dit_video.tasks.evaluator import Evaluator


def preflight(experiment: Experiment) -> list[str]:
    """Compares task, signals and evaluators with what the data hold; nothing is decoded.

    Returns:
        warnings: what the run goes on with, and what that means.

    Raises:
        ExperimentError: what the data do not give; names the field, both numbers, and the remedy.
    """
    inventories = experiment.data.inventories()
    train = inventories.get(Split.TRAIN)
    if train is None:
        raise ExperimentError(f"config.data.source: has no training videos ({experiment.data.source})")
    try:
        if train.num_usable == 0:
            usable(experiment.data.source.open(Split.TRAIN), experiment.data.clips)  # says what a clip takes
        warnings = experiment.task.check_data(inventories)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    for name, signal in experiment.data.signals.items():
        try:
            warnings += [f"config.data.signals.{name}: {line}" for line in signal.check_data(train)]
        except ValueError as error:
            raise ExperimentError(f"config.data.signals.{name}: {error}") from error
    for name, evaluator in experiment.evaluators.items():
        try:
            check_num_clips(evaluator, inventories)
        except ValueError as error:
            raise ExperimentError(f"config.evaluators.{name}.{error}") from error
    if train.num_usable is not None and (short := train.num_records - train.num_usable):
        warnings.append(f"{short} of {train.num_records} training videos are too short for a clip and are left out")
    clips = experiment.data.clips
    if train.num_usable is not None and clips.fps is None:
        note = pace_note(experiment.data.source.open(Split.TRAIN), clips)
        warnings += [f"config.data.clips: {note}"] if note else []
    if experiment.data.cache is not None and (quality := experiment.data.cache.quality()) is not None:
        warnings += [f"config.data.cache: {line}" for line in quality.warnings()]
    steps, warmup = experiment.schedule.num_steps, experiment.optimizer.warmup_steps
    if warmup >= steps:
        warnings.append(
            f"config.optimizer.warmup_steps={warmup}: the run ends after {steps} steps, before the learning rate has "
            "reached its peak and could decay"
        )
    return warnings


def check_num_clips(evaluator: Evaluator, inventories: Mapping[Split, Inventory]) -> None:
    """Raises ValueError where a split gives fewer clips than an evaluator judges; names both numbers and the remedy."""
    for split, num_clips in evaluator.num_judged().items():
        words = "held-out" if split is Split.HELD_OUT else "training"
        if split not in inventories:
            raise ValueError(
                f"num_clips={num_clips}: the data have no {words} videos; make the set with some (dit-video data "
                "ingest --held_out_fraction or --split), or take the evaluator out of config.evaluators"
            )
        if (there := inventories[split].num_clips) is not None and num_clips > there:
            raise ValueError(
                f"num_clips={num_clips}: the records give only {there} different clips "
                f"({inventories[split].num_usable} {words} videos are long enough); lower it, or add videos"
            )
