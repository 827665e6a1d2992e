"""The training loop: batch, step, record, evaluate, save. One loop for every task."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dit_video.distributed.sharding import place
from dit_video.tasks.evaluator import EvaluationData, Evaluator
from dit_video.tasks.subject import Subject
from dit_video.training.fault_handler import FaultHandler
from dit_video.training.faults import Faults
from dit_video.training.goodput import Activity
from dit_video.training.intervals import Profile, Schedule
from dit_video.training.preemption import StopCondition
from dit_video.training.protocols import Batches, Saver
from dit_video.training.step import Program, TrainState
from dit_video.training.throughput import Work
from dit_video.training.tracker import Recorder


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
    stop: StopCondition,
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
        _evaluate(owed, evaluators, subject.with_weights(state.ema, step=step, ema=True), data, seed, tracker)
    elif faults.rolls_back:
        tracker.now(Activity.CHECKPOINT)
        saver.save(step, state, batches.next_batch)
    if (after := tracker.events.next_batch(step)) is not None:
        batches.seek(after)  # this step was gone back to, and batches were left out
    fault_handler = FaultHandler(faults, batches, tracker, work.clips)
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
        fault_handler.add(step, metrics)
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
            loss, undone = fault_handler.fetch()
            if undone is not None:
                state = fault_handler.roll_back(undone, program, state, saver)
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
            _evaluate(due, evaluators, subject.with_weights(state.ema, step=step, ema=True), data, seed, tracker)
        now(Activity.STEP)
        if look:
            window = _Window(step, batches.wait_seconds, compiling=False)
    now(Activity.CHECKPOINT)  # what is left to do is to wait for the last one
    return state, step


def _written(profile: Profile) -> str:
    """Ends the profiler trace; returns its folder, or why it could not be written: a full disk ends no run."""
    try:
        jax.profiler.stop_trace()
    except jax.errors.JaxRuntimeError as error:
        return f"not written: {str(error).partition(chr(10))[0]}"
    return profile.folder


class _Window:
    """Steps over which throughput is measured; evaluation and compilation stay outside of it."""

    def __init__(self, step: int, waited: float, *, compiling: bool = True):
        self.step, self.compiling = step, compiling
        self._begin, self._waited = time.perf_counter(), waited

    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def measure(self, step: int, waited: float) -> tuple[int, float, float]:
        return step - self.step, self.seconds(), waited - self._waited


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
        for label, medium in report.media.items():
            tracker.media(step, label, medium)
        for label, card in report.cards.items():
            tracker.card(step, label, card)
        # Last: the line in the record says that all of it is there.
        tracker.evaluation(step, name, report.scalars)
