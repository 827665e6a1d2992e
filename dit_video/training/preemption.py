"""Preemption: on SIGTERM or Ctrl-C a run finishes its step, saves a checkpoint and ends; all processes at one step.

A scheduler that ends jobs at a deadline sends SIGTERM first if configured so, as Slurm does with `--signal=TERM@300`.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from dit_video.distributed import processes


@runtime_checkable
class StopCondition(Protocol):
    """Condition for stopping a run early."""

    def reached(self, step: int) -> bool:
        """Whether `step`, which has just been done, shall be the last; asked once for every step."""
        ...


class StopSignal:
    """Stops a run of one process on Ctrl-C or SIGTERM; a second signal ends the process at once."""

    def __init__(self):
        self.requested = False

    def reached(self, step: int) -> bool:
        del step  # one process need not agree on a step with others
        return self.requested

    @contextlib.contextmanager
    def listen(self) -> Iterator["StopSignal"]:
        with _handled({signal.SIGINT: self._handle, signal.SIGTERM: self._handle}):
            yield self

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            _end(number, frame)
        self.requested = True


class StopTogether:
    """Stops a run of several processes: a signal to any of them stops all at the same step.

    JAX handles SIGTERM itself: it checks once a second and agrees on a step without asking a device; Ctrl-C is sent on
    as SIGTERM. A signal ends the process at once if it is the second Ctrl-C, or the step is agreed on already.
    """

    def __init__(self):
        self._handed_on = False

    def reached(self, step: int) -> bool:
        agreed = processes.stop_agreed(step)
        if agreed:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _end)
        return agreed

    @contextlib.contextmanager
    def listen(self) -> Iterator["StopTogether"]:
        with _handled({signal.SIGINT: self._hand_on}):
            yield self

    def _hand_on(self, number: int, frame: object) -> None:
        if self._handed_on:
            _end(number, frame)
        self._handed_on = True
        os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: object) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def _handled(handlers: dict[signal.Signals, Callable[[int, Any], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
