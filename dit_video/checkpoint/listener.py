"""Who listens to the saves of a run: before one begins, when it has ended, and when one fails."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dit_video.distributed import processes


def _print(message: str) -> None:
    print(message, file=sys.stderr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveListener:
    """Calls what a run does at its saves; of several processes the first alone prepares and records.

    Attributes:
        warn: gets a message when a save fails, with what to do; it is printed to standard error, if left out.
        record: gets what each save took, or why it failed: a line of RUN/saves.jsonl (checkpoint/writer.py).
        prepare: called when a save begins, to write what else a resumed run needs.
    """

    warn: Callable[[str], None] = _print
    record: Callable[[Mapping[str, Any]], None] = lambda line: None
    prepare: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """A save begins."""
        if processes.is_first():
            self.prepare()

    def end(self, line: Mapping[str, Any]) -> None:
        """A save is complete, or has failed."""
        if processes.is_first():
            self.record(line)
