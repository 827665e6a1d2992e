"""How a command that may run as several processes begins and ends in all of them together."""

import argparse
import os
import re
import sys
import traceback
from types import TracebackType

import jax

from dit_video.cli.failure_messages import in_words
from dit_video.distributed import processes
from dit_video.distributed.process_settings import choose_settings
from dit_video.progress import Terminal, headed, shown

# XLA says of whatever goes wrong with a shared computation what kind of error it is, and raises it as one of these.
_OF_XLA = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")


class Together:
    """Context of a command that may be one of several processes: joins the others, and leaves them at the end.

    A process that fails prints why and ends at once, for the others must not wait for it nor it for them.
    """

    def __init__(self, arguments: argparse.Namespace, *, stops_together: bool):
        """`stops_together`: SIGTERM to one process asks all of them to stop, at a step that they agree on."""
        self._arguments, self._stops_together = arguments, stops_together

    def __enter__(self) -> None:
        arguments = self._arguments
        settings = choose_settings(arguments.coordinator, arguments.num_processes, arguments.process_id, os.environ)
        processes.start(settings, join_timeout=arguments.join_timeout, stops_together=self._stops_together)

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if not processes.joined():
            return
        if error is None:
            processes.finish()
            return
        processes.leave(report(error, trace=self._arguments.traceback))


def report(error: BaseException, *, trace: bool) -> int:
    """Prints an error to stderr, with its traceback unless a user can mend it; returns the exit code."""
    console = Terminal(stderr=True)
    prefix = processes.name()
    if isinstance(error, KeyboardInterrupt):
        console.print(f"{prefix}stopped")
        return 130
    why = str(error) if isinstance(error, jax.errors.JaxRuntimeError) else in_words(error)
    if trace or why is None:
        print(shown(prefix + "".join(traceback.format_exception(error))), end="", file=sys.stderr)
        return 1
    if processes.joined() and _OF_XLA.match(why):
        why = f"a computation that all processes share has failed. Did another one end? Its message says why. {why}"
    console.print(headed(f"{prefix}error:", "bold red", f" {why}"))
    return 1
