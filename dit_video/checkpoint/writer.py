"""Asynchronous checkpoint writing in the background. A step that cannot be written costs a warning, not the run.

A failed save is deleted, so that a full disk is no fuller than before; old steps are deleted when the new one is
complete and not before. RUN/saves.jsonl has a line for each save: {"step": 200, "bytes": ..., "digest_seconds": ...,
"blocking_seconds": ..., "written_seconds": ...}, or {"step": 200, "failed": "..."}.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dit_video.checkpoint.folder import Steps
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.orbax import first_line, ignore_late_tasks, quiet
from dit_video.distributed import processes
from dit_video.storage.failures import advice, chain, fault, raised_by_stores

SAVES_FILE = "saves.jsonl"

RETRY_PAUSES = (30.0, 60.0, 120.0, 240.0, 480.0, 960.0)
"""Seconds after a failed save until the next one is due; the last holds for all that follow."""

TIMEOUT = 1200
"""Seconds that a save may take. Of several processes, one whose part fails is waited for by the others as long."""

_LEAST_SLICE = 1 << 20
"""Bytes of an array that are worth writing by a device of their own."""

_PATIENCE = 2.0
"""Seconds in which a half-written step must have gone."""


class _StepsToDelete:
    """A preservation policy of Orbax: the steps to delete are known when the save begins."""

    def __init__(self):
        self.steps: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        del context
        return [checkpoint.step not in self.steps for checkpoint in checkpoints]


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A save in progress; its future gives the seconds from the start until all was on disk."""

    step: int
    costs: Mapping[str, int | float]
    future: Future[float]


class Writer:
    """Asynchronous writer of one save at a time. Every process of a run calls the same methods."""

    def __init__(self, folder: Steps, listener: SaveListener):
        self._folder, self._listener = folder, listener
        self._policy = _StepsToDelete()
        # Orbax's policies do not have the type that its Checkpointer asks for.
        policy: Any = self._policy
        logging.getLogger("absl").addFilter(_without_tracebacks_of_orbax)
        with quiet():
            context = ocp.Context()
            context.async_options.timeout_secs = TIMEOUT
            # Where a folder cannot be made in the background, Orbax's other threads wait for it for minutes.
            context.async_options.create_directories_asynchronously = False
            # Devices that hold the same array write a slice each, and each slice is a program to compile.
            context.array_options.saving.min_slice_bytes_for_replica_parallel = _LEAST_SLICE
            self.orbax = ocp.training.Checkpointer(str(folder.path), context=context, preservation_policy=policy)
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
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
            self._folder.check()  # Orbax would make it anew, under a mount point perhaps, without what it held
            if self._num_failed:
                processes.from_first(self._remove_half_written)
                self.orbax.reload()
            self._policy.steps = to_delete
            # Forced: by default Orbax leaves a step out while the one before it is still being written.
            response = self.orbax.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)
        except raised_by_stores() as error:
            if fault(error) is None:
                raise
            future: Future[float] = Future()
            future.set_exception(error)
        else:
            assert response is not None, (
                "Orbax returns None only for a step that it skips, and a forced save is never skipped"
            )
            future = self._waiter.submit(lambda: (response.result(), time.perf_counter() - began)[1])
        costs = {
            "bytes": sum(x.nbytes for x in jax.tree.leaves(items)),
            "digest_seconds": digest_seconds,
            "blocking_seconds": digest_seconds + time.perf_counter() - began,
        }
        self._pending = _Pending(step, costs, future)

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
        causes = [one[what] for what in ("writing", "waiting") for one in failures if what in one]
        if failure := next(iter(causes), None):
            self._clear_away(pending, failure)
            return False
        if failure := next((one["deleting"] for one in failures if "deleting" in one), None):
            self._listener.warn(f"{self._folder.path}: old checkpoints could not be deleted: {failure}")
            self._reload()
        if self._num_failed:
            self._listener.warn(
                f"{self._folder.path / str(pending.step)}: is written; nothing before it is at risk any more"
            )
        self._num_failed, self._last = 0, pending.step
        written = {} if pending.future.exception() else {"written_seconds": pending.future.result()}
        self._listener.end({"step": pending.step, **pending.costs, **written})
        return True

    def overdue(self) -> bool:
        """Whether the last save has failed and a retry is due.

        Several processes would need to agree on that in every step: theirs is retried at the next regular save.
        """
        if processes.joined():
            return False
        if self._pending is not None and self._pending.future.done():
            self.settle()
        return self._pending is None and self._num_failed > 0 and time.monotonic() >= self._due

    def close(self) -> None:
        self.settle()
        self._waiter.shutdown()
        self.orbax.close()

    def _failure(self, pending: _Pending) -> dict[str, str]:
        """The failure of this process in writing or in deleting old steps, with a remedy; empty where there is none."""
        with quiet():
            error = pending.future.exception()
            if error is None:
                return {}
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
        # A step appears when it is complete; old ones are deleted then.
        return {"deleting" if self._has(pending.step) else "writing": text}

    def _has(self, step: int) -> bool:
        """Whether this step is complete; False where the store does not answer."""
        with contextlib.suppress(OSError):
            return self._folder.has(step)
        return False

    def _clear_away(self, pending: _Pending, failure: str) -> None:
        self._half_written.add(pending.step)
        processes.from_first(self._remove_half_written)
        self._reload()
        pause = RETRY_PAUSES[min(self._num_failed, len(RETRY_PAUSES) - 1)]
        self._num_failed += 1
        self._due = time.monotonic() + pause
        risk = "there is no checkpoint yet" if self._last is None else f"the last checkpoint is of step {self._last}"
        self._listener.warn(
            f"{self._folder.path / str(pending.step)}: not written: {failure}. Training goes on; {risk}, so "
            f"{pending.step - (self._last or 0)} steps and those to come are at risk. A checkpoint takes "
            f"{pending.costs['bytes'] / 1e6:.1f} MB; it is tried again "
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


def _without_tracebacks_of_orbax(record: logging.LogRecord) -> bool:
    """Log filter: threads of Orbax print pages on errors that are reported here in one line."""
    return not record.exc_info or "orbax" not in record.pathname
