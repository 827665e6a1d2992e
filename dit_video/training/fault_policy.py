"""Policies for training faults (NaN loss, loss spikes, undecodable records): stop, skip the update, roll back, note.

Decisions are made on the host, wherever metrics are fetched anyway, from numbers that all processes hold alike and that
stand in the record: a run that was killed takes the same decisions again.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dit_video.config.bounds import at_least, share
from dit_video.training.events import Done, Event, Kind

# A share of a few says nothing: so many records may always be replaced.
FEW_REPLACED = 10
# Weights whose norm is so many times that of the last checkpoint, or so small a part of it, are ruined: no learning
# rate that a network learns with does that between two saves.
NORM_CHANGE = 100.0
# The metric that says which of several shapes the batch of a step had.
SHAPE = "shape"
# Fewer losses have no deviation.
_LEAST_LOSSES = 3
# The deviation of normal noise is so many times its median absolute deviation.
_MAD_TO_DEVIATION = 1.4826


class TrainingFault(ValueError):
    """A fault after which the experiment's policy ends training. Raised in all processes alike."""


class NotFinite(TrainingFault):
    """The loss or the gradient norm is NaN or infinite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """Policy: end the run; its last checkpoint is from before the fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """Policy: skip the update. Weights, average and optimizer stay as they are; step and data advance.

    Attributes:
        limit: more updates in a row than these end the run.
    """

    limit: int = 10

    def __post_init__(self):
        at_least(self, 1, "limit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollBack:
    """Policy: roll back to the last good checkpoint and continue with the batch after the one at fault.

    The batches between are left out, too. How far it goes back depends on how often checkpoints are saved; the first is
    saved before the first step, and a run that is stopped saves one more. Where the run fails again and comes no
    further than before, the fault may be in that checkpoint: it is set aside and the one before it is taken, as long as
    there is one.

    Attributes:
        limit: more often than this to the same step ends the run.
    """

    limit: int = 3

    def __post_init__(self):
        at_least(self, 1, "limit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """Policy: record the event and continue."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spike:
    """Loss-spike detection: a loss far above the running median, of batches of the same shape.

    Attributes:
        window: how many steps before are looked at; until there are as many, nothing is a spike.
        num_deviations: above their median, in deviations as their median absolute deviation gives them.
        action: what to do about one.
    """

    window: int = 200
    num_deviations: float = 10.0
    action: Note | RollBack = Note()

    def __post_init__(self):
        at_least(self, _LEAST_LOSSES, "window", why="fewer losses have no deviation")
        if not 0 < self.num_deviations < math.inf:
            raise ValueError(f"Spike.num_deviations={self.num_deviations}: must be above 0 and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """Policies for training faults, as a value of an experiment.

    Attributes:
        not_finite: about a loss or a gradient norm that is not finite, and about weights that are not, or whose norm
            is NORM_CHANGE times that of the last checkpoint: these are looked at before they are saved. An update that
            is made cannot be skipped, so Skip then ends the run.
        undecodable_share: 0 ends the run at the first record that cannot be read or decoded. Above, such a record is
            replaced by the next of its epoch that can, until more than FEW_REPLACED and more than this share of all
            rows so far, over all processes, have been.
    """

    not_finite: Stop | Skip | RollBack = Stop()
    spike: Spike | None = None
    undecodable_share: float = 0.0

    def __post_init__(self):
        share(self, "undecodable_share")

    @property
    def rolls_back(self) -> bool:
        """Whether any policy rolls back, so that a checkpoint is needed before the first step."""
        action = None if self.spike is None else self.spike.action
        return isinstance(self.not_finite, RollBack) or isinstance(action, RollBack)

    @property
    def num_past(self) -> int:
        """How many of the preceding steps decide about the next one."""
        in_a_row = self.not_finite.limit if isinstance(self.not_finite, Skip) else 0
        return max(in_a_row, 0 if self.spike is None else self.spike.window)

    def roll_backs(self, kind: Kind) -> int:
        """How many roll-backs to the same step are allowed."""
        action = self.spike.action if kind is Kind.SPIKE and self.spike is not None else self.not_finite
        return action.limit if isinstance(action, RollBack) else 0


class FaultDetector:
    """Detects faults in the metrics of consecutive steps: values that are not finite, spikes, replaced records."""

    def __init__(
        self, faults: Faults, *, batch_size: int, past: Iterable[Mapping[str, float]], events: Iterable[Event]
    ):
        """`past` are the metrics of the last steps, at least `faults.num_past` of them where there are, and `events`
        those of the run, both up to the step before the next."""
        self._faults, self._batch_size = faults, batch_size
        num_losses = 0 if faults.spike is None else faults.spike.window
        self._losses: collections.deque[tuple[float | None, float]] = collections.deque(maxlen=num_losses)
        self._in_a_row = 0
        for values in past:
            self._remember(values)
        self._num_replaced = sum(len(event.what) for event in events if event.done is Done.REPLACED)

    def find(self, step: int, batch: int, values: Mapping[str, float], replaced: Sequence[str]) -> list[Event]:
        """The events of a step, to be asked for in order; after one that ends or undoes the step there is none.

        Args:
            replaced: the records of its batch that were, in words.
        """
        faults = self._replaced(step, batch, replaced) + self._not_finite(step, batch, values)
        if not faults or faults[-1].kind is Kind.UNDECODABLE:
            faults += self._spike(step, batch, values)
        self._remember(values)
        return faults

    def _remember(self, values: Mapping[str, float]) -> None:
        self._in_a_row = self._in_a_row + 1 if _not_finite(values) else 0
        if math.isfinite(values["loss"]):
            self._losses.append((values.get(SHAPE), values["loss"]))

    def _replaced(self, step: int, batch: int, replaced: Sequence[str]) -> list[Event]:
        if not replaced:
            return []
        self._num_replaced += len(replaced)
        allowed = max(FEW_REPLACED, self._faults.undecodable_share * step * self._batch_size)
        done = Done.REPLACED if self._num_replaced <= allowed else Done.STOPPED
        return [Event(step=step, batch=batch, kind=Kind.UNDECODABLE, done=done, what=tuple(replaced))]

    def _not_finite(self, step: int, batch: int, values: Mapping[str, float]) -> list[Event]:
        bad = _not_finite(values)
        if not bad:
            return []
        policy = self._faults.not_finite
        if isinstance(policy, RollBack):
            done = Done.ROLLED_BACK
        else:
            done = Done.SKIPPED if isinstance(policy, Skip) and self._in_a_row < policy.limit else Done.STOPPED
        return [Event(step=step, batch=batch, kind=Kind.NOT_FINITE, done=done, what=tuple(bad))]

    def _spike(self, step: int, batch: int, values: Mapping[str, float]) -> list[Event]:
        spike, loss = self._faults.spike, values["loss"]
        if spike is None or len(self._losses) < spike.window:
            return []
        losses = np.array([loss for shape, loss in self._losses if shape == values.get(SHAPE)])
        if len(losses) < _LEAST_LOSSES:
            return []
        median = float(np.median(losses))
        deviation = _MAD_TO_DEVIATION * float(np.median(np.abs(losses - median)))
        # More than half of them equal: no measure for a difference.
        if deviation == 0 or loss <= median + spike.num_deviations * deviation:
            return []
        done = Done.ROLLED_BACK if isinstance(spike.action, RollBack) else Done.NOTED
        above = (loss - median) / deviation
        what = f"loss {loss:.4g} is {above:.1f} deviations above the median {median:.4g} of the {len(losses)} before"
        return [Event(step=step, batch=batch, kind=Kind.SPIKE, done=done, what=(what,))]

    def error(self, event: Event) -> TrainingFault:
        """The exception for an `event` that ends the run."""
        where = f"step {event.step}, batch {event.batch}"
        if event.kind is Kind.WEIGHTS:
            return TrainingFault(
                f"{' and '.join(event.what)} at {where}: not saved, the last checkpoint is from before it. Lower "
                "config.optimizer.learning_rate or clip_norm, or let config.faults.not_finite be RollBack()"
            )
        if event.kind is Kind.UNDECODABLE:
            names = "\n".join(f"  {what}" for what in event.what)
            return TrainingFault(
                f"{where}: {self._num_replaced} records could not be read or decoded until now, more than "
                f"config.faults.undecodable_share={self._faults.undecodable_share} allows (RUN/events.jsonl has all of "
                f"them):\n{names}\nbring them back, make the set again without them, or allow more"
            )
        if event.kind is Kind.SPIKE:
            return TrainingFault(
                f"the {event.what[0]} at {where}, after as many roll-backs as config.faults.spike.action.limit="
                f"{self._faults.roll_backs(event.kind)} allows; lower config.optimizer.learning_rate or clip_norm"
            )
        policy = self._faults.not_finite
        if isinstance(policy, Stop):
            after, other = "", ", or let config.faults.not_finite be Skip() or RollBack()"
        else:
            times = "updates skipped in a row" if isinstance(policy, Skip) else "roll-backs to one step"
            after, other = f", after as many {times} as config.faults.not_finite.limit={policy.limit} allows", ""
        return NotFinite(
            f"the {' and the '.join(event.what)} is not finite at {where}{after}: lower "
            f"config.optimizer.learning_rate or clip_norm, or look at that batch{other}; the last checkpoint is from "
            "before it"
        )


def ruined(norms: Mapping[str, float], past: Mapping[str, float]) -> list[str]:
    """What is wrong with arrays that are to be saved, in words; empty where nothing is.

    Args:
        norms: of the weights, their average and the optimizer's state.
        past: those of the checkpoint before. What was 0, as a state that has not begun, may become anything.
    """
    wrong = [f"the norm of {name} is {norm}" for name, norm in norms.items() if not math.isfinite(norm)]
    for name in ("params", "ema"):
        before, norm = past[name], norms[name]
        if before > 0 and math.isfinite(norm) and not 1 / NORM_CHANGE < norm / before < NORM_CHANGE:
            wrong.append(f"the norm of {name} is {norm:.4g}, and was {before:.4g} in the checkpoint before")
    return wrong


def _not_finite(values: Mapping[str, float]) -> list[str]:
    names = {"loss": "loss", "grad_norm": "gradient norm"}
    return [label for name, label in names.items() if not math.isfinite(values[name])]
