"""Profiler trace of a few steps of a run, for TensorBoard or Perfetto."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from dit_video.config.bounds import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps are traced, and where to.

    Attributes:
        folder: that the trace is written to.
        first: steps before the first one that is traced, counted from where the run starts or goes on: the first of
            them compiles.
        num_steps: how many are traced.
    """

    folder: str
    first: int = 3
    num_steps: int = 3

    def __post_init__(self):
        at_least(self, 0, "first")
        at_least(self, 1, "num_steps")


class Trace:
    """Starts and stops the profiler as the steps of `profile` come; nothing is traced where that is None."""

    def __init__(self, profile: Profile | None, start: int, note: Callable[[str], None]):
        """`start` is the step that the run goes on from; `note` gets what was traced, or why it was not written."""
        self._profile, self._note, self._running = profile, note, False
        self._first = None if profile is None else start + profile.first

    def before(self, step: int) -> None:
        """To be called before the step that follows `step`."""
        if self._profile is not None and step == self._first and not self._running:
            jax.profiler.start_trace(self._profile.folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """To be called after `step`, whose device arrays are waited for where it is the last one of the trace."""
        if self._profile is None or self._first is None or step != self._first + self._profile.num_steps:
            return
        jax.block_until_ready(metrics)
        self._note(f"trace of steps {self._first + 1} to {step}: {self._stop(self._profile.folder)}")
        self._first = None  # these steps may be done again

    def _stop(self, folder: str) -> str:
        """Where the trace is, or why it could not be written: a full disk ends no run."""
        try:
            jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:
            return f"not written: {str(error).partition(chr(10))[0]}"
        return folder
