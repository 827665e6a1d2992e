"""The training loop: batch, step, record, evaluate, save. One loop for every task."""

import collections

import jax

from dit_video.tasks.task import Metrics
from dit_video.training.fault_policy import Faults
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
    fault_recovery = FaultRecovery(faults, learner, recorder, saver, state, batch_size=observers.work.clips)
    window = Window(step, batches.wait_seconds)
    trace = Trace(observers.profile, step, recorder.note)
    sent: collections.deque[Metrics] = collections.deque()
    stopping = stop.reached(step)
    while step < schedule.num_steps and not stopping:
        trace.before(step)
        now(Activity.DATA)
        batch = next(batches)
        now(Activity.COMPILE if window.compiling else Activity.STEP)
        state, metrics = learner.step(state, batch)
        step += 1
        fault_recovery.add(step, metrics)
        sent.append(metrics)
        if len(sent) > _STEPS_AHEAD:
            jax.block_until_ready(sent.popleft())
        if window.compiling:
            jax.block_until_ready(metrics)
            recorder.note(f"first step (compilation included): {window.seconds():.1f} s")
            if memory := step_memory(learner.compiled(state, batch)):
                recorder.note(memory)
            window = Window(step, batches.wait_seconds, compiling=False)
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
                window = Window(step, batches.wait_seconds, compiling=False)
                continue
            observers.measure(window, step, loss, learner.program.learning_rate(state), batches.wait_seconds)
        if save:
            # Before evaluating: what was learnt is safe even if an evaluator fails.
            now(Activity.CHECKPOINT)
            saver.save(step, state, batches.next_batch)
        if due and not stopping:
            observers.evaluate(due, step, state)
        now(Activity.STEP)
        if look:
            window = Window(step, batches.wait_seconds, compiling=False)
    now(Activity.CHECKPOINT)  # what is left to do is to wait for the last one
    return state, step
