"""The training loop: batch, step, record, evaluate, save. One loop for every task."""

import collections
import time

import jax

from dit_video.tasks.task import Metrics
from dit_video.training.compilations import num_compiled
from dit_video.training.fault_policy import SHAPE, Faults
from dit_video.training.fault_recovery import FaultRecovery
from dit_video.training.goodput import Activity
from dit_video.training.intervals import Schedule
from dit_video.training.learner import Learner
from dit_video.training.observers import Observers
from dit_video.training.preemption import StopCondition
from dit_video.training.profiler import Trace
from dit_video.training.protocols import Saver
from dit_video.training.step import TrainState
from dit_video.training.throughput import Window, step_memory
from dit_video.training.tracker import Recorder

# The host sends so many steps before it waits for the first of them: their batches are in the memory of devices.
_STEPS_AHEAD = 2


def train(
    learner: Learner,
    state: TrainState,
    *,
    schedule: Schedule,
    faults: Faults,
    observers: Observers,
    saver: Saver,
    stop: StopCondition,
) -> tuple[TrainState, int]:
    """Trains until `schedule.num_steps` or until `stop` is reached; both end with a checkpoint.

    Args:
        learner: the train step, with its batches at the one that follows `state`.
        state: to start from, or to go on from; donated.
        faults: what to do about losses that are not finite, loss spikes and records that do not decode.
        observers: record, evaluators, throughput and profiler.
        saver: keeps the checkpoints.
        stop: ends training early.

    Returns:
        The last state and its step.

    Raises:
        TrainingFault: in all processes alike, naming the first step of what `faults` does not allow to go on from.
            Nothing after it has been saved.
    """
    recorder, batches = observers.recorder, learner.batches
    now = recorder.now
    step = int(state.step)
    if step:
        observers.evaluate_missed(step, state, last=step == schedule.num_steps)
    elif faults.rolls_back:
        now(Activity.CHECKPOINT)
        saver.save(step, state, batches.next_batch)
    if (after := recorder.events.next_batch(step)) is not None:
        batches.seek(after)  # this step was gone back to, and batches were left out
    fewest = min(work.clips for _, work in learner.shapes)
    fault_recovery = FaultRecovery(faults, learner, recorder, saver, state, batch_size=fewest)
    if step < schedule.num_steps:
        now(Activity.COMPILE)
        _compile(learner, recorder)
    window, compiled_later = Window(batches.wait_seconds), 0
    trace = Trace(observers.profile, step, recorder.note)
    sent: collections.deque[Metrics] = collections.deque()
    stopping = stop.reached(step)
    while step < schedule.num_steps and not stopping:
        trace.before(step)
        now(Activity.DATA)
        batch = next(batches)
        now(Activity.STEP)
        compiled_before = num_compiled()
        state, metrics = learner.step(state, batch)
        compiled_later += num_compiled() - compiled_before
        step += 1
        shape = learner.shape_of(batch)
        window.add(learner.shapes[shape][1])
        fault_recovery.add(step, metrics | ({SHAPE: shape} if len(learner.shapes) > 1 else {}))
        sent.append(metrics)
        if len(sent) > _STEPS_AHEAD:
            jax.block_until_ready(sent.popleft())
        trace.after(step, metrics)
        # Asked once: a signal that comes later in this round ends the next one, which then saves and records.
        stopping = stop.reached(step)
        last = step == schedule.num_steps or stopping
        due = observers.evaluation.due(step, last=last)
        save = last or step % schedule.save_every == 0 or saver.overdue()
        look = last or due or save or step % schedule.log_every == 0
        if look:
            # Everything up to this step is written down, and found good, before anything is saved, fails or is killed.
            loss, undone = fault_recovery.fetch()
            if undone is None and save:
                undone = fault_recovery.judge(step, state)
            if undone is not None:
                state = fault_recovery.roll_back(undone, state)
                step = int(state.step)
                window = Window(batches.wait_seconds)
                continue
            observers.measure(
                window,
                step,
                loss,
                learning_rate=learner.program.learning_rate(state),
                waited=batches.wait_seconds,
                compiled_later=compiled_later,
            )
        if save:
            # Before evaluating: what was learnt is safe even if an evaluator fails.
            now(Activity.CHECKPOINT)
            saver.save(step, state, batches.next_batch)
        if due and not stopping:
            observers.evaluate(due, step, state)
        now(Activity.STEP)
        if look:
            window = Window(batches.wait_seconds)
    now(Activity.CHECKPOINT)  # what is left to do is to wait for the last one
    return state, step


def _compile(learner: Learner, recorder: Recorder) -> None:
    """Compiles the step for all shapes of batches; says how long that took, and what memory a step takes."""
    began = time.perf_counter()
    compiled = learner.compile()
    several = f"{len(compiled)} shapes of batches" if len(compiled) > 1 else "the step"
    recorder.note(f"compiled for {several}: {time.perf_counter() - began:.1f} s")
    if memory := step_memory(compiled):
        recorder.note(memory)
