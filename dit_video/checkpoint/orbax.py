"""Workarounds for Orbax: its errors in reading, log output, leftover tasks, and reads without barriers."""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator
from orbax.checkpoint._src.path import async_path

from dit_video.config.atomic import sync_names, sync_tree
from dit_video.distributed import processes

# What Orbax raises for whatever happens while it reads.
RAISED = (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"


def each_for_itself() -> ocp.Context:
    """Reads without Orbax's barriers, at which processes would wait for one that cannot read."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.Context(multiprocessing_options=alone)


def count_operations_alike() -> None:
    """Lets all processes go on with one number of operations, by which those of one save find each other.

    Orbax counts reads, too, of which each process makes its own: a step that was just saved is read again by one, and
    where the store fails, one may try more often than another.
    """
    last = max(map(int, processes.gather(operation())))
    while int(operation()) < last:
        OperationIdGenerator.next_operation_id()


def operation() -> str:
    """The number of Orbax's operation that was begun last; of a save it is the same in all processes."""
    return OperationIdGenerator.get_current_operation_id()


def sync_before_renaming() -> None:
    """Lets Orbax give a step its name when all of it would outlast a power loss; it syncs nothing but arrays itself."""
    rename = async_path.rename
    if not isinstance(rename, functools.partial):
        async_path.rename = functools.partial(_synced, rename)


async def _synced(rename: Callable[[Any, Any], Awaitable[Any]], src: Any, dst: Any) -> Any:
    is_local = os.path.isdir(src)
    if is_local:
        await asyncio.to_thread(sync_tree, Path(src))
    renamed = await rename(src, dst)
    if is_local:
        await asyncio.to_thread(sync_names, Path(dst))
    return renamed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Orbax, which prints pages about a damaged file; the error raised here is one line.

    What it changes is of the whole process, and a save is read again in the background: who comes first silences, and
    who leaves last undoes that.
    """
    with _silence.lock:
        if not _silence.depth:
            _silence.undo.enter_context(_silenced())
        _silence.depth += 1
    try:
        yield
    finally:
        with _silence.lock:
            _silence.depth -= 1
            if not _silence.depth:
                _silence.undo.close()


@dataclasses.dataclass
class _Silence:
    lock: threading.Lock
    undo: contextlib.ExitStack
    depth: int = 0


_silence = _Silence(threading.Lock(), contextlib.ExitStack())


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of coroutines never awaited
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def ignore_late_tasks() -> None:
    """Ignores late errors of TensorStore tasks that continue after Orbax has given up."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    if not (isinstance(hook, functools.partial) and hook.func is _all_but_late_tasks):
        sys.unraisablehook = functools.partial(_all_but_late_tasks, hook)


def _all_but_late_tasks(hook: Callable[[Any], object], unraisable: Any) -> None:
    left_behind = inspect.iscoroutine(unraisable.object) and "orbax" in unraisable.object.cr_code.co_filename
    if not left_behind and str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)
