"""Hang detection: a watchdog thread warns when a run is stuck and dumps all stacks to RUN/stacks_*.txt.

It ends nothing. What is usual is measured in the run itself: the longest duration of an activity between two
measurements of throughput, and the median of these. So a step that waits for all those dispatched before it, as every
fetch of metrics does, is usual, and the one compilation of an evaluation is not.
"""

import contextlib
import dataclasses
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from dit_video.distributed import processes
from dit_video.progress import shown
from dit_video.training.goodput import Activity

# Windows whose longest durations are remembered, and the fewest whose median counts as usual.
_NUM_STRETCHES = 32
_FEW_STRETCHES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class HangTimeouts:
    """Time limits after which an activity counts as hanging.

    Attributes:
        factor: times the usual duration.
        least: seconds below which nothing counts as hanging.
        unknown: seconds for an activity whose usual duration is not known yet, such as compiling.
    """

    factor: float = 10.0
    least: float = 60.0
    unknown: float = 1800.0

    def limit(self, activity: Activity, usual: float | None) -> float:
        """Seconds after which `activity` hangs; `usual` is its usual duration, None where it is not known."""
        if usual is not None:
            return max(self.least, self.factor * usual)
        # Data come from where things hang most, and what is being read can be named.
        return self.least if activity is Activity.DATA else self.unknown


@dataclasses.dataclass(frozen=True)
class Span:
    """An uninterrupted activity of a run: the `number`-th of all, since `since` on the clock."""

    activity: Activity
    since: float
    number: int


class Heartbeat:
    """Current activity of a run, since when, and its usual duration. One thread writes, others may read."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.span = Span(Activity.INITIALISE, clock(), 0)
        self._longest: dict[Activity, float] = {}
        self._stretches: dict[Activity, tuple[float, ...]] = {}

    def now(self, activity: Activity) -> None:
        before, moment = self.span, self.clock()
        self._longest[before.activity] = max(self._longest.get(before.activity, 0.0), moment - before.since)
        self.span = Span(activity, moment, before.number + 1)

    def end_window(self) -> None:
        """Ends a window: the longest duration of each activity in it is remembered."""
        self.now(self.span.activity)
        for activity, longest in self._longest.items():
            # A new tuple: whoever reads the old one at this moment may go on.
            self._stretches[activity] = (*self._stretches.get(activity, ()), longest)[-_NUM_STRETCHES:]
        self._longest = {}

    def usual(self, activity: Activity) -> float | None:
        """Median over windows of the longest duration, in seconds; None where it is not known yet."""
        stretches = self._stretches.get(activity, ())
        return statistics.median(stretches) if len(stretches) >= _FEW_STRETCHES else None


class Watchdog:
    """Watches a heartbeat and warns once of each activity that takes too long."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        folder: Path,
        *,
        waits_for: Mapping[Activity, Callable[[], str]],
        timeouts: HangTimeouts = HangTimeouts(),
    ):
        """`waits_for` names what the run waits for during an activity, such as the record that is being read."""
        self._heartbeat, self._folder, self._waits_for, self._timeouts = heartbeat, folder, waits_for, timeouts
        self._reported = -1
        self._name, self._suffix = processes.name(), f"_process_{jax.process_index()}" if processes.joined() else ""

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Runs the watchdog in a thread of its own."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(self._timeouts.least / 10):
                self.look()

        thread = threading.Thread(target=look, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def look(self) -> None:
        """Warns if the current activity takes too long and was not reported yet."""
        span = self._heartbeat.span
        usual = self._heartbeat.usual(span.activity)
        lasted = self._heartbeat.clock() - span.since
        if span.number == self._reported or lasted <= self._timeouts.limit(span.activity, usual):
            return
        self._reported = span.number
        known = "" if usual is None else f", which usually takes at most {usual:.1f} s"
        waits_for = self._waits_for.get(span.activity)
        file = self._folder / f"stacks_{time.strftime('%Y%m%d_%H%M%S')}{self._suffix}.txt"
        self._warn(f"warning: at {span.activity} since {lasted:.0f} s{known}; what all threads do goes to {file}")
        if waits_for is not None:
            self._warn(f"waiting for {waits_for()}")
        try:
            file.write_text(_stacks(), encoding="utf-8")
        except OSError as error:
            self._warn(f"it cannot be written: {error}")

    def _warn(self, message: str) -> None:
        print(shown(f"{self._name}{message}"), file=sys.stderr, flush=True)


def _stacks() -> str:
    """Stack traces of all threads, the main one first. (faulthandler names none and stops after a hundred.)"""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    return "\n".join(
        f"thread {names.get(ident, 'not of Python')}, most recent call last:\n" + "".join(traceback.format_stack(frame))
        for ident, frame in frames
    )
