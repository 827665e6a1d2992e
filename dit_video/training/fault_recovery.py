"""Handling of training faults in the loop: checks metrics, and weights before a save; rolls a run back, or stops it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from dit_video.arrays import Mean
from dit_video.data.loader import Replaced
from dit_video.distributed import processes
from dit_video.tasks.task import Metrics
from dit_video.training.events import Done, Event, Kind
from dit_video.training.fault_policy import FaultDetector, Faults, RollBack, ruined
from dit_video.training.goodput import Activity
from dit_video.training.learner import Learner
from dit_video.training.protocols import Saver
from dit_video.training.step import TrainState
from dit_video.training.tracker import Recorder


class FaultRecovery:
    """Fetches the metrics of steps in groups, records them, and applies the fault policies to them.

    Metrics stay on the device until `fetch`, so that steps are dispatched without waiting for each other.
    """

    def __init__(
        self,
        faults: Faults,
        learner: Learner,
        recorder: Recorder,
        saver: Saver,
        state: TrainState,
        *,
        batch_size: int,
    ):
        """`state` is what training starts from, `batch_size` that of the global batch."""
        self._faults, self._learner, self._recorder, self._saver = faults, learner, recorder, saver
        self._batch_size, self._norms = batch_size, _norms_of(state)
        self._pending: list[tuple[int, int, Metrics]] = []
        self._begin()

    def _begin(self) -> None:
        """Starts detection with the last steps of the record as its past."""
        past, events = self._recorder.past(self._faults.num_past), self._recorder.events
        self._detector = FaultDetector(self._faults, batch_size=self._batch_size, past=past, events=events)

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics of a step, to be fetched later."""
        self._pending.append((step, self._learner.batches.next_batch - 1, metrics))

    def fetch(self) -> tuple[float, Event | None]:
        """Fetches and records pending metrics; returns the last step's loss and the event to roll back for, if any.

        Raises:
            TrainingFault: training cannot go on.
        """
        lines = [(step, batch, numbers(m)) for step, batch, m in jax.device_get(self._pending)]
        self._pending.clear()
        replaced = self._replaced()
        fatal = None
        for number, (step, batch, values) in enumerate(lines):
            for event in self._detector.find(step, batch, values, replaced.get(batch, [])):
                if event.done in (Done.STOPPED, Done.ROLLED_BACK):
                    fatal, lines = event, lines[: number + 1]
                    break
                self._recorder.events.add(event)
            if fatal is not None:
                break
        self._recorder.steps((step, values) for step, _, values in lines)
        if fatal is not None and fatal.done is Done.STOPPED:
            self._stop(fatal)
        return lines[-1][2]["loss"] if lines else math.nan, fatal

    def judge(self, step: int, state: TrainState) -> Event | None:
        """Looks at the weights that are to be saved: a step's loss and gradient are of those before its update.

        Returns:
            The event to roll back for, if any.

        Raises:
            TrainingFault: they must not be saved, and training cannot go on.
        """
        norms = _norms_of(state)
        if not (what := ruined(norms, self._norms)):
            self._norms = norms
            return None
        done = Done.ROLLED_BACK if isinstance(self._faults.not_finite, RollBack) else Done.STOPPED
        batch = self._learner.batches.next_batch - 1
        event = Event(step=step, batch=batch, kind=Kind.WEIGHTS, done=done, what=tuple(what))
        if done is Done.STOPPED:
            self._stop(event)
        return event

    def roll_back(self, event: Event, state: TrainState) -> TrainState:
        """Restores the last good checkpoint before `event`, to continue with the batches after it; `state` is deleted.

        Raises:
            TrainingFault: the run has been rolled back to that step as often as is allowed.
        """
        recorder = self._recorder
        recorder.now(Activity.CHECKPOINT)
        self._saver.wait()
        for leaf in jax.tree.leaves(state):
            leaf.delete()  # there may be no room for two
        # Where the run was rolled back to, and came no further than before.
        failed_from = {past.to for past in recorder.events if past.to is not None and past.step >= event.step}
        saved = self._saver.resume(self._learner.program.shapes, recorder.note, failed_from=failed_from)
        if saved is None or sum(e.to == saved.step for e in recorder.events) >= self._faults.roll_backs(event.kind):
            self._stop(event)
        recorder.rewind(saved.step)
        event = dataclasses.replace(event, to=saved.step, next_batch=event.batch + 1)
        recorder.events.add(event)
        self._learner.batches.seek(event.batch + 1)
        self._norms = _norms_of(saved.state)
        self._begin()
        recorder.note(
            f"{event.kind} at step {event.step}, {' and '.join(event.what)}: back to step {saved.step}, on with batch "
            f"{event.next_batch}"
        )
        return saved.state

    def _replaced(self) -> dict[int, list[str]]:
        """Replaced records of all processes, by batch; several processes may have made the same rows."""
        if not self._faults.undecodable_share:
            return {}
        rows = {(r.batch, r.row): r.why for text in processes.gather(self._own_replaced()) for r in _parsed(text)}
        replaced: dict[int, list[str]] = {}
        for (batch, _), why in sorted(rows.items()):
            replaced.setdefault(batch, []).append(why)
        return replaced

    def _own_replaced(self) -> str:
        return json.dumps(self._learner.batches.take_replaced())

    def _stop(self, event: Event) -> NoReturn:
        self._recorder.events.add(dataclasses.replace(event, done=Done.STOPPED))
        raise self._detector.error(event)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Fetched metrics as numbers for the record; means over nothing are left out."""
    divided = {name: v.total / v.count if isinstance(v, Mean) else v for name, v in metrics.items() if not _empty(v)}
    return {name: float(value) for name, value in divided.items()}


def _empty(value: Any) -> bool:
    return isinstance(value, Mean) and not value.count


@jax.jit
def _norms(state: TrainState) -> dict[str, jax.Array]:
    trees = {name: tree for name, tree in state._asdict().items() if name != "step"}
    return {name: optax.tree.norm(_floats(tree)) for name, tree in trees.items()}


def _floats(tree: Any) -> list[jax.Array]:
    return [x.astype(jnp.float32) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def _norms_of(state: TrainState) -> dict[str, float]:
    return {name: float(norm) for name, norm in jax.device_get(_norms(state)).items()}


def _parsed(text: str) -> list[Replaced]:
    return [Replaced(*row) for row in json.loads(text)]
