"""Barriers of Orbax, at which the processes of a save wait for each other, ended early where one of them has failed.

JAX's own barriers end when all have come or at their timeout, which is as long as a save may take. Here each process
says that it has come by a key in JAX's coordination service, and looks between whether another says that it failed.
"""

import asyncio
import functools
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
from orbax.checkpoint import CheckpointManager
from orbax.checkpoint._src.futures import signaling_client
from orbax.checkpoint.experimental.v1._src.synchronization import signaling_client as signaling_client_v1

from dit_video.checkpoint.orbax import operation
from dit_video.distributed import processes

SLICE = 5
"""Seconds after which a waiting process looks whether another has failed: of a failure all learn in two of them."""

# Orbax puts the number of the operation, which is the same in all processes, in front of the name of each barrier.
_OPERATION = re.compile(r"\[op=(\d+)")
_PLACE = "dit_video/barriers"
# How often this process has come to each barrier: keys of one that was passed before must not open it again.
_visits: Counter[str] = Counter()


class AnotherFailed(TimeoutError):
    """Another process has failed in the operation that this one waits in; the rest of the message is its own."""


def end_barriers_early() -> None:
    """Lets waiting in Orbax's barriers end where another process has failed, and lets this one say so where it has."""
    signaling_client_v1._SignalingClient.wait_at_barrier = _wait_at_barrier
    manager: Any = CheckpointManager
    if not hasattr(manager._wait_for_checkpointers, "__wrapped__"):
        manager._wait_for_checkpointers = _telling(manager._wait_for_checkpointers)


def _telling(wait_for_items: Callable[[Any], None]) -> Callable[[Any], None]:
    """Orbax's waiting for what this process writes of a step; after it Orbax waits for the others, failed or not."""

    @functools.wraps(wait_for_items)
    def wait_and_tell(self: Any) -> None:
        number = operation()
        try:
            wait_for_items(self)
        except BaseException as error:
            publish_failure(number, error)
            raise

    return wait_and_tell


def publish_failure(number: str, error: BaseException) -> None:
    """Tells the other processes that this one has left an operation of Orbax, of this number, with an error.

    Where the error is theirs, or this process is alone, there is none to publish it for.
    """
    if processes.joined() and not isinstance(error, AnotherFailed):
        text = f"{processes.name()}{error}"[:1000]
        signaling_client.get_signaling_client().key_value_set(failed(number), text, allow_overwrite=True)


async def _wait_at_barrier(self: Any, key: str, *, timeout_secs: int, process_ids: Sequence[int] | None = None) -> None:
    _visits[key] += 1
    members = sorted(process_ids or range(jax.process_count()))
    name, until = f"{key}/{_visits[key]}", time.monotonic() + timeout_secs
    await asyncio.to_thread(wait, self._client, name, jax.process_index(), members, until)


def wait(client: Any, name: str, me: int, members: Sequence[int], until: float) -> None:
    """Waits until all `members` have come; the first of them sees that, and says it to the others.

    Args:
        name: of this visit of the barrier, and of no other.
        me: which of them this process is.
        until: on the clock of time.monotonic.

    Raises:
        AnotherFailed: one has failed, and will not come.
        TimeoutError: not all came in time.
    """
    place = f"{_PLACE}/{name}"
    opened = f"{place}/open"
    if me != members[0]:
        client.key_value_set(f"{place}/came/{me}", "came")
        _await_key(client, opened, name, until)
        return
    for other in members[1:]:
        _await_key(client, f"{place}/came/{other}", name, until)
    client.key_value_set(opened, "open")
    client.key_value_delete(f"{place}/came/")


def _await_key(client: Any, key: str, barrier: str, until: float) -> None:
    number = _OPERATION.match(barrier)
    while (left := until - time.monotonic()) > 0:
        try:
            client.blocking_key_value_get(key, max(1, min(SLICE, int(left))))
            return
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise TimeoutError(f"{barrier}: {error}") from error
        if number and (text := client.key_value_try_get(failed(number[1]))):
            raise AnotherFailed(text)
    raise TimeoutError(f"{barrier}: not all processes came in time")


def failed(number: str) -> str:
    """The key under which a failure in an operation is published."""
    return f"dit_video/failed/{number}"
