"""A run: its folder, and how experiment, mesh, task, data, step and checkpoints are put together (only here).

A run folder holds
    lock.json                who trains here now
    experiment.json          the resolved experiment, overrides, fingerprint, versions; written before anything starts
    checkpoints/             steps; each is state, data position and experiment as one
    checkpoints_damaged/     steps that were found damaged or half-written, each beside a note of what was wrong
    saves.jsonl              what each checkpoint took
    metrics.jsonl            the record: one line per step, evaluation and speed measurement
    events.jsonl             what went wrong and what was done about it, one line each
    goodput.jsonl            where the time went
    stacks_*.txt             what all threads did when the run seemed to hang
    curves.png, samples/, tensorboard/
    latent_statistics.json   of a codec: per-channel mean and deviation over the training set
gs://bucket/run has the same names; dit_video/storage/mirror.py says how.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.writer import SAVES_FILE
from dit_video.config import components
from dit_video.config.user_file import ExperimentError
from dit_video.distributed import processes
from dit_video.distributed.sharding import make_mesh, rows_here
from dit_video.experiment import Experiment
from dit_video.run import lock, workload
from dit_video.run.checks import (
    check_compiler_options,
    check_fields,
    check_joined,
    check_mesh,
    check_shared,
    check_source,
)
from dit_video.run.codec import codec_of_run
from dit_video.run.compiled import keep_compiled_programs
from dit_video.run.folder import EXPERIMENT_FILE, check_data, record, record_data
from dit_video.run.frozen import with_frozen, with_random_frozen
from dit_video.run.latents import check_cache
from dit_video.run.open import _plain, description, evaluation_data, program_of
from dit_video.storage.mirror import Copying, address_of, local_copy, record_of
from dit_video.storage.retrying_files import PICTURES_LIMIT, RetryingFiles
from dit_video.tasks.subject import Subject
from dit_video.training import loop
from dit_video.training.curves import FILE as CURVES
from dit_video.training.curves import plot_record
from dit_video.training.events import Event, read_events
from dit_video.training.faults import TrainingFault
from dit_video.training.goodput import Activity
from dit_video.training.intervals import Profile
from dit_video.training.preemption import StopSignal, StopTogether
from dit_video.training.step import Program, TrainState
from dit_video.training.tracker import METRICS_FILE, NullTracker, Tracker, recorded_evaluations, recorded_scores
from dit_video.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int
    finished: bool


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    init_from: Path | None = None,
    allow_change: bool = False,
    allow_data_change: bool = False,
    profile: bool = False,
    random_frozen: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Trains `experiment` in `workdir`, going on from its last checkpoint where there is one.

    Args:
        init_from: another run whose averaged weights a new run starts from.
        allow_change: go on although the experiment is not the one this folder was started with.
        allow_data_change: go on although the data are not; from the next batch on, batches are then others.
        random_frozen: train on frozen parts with random weights, for proofs and measurements.
    """
    console = console or Console()
    kept = record_of(workdir)
    if init_from is not None:
        init_from = local_copy(init_from, EXPERIMENT_FILE)
        if not (init_from / EXPERIMENT_FILE).is_file():
            raise ExperimentError(
                f"--init_from={init_from}: there is no run in this folder; name one with a {EXPERIMENT_FILE}"
            )
    keep_compiled_programs()
    mesh = make_mesh(experiment.mesh)
    check_joined()
    check_fields(experiment, mesh)
    check_mesh(experiment, mesh)
    check_compiler_options(experiment, mesh)
    if random_frozen:
        experiment, frozen = with_random_frozen(experiment, mesh)
    else:
        experiment, frozen = with_frozen(experiment, mesh, console)
        check_cache(experiment, frozen)
    check_source(experiment)
    data = experiment.data.identity()

    def begin() -> None:
        kept.pull(EXPERIMENT_FILE)
        record(experiment, kept.folder, overrides, allow_change)
        check_data(data, kept.folder, allow_data_change)
        kept.push()

    with processes.entered_by_first(lock.acquire(workdir, _plain(console))):
        processes.from_first(begin)
        if not processes.is_first():
            kept.pull(EXPERIMENT_FILE)
        check_shared(kept.folder)
        with Copying(kept, _plain(console)) as copying:
            return _train(experiment, data, kept.folder, frozen, mesh, init_from, profile, console, copying)


def _train(
    experiment: Experiment,
    data: dict[str, Any],
    workdir: Path,
    frozen: Any,
    mesh: Mesh,
    init_from: Path | None,
    profile: bool,
    console: Console,
    copying: Copying,
) -> Outcome:
    """`train` in a folder that is this run's own, with `data` as their identity says."""
    program = program_of(experiment, mesh)
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(RetryingFiles(_plain(console)))
        checkpoints = stack.enter_context(_checkpoints(experiment, workdir, files, copying, console))
        state, next_batch = _initial_state(experiment, program, checkpoints, init_from, mesh, console)
        processes.from_first(lambda: record_data(data, workdir, next_batch))
        recorder = stack.enter_context(_recorded(experiment, workdir, files, int(state.step), console))
        rows = rows_here(mesh, experiment.data.batch_size).tolist()
        replace = experiment.faults.undecodable_share > 0
        batches = experiment.data.train(experiment.seed, next_batch, rows=rows, replace=replace)
        stack.enter_context(contextlib.closing(batches))
        watchdog = Watchdog(recorder.heartbeat, workdir, waits_for={Activity.DATA: batches.waits_for})
        stack.enter_context(watchdog.watch())
        stop = stack.enter_context((StopTogether() if processes.joined() else StopSignal()).listen())
        profiled = profile and processes.is_first()
        try:
            state, step = loop.train(
                program,
                state,
                frozen=frozen,
                batches=batches,
                seed=experiment.seed,
                schedule=experiment.schedule,
                faults=experiment.faults,
                work=workload.measure_work(experiment),
                evaluators=experiment.evaluators,
                subject=Subject(experiment.task, program.definition, frozen, mesh, description(experiment, workdir)),
                data=evaluation_data(experiment),
                tracker=recorder,
                saver=checkpoints,
                stop=stop,
                mesh=mesh,
                profile=Profile(folder=str(workdir / "profile")) if profiled else None,
            )
        except TrainingFault:
            checkpoints.wait()  # all processes come here, so the last save can still be finished
            raise
        checkpoints.finish(step, state, batches.next_batch)
    finished = step == experiment.schedule.num_steps
    if finished and experiment.task.learnt_vae is not None:
        codec_of_run(workdir, mesh, console, experiment)
    return Outcome(step, finished)


def _checkpoints(
    experiment: Experiment, workdir: Path, files: RetryingFiles, copying: Copying, console: Console
) -> Checkpoints:
    """Those of a run that trains."""
    keep, metrics, saves = experiment.keep, files.file(workdir / METRICS_FILE), files.file(workdir / SAVES_FILE)
    return Checkpoints(
        workdir,
        keep=keep,
        scores=lambda: {} if keep.best is None else recorded_scores(metrics, keep.best.evaluator, keep.best.scalar),
        experiment=components.record(experiment),
        warn=_plain(console),
        record=lambda line: saves.append(f"{json.dumps(line)}\n".encode()),
        on_begin=copying.start,
    )


def _initial_state(
    experiment: Experiment,
    program: Program,
    checkpoints: Checkpoints,
    init_from: Path | None,
    mesh: Mesh,
    console: Console,
) -> tuple[TrainState, int]:
    """Four ways to start: go on; from another run's weights; afresh. Going on always wins."""
    saved = checkpoints.resume(program.shapes, _plain(console))
    if saved is not None:
        console.print(f"going on from step {saved.step}, batch {saved.next_batch}", highlight=False)
        return saved.state, saved.next_batch
    state = program.init(experiment.seed)
    if init_from is not None:
        source = Checkpoints(init_from)
        try:
            params = source.restore_params(program.definition.shapes, mesh, ema=True)
        finally:
            source.close()
        shardings = jax.tree.map(lambda s: s.sharding, program.shapes.params)
        params = jax.device_put(params, shardings)
        state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
        where = address_of(init_from) or init_from
        console.print(f"starting from the averaged weights of {where}", highlight=False)
    return state, 0


@contextlib.contextmanager
def _recorded(
    experiment: Experiment, workdir: Path, files: RetryingFiles, start: int, console: Console
) -> Iterator[Tracker | NullTracker]:
    """The first process writes and shows what happens; the others know what it has written before."""

    def known() -> dict[str, Any]:
        events = [event.to_json() for event in read_events(workdir, last=start)]
        return {"evaluations": recorded_evaluations(workdir, last=start), "events": events}

    found = processes.from_first(known)
    if not processes.is_first():
        evaluations = [(step, name) for step, name in found["evaluations"]]
        yield NullTracker(evaluations, [Event.from_json(event) for event in found["events"]])
        return
    tracker = Tracker(workdir, files, start=start, num_steps=experiment.schedule.num_steps, console=console)
    try:
        yield tracker
    finally:
        tracker.close()
        plot_record(files.file(workdir / METRICS_FILE), files.file(workdir / CURVES, limit=PICTURES_LIMIT))
