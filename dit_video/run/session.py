"""A session of a run: program, checkpoints, data, record and loop are put together here and nowhere else."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.retention import Best, Retention
from dit_video.checkpoint.writer import SAVES_FILE, save_line
from dit_video.config import components
from dit_video.config.user_file import ExperimentError
from dit_video.data.loader import BatchIterator
from dit_video.data.record import Split
from dit_video.distributed import processes
from dit_video.distributed.sharding import rows_here
from dit_video.experiment import Experiment
from dit_video.run import start_summary, workload
from dit_video.run.codec import codec_of_run
from dit_video.run.folder import EXPERIMENT_FILE, identity, read_experiment, record_data
from dit_video.run.fresh_start import keep_earlier_record
from dit_video.run.open_run import description, evaluation_data, program_of, unstyled
from dit_video.run.shown import record_shown
from dit_video.storage.json_lines import LinesFile
from dit_video.storage.mirror import Copying, address_of
from dit_video.storage.retrying_files import PICTURES_LIMIT, RetryingFiles
from dit_video.tasks.subject import Subject
from dit_video.training import loop
from dit_video.training.curves import FILE as CURVES
from dit_video.training.curves import plot_record
from dit_video.training.evaluation import Evaluation
from dit_video.training.events import Event, read_events
from dit_video.training.fault_policy import TrainingFault
from dit_video.training.goodput import Activity
from dit_video.training.learner import Learner
from dit_video.training.observers import Observers
from dit_video.training.preemption import StopSignal, StopTogether
from dit_video.training.profiler import Profile
from dit_video.training.step import Program, TrainState
from dit_video.training.tracker import METRICS_FILE, NullTracker, Tracker, recorded_evaluations, recorded_scores
from dit_video.training.trackers import OpenTracker, TrackedRun
from dit_video.training.watchdog import Watchdog
from dit_video.weights.pipeline import read_parts, write_parts


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a session ended."""

    step: int
    finished: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One session of a run, from where it starts or goes on to where it ends, in a folder that nobody else trains in.

    Attributes:
        experiment: with the digests of its frozen parts.
        frozen: those parts, on `mesh`.
        workdir: the run folder; of a run in a bucket, the copy of its record on this machine.
        console: what is shown goes there.
    """

    experiment: Experiment
    frozen: Any
    mesh: Mesh
    workdir: Path
    console: Console

    def train(self, data: dict[str, Any], copying: Copying, *, init_from: Path | None, profile: bool) -> Outcome:
        """Trains until the experiment's last step, or until a signal asks to stop.

        Args:
            data: what `Data.identity` says of the experiment's data; written to the record.
            copying: copies the record to the run's bucket at each save.
            init_from: a run folder whose averaged weights a new run starts from.
            profile: traces a few steps of the first process.
        """
        experiment, workdir = self.experiment, self.workdir
        program, shapes = program_of(experiment, self.mesh), workload.shapes_of_batches(experiment)
        num_records = (data["cache"] or data["source"])["num_records"].get(Split.TRAIN.value, 0)
        for line in start_summary.lines(experiment, program, self.mesh, shapes, num_records=num_records):
            self.console.print(line, markup=False, highlight=False)
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(RetryingFiles(unstyled(self.console)))
            checkpoints = stack.enter_context(self._checkpoints(files, copying))
            own = identity(workdir, checkpoints.run_on_record)
            checkpoints.bind(own)
            state, next_batch = self._initial_state(program, checkpoints, init_from)
            processes.from_first(lambda: record_data(data, workdir, next_batch))
            recorder = stack.enter_context(self._recorder(files, own.run_id, int(state.step)))
            batches = self._batches(next_batch)
            stack.enter_context(contextlib.closing(batches))
            watchdog = Watchdog(recorder.heartbeat, workdir, waits_for={Activity.DATA: batches.waits_for})
            stack.enter_context(watchdog.watch())
            stop = stack.enter_context((StopTogether() if processes.joined() else StopSignal()).listen())
            profiled = profile and processes.is_first()
            evaluation = self._evaluation(program)
            processes.from_first(lambda: record_shown(workdir / EXPERIMENT_FILE, experiment, evaluation.data.rates))
            observers = Observers(
                recorder=recorder,
                evaluation=evaluation,
                profile=Profile(folder=str(workdir / "profile")) if profiled else None,
            )
            learner = Learner(program=program, batches=batches, frozen=self.frozen, seed=experiment.seed, shapes=shapes)
            try:
                state, step = loop.train(
                    learner,
                    state,
                    schedule=experiment.schedule,
                    faults=experiment.faults,
                    observers=observers,
                    saver=checkpoints,
                    stop=stop,
                )
            except TrainingFault:
                checkpoints.wait()  # all processes come here, so the last save can still be finished
                raise
            checkpoints.finish(step, state, batches.next_batch)
        finished = step == experiment.schedule.num_steps
        if finished and experiment.task.learnt_vae is not None:
            codec_of_run(workdir, self.mesh, self.console, experiment)
        return Outcome(step, finished)

    def _checkpoints(self, files: RetryingFiles, copying: Copying) -> Checkpoints:
        """The checkpoints of the run: they go by its record of evaluations, and write what each save took to it."""
        metrics = files.file(self.workdir / METRICS_FILE)
        saves = LinesFile(files.file(self.workdir / SAVES_FILE), save_line)

        def scores(best: Best) -> dict[int, float]:
            return recorded_scores(metrics, best.evaluator, best.scalar)

        def prepare() -> None:
            files.sync()  # before a step counts that goes on from there, and older ones are deleted
            copying.start()

        return Checkpoints(
            self.workdir,
            experiment=components.record(self.experiment),
            retention=Retention(self.experiment.keep, scores),
            listener=SaveListener(
                warn=unstyled(self.console),
                record=saves.append,
                prepare=prepare,
            ),
        )

    def _initial_state(
        self, program: Program, checkpoints: Checkpoints, init_from: Path | None
    ) -> tuple[TrainState, int]:
        """The state to train from and the index of its next batch.

        That of the last good checkpoint, where the run has one; else fresh weights, or the averaged ones of the run
        `init_from`, and the record of an earlier start that came to no save is kept aside.
        """
        saved = checkpoints.resume(program.shapes, unstyled(self.console))
        if saved is not None:
            if saved.step > (num_steps := self.experiment.schedule.num_steps):
                raise ExperimentError(
                    f"config.schedule.num_steps={num_steps}: the run is at step {saved.step} already; give as many or "
                    "more, or use another --workdir"
                )
            self.console.print(f"going on from step {saved.step}, batch {saved.next_batch}", highlight=False)
            return saved.state, saved.next_batch
        if earlier := processes.from_first(lambda: keep_earlier_record(self.workdir)):
            unstyled(self.console)(earlier)
        state = program.init(self.experiment.seed)
        if init_from is not None:
            source, averaged = Checkpoints(init_from), read_experiment(init_from, self.experiment).ema is not None
            try:
                params = source.restore_params(program.definition.shapes, self.mesh, ema=averaged)
            finally:
                source.close()
            shardings = jax.tree.map(lambda s: s.sharding, program.shapes.params)
            params = jax.device_put(params, shardings)
            state = state._replace(params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params))
            if processes.is_first() and (parts := read_parts(init_from)) is not None:
                write_parts(parts, self.workdir)
            where, which = address_of(init_from) or init_from, "averaged weights" if averaged else "weights"
            self.console.print(f"starting from the {which} of {where}", highlight=False)
        return state, 0

    @contextlib.contextmanager
    def _recorder(self, files: RetryingFiles, run_id: str, start: int) -> Iterator[Tracker | NullTracker]:
        """The first process writes and shows what happens; the others know what it has written before step `start`."""
        workdir = self.workdir

        def known() -> dict[str, Any]:
            events = [event.to_json() for event in read_events(workdir, last=start)]
            return {"evaluations": recorded_evaluations(workdir, last=start), "events": events}

        found, trackers = processes.from_first(known), []
        with processes.entered_by_first(self._trackers(files, run_id, start, trackers)):
            if not processes.is_first():
                evaluations = [(step, name) for step, name in found["evaluations"]]
                yield NullTracker(evaluations, [Event.from_json(event) for event in found["events"]])
                return
            num_steps = self.experiment.schedule.num_steps
            tracker = Tracker(workdir, files, start=start, num_steps=num_steps, console=self.console, trackers=trackers)
            try:
                yield tracker
            finally:
                tracker.close()
                plot_record(files.file(workdir / METRICS_FILE), files.file(workdir / CURVES, limit=PICTURES_LIMIT))

    @contextlib.contextmanager
    def _trackers(self, files: RetryingFiles, run_id: str, start: int, trackers: list[OpenTracker]) -> Iterator[None]:
        """The trackers of the experiment, which are open inside the block, in `trackers`."""
        run = TrackedRun(self.workdir, run_id, components.record(self.experiment), start)
        try:
            for tracker in self.experiment.trackers:
                trackers.append(tracker.open(run, files, unstyled(self.console)))
            yield
        finally:
            for tracker in trackers:
                tracker.close()

    def _batches(self, next_batch: int) -> BatchIterator:
        """The rows of each global batch that the devices of this process need, from `next_batch` on."""
        experiment = self.experiment
        replace = experiment.faults.undecodable_share > 0
        return experiment.data.train(
            experiment.seed, next_batch, rows=lambda size: rows_here(self.mesh, size).tolist(), replace=replace
        )

    def _evaluation(self, program: Program) -> Evaluation:
        experiment = self.experiment
        about = description(experiment, self.workdir)
        return Evaluation(
            evaluators=experiment.evaluators,
            subject=Subject(experiment.task, program.definition, self.frozen, self.mesh, about),
            data=evaluation_data(experiment),
            seed=experiment.seed,
        )
