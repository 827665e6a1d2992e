"""Training of an experiment in a run folder: what must hold is checked, the folder is locked, a session trains.

A run folder holds
    lock.json                who trains here now
    experiment.json          the resolved experiment, overrides, fingerprint, versions; written before anything starts
    checkpoints/             steps; each is state, data position and experiment as one
    checkpoints_damaged/     steps that were found damaged or half-written, each beside a note of what was wrong
    saves.jsonl              what each checkpoint took
    metrics.jsonl            the record: one line per step, evaluation and speed measurement
    events.jsonl             what went wrong and what was done about it, one line each
    goodput.jsonl            where the time went
    earlier_records/         metrics and events of starts that came to no save
    stacks_*.txt             what all threads did when the run seemed to hang
    curves.png, samples/, tensorboard/
    latent_statistics.json   of a codec: per-channel mean and deviation over the training set
gs://bucket/run has the same names; dit_video/storage/mirror.py says how.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dit_video.checkpoint.compatibility import OtherNetwork
from dit_video.checkpoint.folder import steps_of
from dit_video.config.atomic import write_file
from dit_video.config.user_file import ExperimentError
from dit_video.distributed import processes
from dit_video.distributed.sharding import make_mesh
from dit_video.experiment import Experiment
from dit_video.progress import Terminal
from dit_video.run import lock
from dit_video.run.checks import (
    check_compiler_options,
    check_fields,
    check_joined,
    check_mesh,
    check_open_files,
    check_shared,
    check_source,
)
from dit_video.run.compilation_cache import keep_compiled_programs
from dit_video.run.folder import EXPERIMENT_FILE, AllowedChanges, check_data, read_experiment, record
from dit_video.run.fresh_start import check_not_gone, is_claimed
from dit_video.run.frozen import with_frozen, with_random_frozen
from dit_video.run.initial_weights import source_of_weights
from dit_video.run.latents import check_cache
from dit_video.run.open_run import unstyled
from dit_video.run.preflight import preflight
from dit_video.run.session import Outcome, Session
from dit_video.run.shapes import balanced
from dit_video.storage.mirror import Copying, local_copy, record_of


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    init_from: Path | None = None,
    allow: AllowedChanges = AllowedChanges(),
    profile: bool = False,
    random_frozen: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Trains `experiment` in `workdir`, going on from its last checkpoint where there is one.

    Args:
        workdir: the run folder, or gs://bucket/run.
        overrides: words of the command line that changed the experiment's file, for the record.
        init_from: another run whose averaged weights a new run starts from.
        allow: what may be another than what the folder was started with.
        profile: traces a few steps into RUN/profile.
        random_frozen: train on frozen parts with random weights, for proofs and measurements.

    Raises:
        ExperimentError: the experiment, its data or its frozen parts do not fit together, or not the folder; names the
            field and what to change.
        RunInUse: another process trains in this folder.
        CheckpointsGone: the folder has a record of saves and no checkpoint.
        TrainingFault: a fault after which the experiment's policy ends training.
    """
    console = console or Terminal()
    check_open_files()
    kept = record_of(workdir)
    steps_of(kept.folder)  # refuses a folder in which no checkpoint could be found again
    if init_from is not None:
        init_from = source_of_weights(init_from, experiment, allow_change=allow.experiment, warn=unstyled(console))
    keep_compiled_programs()
    mesh = make_mesh(experiment.mesh)
    check_joined()
    experiment = balanced(experiment)
    check_fields(experiment, mesh)
    check_mesh(experiment, mesh)
    check_compiler_options(experiment, mesh)
    if random_frozen:
        experiment, frozen = with_random_frozen(experiment, mesh)
    else:
        experiment, frozen = with_frozen(experiment, mesh, console, _on_record(experiment, workdir))
        check_cache(experiment, frozen)
    check_source(experiment)
    for tracker in experiment.trackers:
        tracker.check()
    for line in preflight(experiment):
        console.print(f"warning: {line}", style="yellow")
    data = experiment.data.identity()

    earlier: list[bytes] = []

    def begin() -> None:
        kept.pull(EXPERIMENT_FILE)
        check_not_gone(kept.folder, unstyled(console))
        if not is_claimed(kept.folder, unstyled(console)):
            (kept.folder / EXPERIMENT_FILE).unlink(missing_ok=True)
        elif (kept.folder / EXPERIMENT_FILE).is_file():
            earlier.append((kept.folder / EXPERIMENT_FILE).read_bytes())
        record(experiment, kept.folder, overrides, allow_change=allow.experiment)
        check_data(data, kept.folder, allow_change=allow.data)
        kept.push()

    with processes.entered_by_first(lock.acquire(workdir, unstyled(console))):
        processes.from_first(begin)
        if not processes.is_first():
            kept.pull(EXPERIMENT_FILE)
        check_shared(kept.folder)
        with Copying(kept, unstyled(console)) as copying:
            session = Session(experiment=experiment, frozen=frozen, mesh=mesh, workdir=kept.folder, console=console)
            try:
                return session.train(data, copying, init_from=init_from, profile=profile)
            except (OtherNetwork, ExperimentError):
                # It cannot go on as this experiment: the record stays that of the checkpoints.
                for content in earlier:
                    write_file(kept.folder / EXPERIMENT_FILE, content)
                    kept.push()
                raise


def _on_record(experiment: Experiment, workdir: Path) -> Experiment | None:
    """The experiment that the folder was started with, if it was; one that cannot be read is refused later."""
    if experiment.task.trained_codec() is None and experiment.task.encoders().image is None:
        return None
    with contextlib.suppress(ExperimentError, FileNotFoundError):
        return read_experiment(local_copy(workdir, EXPERIMENT_FILE), experiment)
    return None
