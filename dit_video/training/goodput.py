"""Goodput: wall time of a run by activity (step, data, compile, checkpoint, evaluation, lost), over all its sessions.

Goodput is the share of steps whose work still counts. A run that was killed or rolled back does some steps twice: the
first time is booked as lost once the run goes on from the checkpoint before them.

RUN/goodput.jsonl has lines {"session": 1, "step": 200, "seconds": {"step": 61.2, ...}}: what the session has spent
until it recorded that step; what follows a roll-back counts as a session of its own. It is written along with the
metrics, so a kill loses what came after the last line; the time when nothing ran is nobody's.
"""

import enum
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dit_video.config.json_file import check_kinds
from dit_video.storage.json_lines import LinesFile, read_lines
from dit_video.storage.retrying_files import RetryingFile

FILE = "goodput.jsonl"


class Activity(enum.StrEnum):
    """What a run is doing. At any moment it is exactly one of these."""

    INITIALISE = "initialise"
    COMPILE = "compile"
    STEP = "step"
    DATA = "data"
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluate"
    LOST = "lost"
    """Steps that were done again, or undone."""


class Ledger:
    """Time accounting of one session of a run, added to that of the sessions before it."""

    def __init__(self, file: RetryingFile, *, start: int, began: float, clock: Callable[[], float] = time.perf_counter):
        """`start` is the step that this session goes on from, `began` the clock's time when it began."""
        self._file = LinesFile(file, _line)
        earlier = self._file.lines()
        self._earlier = _settled(earlier, start)
        self.session = 1 + max((line["session"] for line in earlier), default=0)
        self._clock, self._since = clock, began
        self._activity = Activity.INITIALISE
        self._spent = dict.fromkeys(Activity, 0.0)

    def now(self, activity: Activity) -> None:
        """Books the time since the last call under the activity until now; `activity` begins."""
        moment = self._clock()
        self._spent[self._activity] += moment - self._since
        self._activity, self._since = activity, moment

    def rewind(self, step: int, start: int) -> None:
        """Rolls back from `step` to `start`: a new session begins there."""
        self.write(step)
        self._earlier = _settled(self._file.lines(), start)
        self.session += 1
        self._spent = dict.fromkeys(Activity, 0.0)
        self.write(start)

    def write(self, step: int) -> None:
        """Appends the seconds spent until `step` to the file."""
        self.now(self._activity)
        seconds = {activity.value: spent for activity, spent in self._spent.items() if spent}
        self._file.append({"session": self.session, "step": step, "seconds": seconds})

    def seconds(self) -> dict[Activity, float]:
        """Seconds by activity, over all sessions until now."""
        self.now(self._activity)
        return {activity: self._earlier[activity] + self._spent[activity] for activity in Activity}


def read_goodput(workdir: Path) -> dict[Activity, float]:
    """Seconds by activity that a run has booked so far, over all its sessions; all 0 where there is no file."""
    return _settled(read_lines(workdir / FILE, _line), None)


def summary(seconds: Mapping[Activity, float]) -> str:
    """One line for the console, the largest share first."""
    total = sum(seconds.values())
    shares = sorted(((spent / total, activity) for activity, spent in seconds.items() if spent > 0), reverse=True)
    return f"{total:.0f} s: " + ", ".join(f"{activity} {share:.1%}" for share, activity in shares)


def _settled(lines: list[dict], start: int | None) -> dict[Activity, float]:
    """Seconds by activity over sessions; steps beyond the checkpoint that the next session resumed from count as lost.

    `start` is where the session after the last one goes on; None where there is none yet.
    """
    sessions: dict[int, list[dict]] = {}
    for line in lines:
        sessions.setdefault(line["session"], []).append(line)
    ordered = list(sessions.values())
    # A session's first line is where it went on: nothing has been stepped until then.
    starts = [first["step"] for first, *_ in ordered[1:]] + [start]
    total = dict.fromkeys(Activity, 0.0)
    for session, went_on in zip(ordered, starts):
        spent = session[-1]["seconds"]
        for name, seconds in spent.items():
            total[Activity(name)] += seconds
        counted = [line["seconds"] for line in session if went_on is None or line["step"] <= went_on]
        for activity in (Activity.STEP, Activity.DATA):
            before = counted[-1].get(activity.value, 0.0) if counted else 0.0
            again = spent.get(activity.value, 0.0) - before
            total[activity] -= again
            total[Activity.LOST] += again
    return total


def _line(content: dict[str, Any]) -> dict[str, Any]:
    """Checks a line of goodput.jsonl."""
    check_kinds(content, {"session": int, "step": int, "seconds": dict})
    for name, seconds in content["seconds"].items():
        Activity(name)
        check_kinds(content["seconds"], {name: float})
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds of {name}={seconds}: must be finite and at least 0")
    return content
