"""Asynchronous checkpoint writing in the background. A step that cannot be written costs a warning, not the run.

A step counts when its index has been read again from where it lies; of the first step of a run all arrays are, once,
for what is wrong with a path or a file system shows itself there. Old steps are deleted then and not before. A failed
save is deleted, so that a full disk is no fuller than before; one that is written and cannot be read now stays.
RUN/saves.jsonl has a line for each save: {"step": 200, "bytes": ..., "digest_seconds": ..., "blocking_seconds": ...,
"written_seconds": ..., "read_seconds": ...}, or {"step": 200, "failed": "..."}.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import logging
import time
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dit_video.checkpoint.barriers import end_barriers_early, publish_failure
from dit_video.checkpoint.folder import Steps
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.orbax import (
    count_operations_alike,
    first_line,
    ignore_late_tasks,
    operation,
    quiet,
    sync_before_renaming,
)
from dit_video.checkpoint.reader import DamagedCheckpoint, Reader
from dit_video.config.json_file import check_kinds
from dit_video.distributed import processes
from dit_video.storage.failures import Vanished, advice, chain, fault, raised_by_stores

SAVES_FILE = "saves.jsonl"

RETRY_PAUSES = (30.0, 60.0, 120.0, 240.0, 480.0, 960.0)
"""Seconds after a failed save until the next one is due; the last holds for all that follow."""

TIMEOUT = 1200
"""Seconds that a save may take. Of several processes, one that neither writes nor fails is waited for as long."""

_LEAST_SLICE = 1 << 20
"""Bytes of an array that are worth writing by a device of their own."""

_WORDS = {"unfit": "written, but not readable", "unread": "written, but could not be read again"}
"""What has failed in a save, where it was not the writing."""

_PATIENCE = 2.0
"""Seconds in which a half-written step must have gone."""


@dataclasses.dataclass(frozen=True)
class _Written:
    """How a save went, and why old steps could not be deleted after it; empty where they could."""

    seconds: float
    read_seconds: float
    not_deleted: str


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A save in progress.

    Attributes:
        metadata: of the step.
        to_delete: steps to delete when it counts.
        arrays: whether all arrays are read again.
    """

    step: int
    metadata: Mapping[str, Any]
    to_delete: Set[int]
    arrays: bool
    costs: Mapping[str, int | float]
    future: Future[_Written]


class _NotReadAgain(Exception):
    """A save is written, and the store does not answer to who wants to read it."""


class Writer:
    """Asynchronous writer of one save at a time. Every process of a run calls the same methods."""

    def __init__(self, folder: Steps, reader: Reader, listener: SaveListener):
        self._folder, self._reader, self._listener = folder, reader, listener
        logging.getLogger("absl").addFilter(_without_tracebacks_of_orbax)
        sync_before_renaming()
        end_barriers_early()
        with quiet():
            context = ocp.Context()
            context.async_options.timeout_secs = TIMEOUT
            # Where a folder cannot be made in the background, Orbax's other threads wait for it for minutes.
            context.async_options.create_directories_asynchronously = False
            # Devices that hold the same array write a slice each, and each slice is a program to compile.
            context.array_options.saving.min_slice_bytes_for_replica_parallel = _LEAST_SLICE
            self.orbax = ocp.training.Checkpointer(str(folder.path), context=context)
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._recorded = False
        # Written, and not read again: it may be good.
        self._unread: _Pending | None = None
        self._num_failed = 0
        self._half_written: set[int] = set()
        self._due = 0.0
        self._last = max((checkpoint.step for checkpoint in self.orbax.checkpoints), default=None)

    def start(
        self, step: int, items: dict[str, Any], metadata: dict[str, Any], to_delete: set[int], *, digest_seconds: float
    ) -> None:
        """Starts writing; the arrays may be donated as soon as this returns. Then the steps `to_delete` are deleted."""
        began = time.perf_counter()
        try:
            self._check_folder()  # Orbax would make it anew, under a mount point perhaps, without what it held
            if self._num_failed:
                processes.from_first(self._remove_half_written)
                self.orbax.reload()
            count_operations_alike()
            # Forced: by default Orbax leaves a step out while the one before it is still being written.
            response = self.orbax.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)
        except raised_by_stores() as error:
            if fault(error) is None:
                raise
            # Its answer is the error.
            publish_failure(operation(), error)
            write = functools.partial(_fail, error)
        else:
            assert response is not None, (
                "Orbax returns None only for a step that it skips, and a forced save is never skipped"
            )
            write = response.result
        costs = {
            "bytes": sum(x.nbytes for x in jax.tree.leaves(items)),
            "digest_seconds": digest_seconds,
            "blocking_seconds": digest_seconds + time.perf_counter() - began,
        }
        self._submit(write, began, step, metadata, to_delete, self._last is None, costs)

    def _check_folder(self) -> None:
        """Raises Vanished in all processes where the folder is gone for one: each call after it is made by all."""
        gone = ""
        try:
            self._folder.check()
        except Vanished as error:
            gone = f"{processes.name()}{error}"
        if gone := next(filter(None, processes.gather(gone)), ""):
            raise Vanished(gone)

    def read_again(self, step: int) -> None:
        """Starts reading a step that was written and could not be read then; nothing to do for all others."""
        if (unread := self._unread) is not None and unread.step == step:
            fields = (step, unread.metadata, unread.to_delete, unread.arrays, unread.costs)
            self._submit(lambda: None, time.perf_counter(), *fields)

    def _submit(
        self,
        write: Callable[[], object],
        began: float,
        step: int,
        metadata: Mapping[str, Any],
        to_delete: Set[int],
        arrays: bool,
        costs: Mapping[str, int | float],
    ) -> None:
        def complete() -> _Written:
            write()
            written = time.perf_counter()
            if not processes.is_first():
                return _Written(written - began, 0.0, "")
            try:
                self._reader.read_back(step, metadata, arrays=arrays)
            except OSError as error:
                raise _NotReadAgain from error
            read = time.perf_counter()
            return _Written(written - began, read - written, self._delete(to_delete))

        future = self._waiter.submit(complete)
        self._pending, self._recorded = _Pending(step, metadata, to_delete, arrays, costs, future), False

    def _delete(self, steps: Set[int]) -> str:
        """Deletes old steps; why it could not, or nothing."""
        failures = []
        for step in sorted(steps):
            try:
                self._folder.remove(str(step))
            except OSError as error:
                failures.append(f"{first_line(error)}; {advice(error)}")
        return failures[0] if failures else ""

    def settle(self) -> bool:
        """Waits for the save in progress; False where a process could not write its part.

        Raises:
            Exception: anything but a failure of the store.
        """
        if self._pending is None:
            return not self._num_failed
        pending, self._pending = self._pending, None
        failures = [json.loads(text) for text in processes.gather(json.dumps(self._failure(pending)))]
        # Who could not write says more than who has waited for that.
        for what in ("writing", "unfit", "waiting", "unread"):
            if failure := next((one[what] for one in failures if what in one), None):
                self._clear_away(pending, what)
                self._warn_of_risk(pending, failure, what)
                return False
        if pending.to_delete:
            self._reload()
        if failure := next((one["deleting"] for one in failures if "deleting" in one), None):
            self._listener.warn(f"{self._folder.path}: old checkpoints could not be deleted: {failure}")
        if self._num_failed:
            self._listener.warn(
                f"{self._folder.path / str(pending.step)}: is written; nothing before it is at risk any more"
            )
        self._num_failed, self._last, self._unread = 0, pending.step, None
        self._record(pending)
        return True

    def _record(self, pending: _Pending) -> None:
        """Writes down that a save counts; a run whose checkpoints are gone knows by that line that it had some."""
        if self._recorded:
            return
        self._recorded = True
        written = pending.future.result()
        seconds = {"written_seconds": written.seconds, "read_seconds": written.read_seconds}
        self._listener.end({"step": pending.step, **pending.costs, **seconds})

    def overdue(self) -> bool:
        """Whether the last save has failed and a retry is due.

        Several processes would need to agree on that in every step: theirs is retried at the next regular save.
        """
        done = self._pending is not None and self._pending.future.done()
        if processes.joined():
            if done and self._pending is not None and self._pending.future.exception() is None:
                self._record(self._pending)
            return False
        if done:
            self.settle()
        return self._pending is None and self._num_failed > 0 and time.monotonic() >= self._due

    def close(self) -> None:
        self.settle()
        self._waiter.shutdown()
        self.orbax.close()

    def _failure(self, pending: _Pending) -> dict[str, str]:
        """The failure of this process in writing, reading or deleting, with a remedy; empty where there is none."""
        with quiet():
            error = pending.future.exception()
            if error is None:
                not_deleted = pending.future.result().not_deleted
                return {"deleting": not_deleted} if not_deleted else {}
            if isinstance(error, DamagedCheckpoint):
                return {"unfit": f"{error.damage}; if that stays so, use another --workdir"}
            with contextlib.suppress(type(error)):
                self.orbax.wait()  # raises once in every thread
            cause = fault(error)
            if cause is None:
                raise error
            text = f"{first_line(cause)}; {advice(error)}"
            for link in list(chain(error)):
                link.__traceback__ = None  # it holds what was left undone, which complains when it is collected
            gc.collect()
        ignore_late_tasks()
        if isinstance(cause, TimeoutError):
            return {"waiting": text}
        # A step appears when it is complete.
        return {"unread" if isinstance(error, _NotReadAgain) or self._has(pending.step) else "writing": text}

    def _has(self, step: int) -> bool:
        """Whether this step is complete; False where the store does not answer."""
        with contextlib.suppress(OSError):
            return self._folder.has(step)
        return False

    def _clear_away(self, pending: _Pending, what: str) -> None:
        """Deletes what a save has left that failed in writing, or does not fit; not what could not be read."""
        self._unread = pending if what == "unread" else None
        if what == "unfit":
            processes.from_first(lambda: self._delete({pending.step}))
        elif what != "unread":
            self._half_written.add(pending.step)
            processes.from_first(self._remove_half_written)
        self._reload()

    def _warn_of_risk(self, pending: _Pending, failure: str, what: str) -> None:
        pause = RETRY_PAUSES[min(self._num_failed, len(RETRY_PAUSES) - 1)]
        self._num_failed += 1
        self._due = time.monotonic() + pause
        risk = "there is no checkpoint yet" if self._last is None else f"the last checkpoint is of step {self._last}"
        self._listener.warn(
            f"{self._folder.path / str(pending.step)}: {_WORDS.get(what, 'not written')}: "
            f"{failure}. Training goes on; {risk}, so {pending.step - (self._last or 0)} steps and those to come are "
            f"at risk. A checkpoint takes {pending.costs['bytes'] / 1e6:.1f} MB; it is tried again "
            + ("at the next save" if processes.joined() else f"in {pause:.0f} s")
        )
        self._listener.end({"step": pending.step, "failed": failure})

    def _reload(self) -> None:
        """Makes Orbax list the steps anew after a failure."""
        with contextlib.suppress(*raised_by_stores()):
            self._folder.check()
            self.orbax.reload()

    def _remove_half_written(self) -> None:
        """Deletes half-written steps to free space; threads of Orbax that have not failed write for a moment more."""
        until = time.monotonic() + _PATIENCE
        while True:
            halves: list[str] = []
            with contextlib.suppress(OSError):
                halves = [half for step in self._half_written for half in self._folder.half_written(step)]
                for half in halves:
                    self._folder.remove(half)
            if not halves or time.monotonic() > until:
                return
            time.sleep(0.05)


def _fail(error: Exception) -> None:
    raise error


def save_line(content: dict[str, Any]) -> dict[str, Any]:
    """Checks a line of saves.jsonl: of a save that is complete, or of one that failed; ValueError names the field."""
    check_kinds(content, {"step": int, "failed": str} if "failed" in content else {"step": int, "bytes": int})
    return content


def _without_tracebacks_of_orbax(record: logging.LogRecord) -> bool:
    """Log filter: threads of Orbax print pages on errors that are reported here in one line."""
    return not record.exc_info or "orbax" not in record.pathname
