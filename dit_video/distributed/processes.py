"""Multi-process (multi-host) setup: how processes join with `jax.distributed`, agree, and end together.

Every process runs the same command, on as many hosts as one likes; process_settings.py says which of them one is. A
process that is alone listens nowhere.

The first process, number 0, writes files and prints. A process that fails ends at once: the others find its
connections closed, or miss its heartbeats, and end too.
"""

import contextlib
import functools
import importlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dit_video.distributed.process_settings import JoinError, ProcessSettings

HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life after which a process counts as gone, and all others end."""

SHUTDOWN_TIMEOUT = 120
"""Seconds that a process which is done waits for the others to be."""

_LOOPBACK = re.compile(r"localhost|127\.[\d.]+|\[::1\]")


class FirstFailed(ValueError):
    """Work that only the first process does has failed there."""


def start(settings: ProcessSettings | None, *, join_timeout: int, stops_together: bool) -> None:
    """Joins the other processes (`jax.distributed.initialize`), before any device is used; alone, it does nothing.

    Args:
        join_timeout: seconds until all processes must have come.
        stops_together: SIGTERM no longer ends this process: `stop_agreed` says when all of them stop.

    Raises:
        JoinError: there is no cluster where one was said to be. Where not all come in time, the process ends with a
            message: neither waiting nor what waits for it can be called off.
    """
    if settings is None:
        return
    jax.config.update("jax_enable_preemption_service", stops_together)
    where = settings.coordinator or "the coordinator that JAX found"

    def give_up() -> None:
        print(
            f"{_name(settings.process_id, settings.num_processes)}error: not all processes met at {where} within "
            f"{join_timeout} s: look whether each was started, with the same coordinator and number of processes, and "
            "whether the port can be reached; --join_timeout gives them longer",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    # JAX itself ends the process without a word that helps; it must not be the first to lose patience.
    watch = threading.Timer(join_timeout, give_up)
    watch.daemon = True
    watch.start()
    host = (settings.coordinator or "").rpartition(":")[0]
    local = _LOOPBACK.fullmatch(host)
    if local:
        _keep_gloo_to_loopback()
    try:
        jax.distributed.initialize(
            coordinator_address=settings.coordinator,
            num_processes=settings.num_processes,
            process_id=settings.process_id,
            local_device_ids=settings.local_devices,
            cluster_detection_method=None if settings.coordinator is None else "deactivate",
            coordinator_bind_address=settings.coordinator if local else None,
            initialization_timeout=join_timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        raise JoinError(
            f"{_name(settings.process_id, settings.num_processes)}cannot join the others at {where}: {error}; "
            "say who they are with --coordinator, --num_processes and --process_id"
        ) from error
    finally:
        watch.cancel()


def _keep_gloo_to_loopback() -> None:
    """Makes Gloo, by which CPU devices of several processes exchange arrays, listen on 127.0.0.1 alone.

    It asks nobody who he is, and by itself listens on what the name of this host resolves to, all the time that a run
    takes. JAX has no option for it; where it calls another function, tests/run/test_listening.py fails.
    """
    with contextlib.suppress(ImportError, AttributeError):
        jaxlib: Any = importlib.import_module("jaxlib._jax")
        jaxlib.make_gloo_tcp_collectives = functools.partial(jaxlib.make_gloo_tcp_collectives, hostname="127.0.0.1")


def joined() -> bool:
    """Whether this process is one of several that have joined."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; touches no device where it is alone."""
    return not joined() or jax.process_index() == 0


def name() -> str:
    """Prefix of messages of this process: "process 1 of 2: ", empty where it is alone."""
    return _name(jax.process_index(), jax.process_count()) if joined() else ""


def finish() -> None:
    """Waits until all processes are done, and shuts the connection down."""
    jax.distributed.shutdown()


def leave(code: int) -> None:
    """Ends this process at once: on its usual way out it would wait for processes that wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_agreed(step: int) -> bool:
    """Whether this is the step at which all processes stop, because one of them has got SIGTERM.

    To be called by all with the same steps; asks no device.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def gather(text: str) -> list[str]:
    """Gathers a text from every process, in order; a collective call that waits for all."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(mine)))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(mine)] = mine
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths)]


def from_first(make: Callable[[], Any]) -> Any:
    """Calls `make` in the first process and broadcasts the JSON value that it returns.

    Raises:
        FirstFailed: it raised ValueError or OSError there; that process raises the error itself.
    """
    if not joined():
        return make()
    if not is_first():
        answer = json.loads(gather("")[0])
        if "error" in answer:
            raise FirstFailed(answer["error"])
        return answer["value"]
    try:
        value = make()
    except (ValueError, OSError) as error:
        gather(json.dumps({"error": str(error)}))
        raise
    gather(json.dumps({"value": value}))
    return value


@contextlib.contextmanager
def entered_by_first(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Enters and leaves `context` in the first process alone; raises what `from_first` raises."""
    with contextlib.ExitStack() as stack:
        from_first(lambda: stack.enter_context(context))
        yield


def _name(process_id: int | None, num_processes: int | None) -> str:
    return "" if process_id is None else f"process {process_id} of {num_processes}: "
