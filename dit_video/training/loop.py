"""The loop: batch, step, record, evaluate, save. One loop for every task."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import numpy as np

from dit_video import processes
from dit_video.checkpoint import Saved
from dit_video.data.batch import Batch
from dit_video.data.loader import Replaced
from dit_video.sharding import place
from dit_video.tasks.task import EvaluationData, Evaluator, Subject
from dit_video.training.events import Done, Event
from dit_video.training.faults import Faults, Judge
from dit_video.training.goodput import Activity
from dit_video.training.step import Program, TrainState
from dit_video.training.stop import Stop
from dit_video.training.tracker import Recorder


@runtime_checkable
class Batches(Protocol):
    """Host batches in an order that `next_batch` alone determines."""

    next_batch: int
    wait_seconds: float

    def __next__(self) -> Batch: ...

    def seek(self, next_batch: int) -> None:
        """Goes on with another batch."""
        ...

    def take_replaced(self) -> list[Replaced]:
        """Rows that hold another record than they should, of the batches since the last call or `seek`."""
        ...


@runtime_checkable
class Saver(Protocol):
    """Saves state and data position as one, and gives back what it saved last."""

    def save(self, step: int, state: TrainState, next_batch: int) -> None: ...

    def overdue(self) -> bool:
        """Whether a save has failed and is to be tried again; asked at every step."""
        ...

    def wait(self) -> None:
        """Until everything that was started is saved."""
        ...

    def resume(self, shapes: TrainState, say: Callable[[str], None]) -> Saved[TrainState] | None:
        """The last good state; None where there is none."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Trace these steps, counted from the first step after compilation, into `folder`."""

    folder: str
    first: int = 3
    num_steps: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to do what.

    Attributes:
        num_steps: the run ends after this many steps.
        log_every: steps between fetching metrics from the device; every step's metrics are recorded.
        save_every: steps between checkpoints; the last step is always saved.
    """

    num_steps: int
    log_every: int = 50
    save_every: int = 1000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"Schedule.{field.name}={getattr(self, field.name)}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step amounts to, for rates.

    Attributes:
        clips: clips in the global batch.
        tokens: tokens in the global batch, where the network has tokens.
        flops: model FLOPs of forward and backward of the global batch.
        peak: FLOP/s of all devices together at their dense peak, where known.
    """

    clips: int
    tokens: int | None
    flops: int
    peak: float | None

    def rates(self, steps: int, seconds: float, waited: float) -> dict[str, float]:
        rates = {
            "clips_per_second": steps * self.clips / seconds,
            "flops_per_second": steps * self.flops / seconds,
            "data_wait_share": waited / seconds,
        }
        if self.tokens is not None:
            rates["tokens_per_second"] = steps * self.tokens / seconds
        if self.peak is not None:
            rates["mfu"] = rates["flops_per_second"] / self.peak
        return rates


def train(
    program: Program,
    state: TrainState,
    *,
    frozen: Any,
    batches: Batches,
    seed: int,
    schedule: Schedule,
    faults: Faults,
    work: Work,
    evaluators: Mapping[str, Evaluator],
    subject: Subject,
    data: EvaluationData,
    tracker: Recorder,
    saver: Saver,
    stop: Stop,
    mesh: jax.sharding.Mesh,
    profile: Profile | None = None,
) -> tuple[TrainState, int]:
    """Trains until `schedule.num_steps` or until `stop` is reached; both end with a checkpoint.

    Returns:
        The last state and its step.

    Raises:
        TrainingFault: in all processes alike, naming the first step of what `faults` does not allow to go on from.
            Nothing after it has been saved.
    """
    step = int(state.step)
    if step:
        # A run that was stopped or killed before it had judged its last checkpoint does so now.
        tracker.now(Activity.EVALUATE)
        owed = _due(evaluators, step, last=step == schedule.num_steps)
        owed = [name for name in owed if not tracker.has_evaluation(step, name)]
        _evaluate(owed, evaluators, subject.hold(state.ema, step=step, ema=True), data, seed, tracker)
    elif faults.rolls_back:
        tracker.now(Activity.CHECKPOINT)
        saver.save(step, state, batches.next_batch)
    if (after := tracker.events.next_batch(step)) is not None:
        batches.seek(after)  # this step was gone back to, and batches were left out
    watch = _Watch(faults, batches, tracker, work.clips)
    window = _Window(step, batches.wait_seconds)
    traced = None if profile is None else range(step + profile.first, step + profile.first + profile.num_steps)
    stopping = stop.reached(step)
    now = tracker.now
    while step < schedule.num_steps and not stopping:
        if profile and traced and step == traced.start:
            jax.profiler.start_trace(profile.folder)
        now(Activity.DATA)
        batch = next(batches)
        now(Activity.COMPILE if window.compiling else Activity.STEP)
        state, metrics = program.step(state, frozen, place(batch, mesh), seed)
        step += 1
        watch.add(step, metrics)
        if window.compiling:
            jax.block_until_ready(metrics)
            tracker.note(f"first step (compilation included): {window.seconds():.1f} s")
            window = _Window(step, batches.wait_seconds, compiling=False)
        if profile and traced and step == traced.stop:
            jax.block_until_ready(metrics)
            tracker.note(f"trace of steps {traced.start + 1} to {traced.stop}: {_written(profile)}")
            traced = None  # these steps may be done again
        # Asked once: a signal that comes later in this round ends the next one, which then saves and records.
        stopping = stop.reached(step)
        last = step == schedule.num_steps or stopping
        due = _due(evaluators, step, last=last)
        save = last or step % schedule.save_every == 0 or saver.overdue()
        look = last or due or save or step % schedule.log_every == 0
        if look:
            # Everything up to this step is written down, and found good, before anything is saved, fails or is killed.
            loss, undone = watch.look()
            if undone is not None:
                state = watch.roll_back(undone, program, state, saver)
                step = int(state.step)
                window = _Window(step, batches.wait_seconds, compiling=False)
                continue
            if step > window.step:
                tracker.rates(step, loss, work.rates(*window.measure(step, batches.wait_seconds)))
        if save:
            # Before evaluating: what was learnt is safe even if an evaluator fails.
            now(Activity.CHECKPOINT)
            saver.save(step, state, batches.next_batch)
        if due and not stopping:
            now(Activity.EVALUATE)
            _evaluate(due, evaluators, subject.hold(state.ema, step=step, ema=True), data, seed, tracker)
        now(Activity.STEP)
        if look:
            window = _Window(step, batches.wait_seconds, compiling=False)
    now(Activity.CHECKPOINT)  # what is left to do is to wait for the last one
    return state, step


def _written(profile: Profile) -> str:
    """Where the trace is, or why it is not there: a full disk ends no run."""
    try:
        jax.profiler.stop_trace()
    except jax.errors.JaxRuntimeError as error:
        return f"not written: {str(error).partition(chr(10))[0]}"
    return profile.folder


class _Window:
    """A stretch of steps whose speed is measured; evaluation and compilation stay outside of it."""

    def __init__(self, step: int, waited: float, *, compiling: bool = True):
        self.step, self.compiling = step, compiling
        self._begin, self._waited = time.perf_counter(), waited

    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def measure(self, step: int, waited: float) -> tuple[int, float, float]:
        return step - self.step, self.seconds(), waited - self._waited


class _Watch:
    """Holds the metrics of steps until they are fetched, records them, and deals with what went wrong in them."""

    def __init__(self, faults: Faults, batches: Batches, tracker: Recorder, batch_size: int):
        self._faults, self._batches, self._tracker, self._batch_size = faults, batches, tracker, batch_size
        self._pending: list[tuple[int, int, dict[str, jax.Array]]] = []
        self._begin()

    def _begin(self) -> None:
        """From where the record ends."""
        past, events = self._tracker.past(self._faults.num_past), self._tracker.events
        self._judge = Judge(self._faults, batch_size=self._batch_size, past=past, events=events)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._pending.append((step, self._batches.next_batch - 1, metrics))

    def look(self) -> tuple[float, Event | None]:
        """Fetches and records what is pending; the loss of the last step, and the event for which to roll back.

        Raises:
            TrainingFault: training cannot go on.
        """
        lines = [(step, batch, {k: float(v) for k, v in m.items()}) for step, batch, m in jax.device_get(self._pending)]
        self._pending.clear()
        replaced = self._replaced()
        grave = None
        for number, (step, batch, values) in enumerate(lines):
            for event in self._judge.find(step, batch, values, replaced.get(batch, [])):
                if event.done in (Done.STOPPED, Done.ROLLED_BACK):
                    grave, lines = event, lines[: number + 1]
                    break
                self._tracker.events.add(event)
            if grave is not None:
                break
        self._tracker.steps((step, values) for step, _, values in lines)
        if grave is not None and grave.done is Done.STOPPED:
            self._stop(grave)
        return lines[-1][2]["loss"] if lines else math.nan, grave

    def roll_back(self, event: Event, program: Program, state: TrainState, saver: Saver) -> TrainState:
        """The last good state before `event`, from which to go on with the batches after it; `state` is gone.

        Raises:
            TrainingFault: it has been gone back to as often as is allowed.
        """
        tracker = self._tracker
        tracker.now(Activity.CHECKPOINT)
        saver.wait()
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # there may be no room for two
        saved = saver.resume(program.shapes, tracker.note)
        if saved is None or sum(e.to == saved.step for e in tracker.events) >= self._faults.roll_backs(event.kind):
            self._stop(event)
        tracker.rewind(saved.step)
        event = dataclasses.replace(event, to=saved.step, next_batch=event.batch + 1)
        tracker.events.add(event)
        self._batches.seek(event.batch + 1)
        self._begin()
        tracker.note(
            f"{event.kind} at step {event.step}, {' and '.join(event.what)}: back to step {saved.step}, on with batch "
            f"{event.next_batch}"
        )
        return saved.state

    def _replaced(self) -> dict[int, list[str]]:
        """By batch, the records of all processes that were replaced; processes may have made the same rows."""
        if not self._faults.undecodable_share:
            return {}
        rows = {(r.batch, r.row): r.why for text in processes.gather(self._said()) for r in _heard(text)}
        replaced: dict[int, list[str]] = {}
        for (batch, _), why in sorted(rows.items()):
            replaced.setdefault(batch, []).append(why)
        return replaced

    def _said(self) -> str:
        return json.dumps(self._batches.take_replaced())

    def _stop(self, event: Event) -> NoReturn:
        self._tracker.events.add(dataclasses.replace(event, done=Done.STOPPED))
        raise self._judge.error(event)


def _heard(text: str) -> list[Replaced]:
    return [Replaced(*row) for row in json.loads(text)]


def _due(evaluators: Mapping[str, Evaluator], step: int, *, last: bool) -> list[str]:
    return [name for name, evaluator in evaluators.items() if last or step % evaluator.every == 0]


def _evaluate(
    names: Sequence[str],
    evaluators: Mapping[str, Evaluator],
    subject: Subject,
    data: EvaluationData,
    seed: int,
    tracker: Recorder,
) -> None:
    for name in names:
        report, step = evaluators[name](subject, data, seed), subject.step
        for label, video in report.media.items():
            tracker.media(step, label, np.asarray(video), data.fps)
        for label, card in report.cards.items():
            tracker.card(step, label, card)
        # Last: the line in the record says that all of it is there.
        tracker.evaluation(step, name, report.scalars)
