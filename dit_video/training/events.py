"""Log of training faults (NaN, loss spike, undecodable record) and the reaction to each: RUN/events.jsonl.

Where a run resumes at step s, after a kill or a roll-back, it drops the events of the steps after s as it drops
their metrics: those steps are done again. A roll-back belongs to the step that it went back to, so a run that resumes
there has it in its history, and continues with the batch that it names.
"""

import collections
import dataclasses
import enum
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dit_video.config.json_file import check_kinds
from dit_video.storage.json_lines import LinesFile, read_lines

FILE = "events.jsonl"


class Kind(enum.StrEnum):
    """Kind of training fault."""

    NOT_FINITE = "not finite"
    SPIKE = "spike"
    WEIGHTS = "weights"
    """What would have been saved is not finite, or out of all proportion to the last checkpoint."""
    UNDECODABLE = "undecodable"


class Done(enum.StrEnum):
    """Reaction to a training fault."""

    STOPPED = "stopped"
    SKIPPED = "update skipped"
    ROLLED_BACK = "rolled back"
    NOTED = "noted"
    REPLACED = "replaced"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A training fault and the reaction to it, one line of events.jsonl.

    Attributes:
        step: where it happened.
        batch: index of the batch of that step.
        what: in words; of records that were replaced, one each, with their names.
        to: of a roll-back, the step that it went back to.
        next_batch: of a roll-back, the batch that it went on with.
    """

    step: int
    batch: int
    kind: Kind
    done: Done
    what: tuple[str, ...]
    to: int | None = None
    next_batch: int | None = None

    @property
    def belongs_to(self) -> int:
        """The event is part of the history of a run from this step on."""
        return self.step if self.to is None else self.to

    def to_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return fields | {"kind": self.kind.value, "done": self.done.value, "what": list(self.what)}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Event":
        """Raises ValueError where `line` is none that `to_json` made."""
        check_kinds(line, {"step": int, "batch": int, "kind": str, "done": str, "what": list})
        check_kinds(line, {name: int for name in ("to", "next_batch") if name in line})
        if not all(isinstance(what, str) for what in line["what"]):
            raise ValueError(f"what={line['what']!r}: must be texts")
        return cls(
            step=line["step"],
            batch=line["batch"],
            kind=Kind(line["kind"]),
            done=Done(line["done"]),
            what=tuple(line["what"]),
            to=line.get("to"),
            next_batch=line.get("next_batch"),
        )


class EventLog:
    """Events of a run so far. All processes of a run keep the same list; only one has a file to write."""

    def __init__(self, events: Iterable[Event], file: LinesFile[Event] | None = None):
        """`file`, if any, is kept equal to the list."""
        self._events, self._file = list(events), file
        self._write()

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def add(self, event: Event) -> None:
        self._events.append(event)
        if self._file is not None:
            self._file.append(event.to_json())

    def rewind(self, step: int) -> None:
        """Drops the events of steps after this one."""
        self._events = [event for event in self._events if event.belongs_to <= step]
        self._write()

    def next_batch(self, step: int) -> int | None:
        """The batch to resume with at a step that the run was rolled back to; None where it never was."""
        return next((event.next_batch for event in reversed(self._events) if event.to == step), None)

    def _write(self) -> None:
        if self._file is not None:
            self._file.replace(event.to_json() for event in self._events)


def read_events(workdir: Path, *, last: int | None = None) -> list[Event]:
    """Events of a run up to step `last`."""
    return [event for event in read_lines(workdir / FILE, Event.from_json) if last is None or event.belongs_to <= last]


def summary(events: Iterable[Event]) -> str:
    """Counts by kind and reaction as one line of text; empty where there are no events."""
    counts = collections.Counter({(event.kind, event.done): 0 for event in events})
    for event in events:
        counts[event.kind, event.done] += len(event.what) if event.done is Done.REPLACED else 1
    return ", ".join(f"{kind}: {count} x {done}" for (kind, done), count in counts.items())
