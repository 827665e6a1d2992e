"""The loop: batch, step, record, evaluate, save. One loop for every task."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

from dit_video.data.batch import Batch
from dit_video.sharding import place
from dit_video.tasks.task import EvaluationData, Evaluator, Subject
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


@runtime_checkable
class Saver(Protocol):
    """Saves state and data position as one."""

    def save(self, step: int, state: TrainState, next_batch: int) -> None: ...


class NotFinite(ValueError):
    """The loss stopped being a number."""


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
    frozen: nnx.Module | None,
    batches: Batches,
    seed: int,
    schedule: Schedule,
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
        NotFinite: in all processes alike, naming the first step whose loss is not a number. Nothing after it has
            been saved.
    """
    step = int(state.step)
    if step:
        # A run that was stopped or killed before it had judged its last checkpoint does so now.
        tracker.now(Activity.EVALUATE)
        owed = [name for name, e in evaluators.items() if step % e.every == 0 or step == schedule.num_steps]
        owed = [name for name in owed if not tracker.has_evaluation(step, name)]
        _evaluate(owed, evaluators, subject.hold(state.ema, step=step, ema=True), data, seed, tracker)
    window = _Window(step, batches.wait_seconds)
    pending: list[tuple[int, dict[str, jax.Array]]] = []
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
        pending.append((step, metrics))
        if window.compiling:
            jax.block_until_ready(metrics)
            tracker.note(f"first step (compilation included): {window.seconds():.1f} s")
            window = _Window(step, batches.wait_seconds, compiling=False)
        if profile and traced and step == traced.stop:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            tracker.note(f"trace of steps {traced.start + 1} to {traced.stop}: {profile.folder}")
        # Asked once: a signal that comes later in this round ends the next one, which then saves and records.
        stopping = stop.reached(step)
        last = step == schedule.num_steps or stopping
        due = [name for name, e in evaluators.items() if last or step % e.every == 0]
        save = last or step % schedule.save_every == 0
        if last or due or save or step % schedule.log_every == 0:
            # Everything up to this step is written down before anything that may fail or be killed.
            loss = _flush(pending, tracker)
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
        if last or due or save or step % schedule.log_every == 0:
            window = _Window(step, batches.wait_seconds, compiling=False)
    now(Activity.CHECKPOINT)  # what is left to do is to wait for the last one
    return state, step


class _Window:
    """A stretch of steps whose speed is measured; evaluation and compilation stay outside of it."""

    def __init__(self, step: int, waited: float, *, compiling: bool = True):
        self.step, self.compiling = step, compiling
        self._begin, self._waited = time.perf_counter(), waited

    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def measure(self, step: int, waited: float) -> tuple[int, float, float]:
        return step - self.step, self.seconds(), waited - self._waited


def _flush(pending: list[tuple[int, dict[str, jax.Array]]], tracker: Recorder) -> float:
    """Fetches and records pending metrics; the loss of the last step."""
    lines = [(step, {k: float(v) for k, v in m.items()}) for step, m in jax.device_get(pending)]
    pending.clear()
    bad = next((step for step, values in lines if not math.isfinite(values["loss"])), None)
    tracker.steps(line for line in lines if bad is None or line[0] <= bad)
    if bad is not None:
        raise NotFinite(
            f"the loss is not finite at step {bad}: lower config.optimizer.learning_rate or clip_norm, "
            "or look at the batch of that step; the last checkpoint is from before it"
        )
    return lines[-1][1]["loss"] if lines else math.nan


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
