"""Files that survive a full or missing disk: writes that fail are buffered in memory and retried later.

A disk that is full, read-only or gone does not end a run: training goes on, one warning says what to do, and what
waits is tried again, later each time. Each file gets what was written to it, in order and once: what a failure has
left half-written is cut off. Only what is in memory when a process is killed is lost.
"""

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dit_video.config.atomic import bad_name, sync, write_file
from dit_video.distributed import processes
from dit_video.storage.failures import Vanished, advice

LIMIT = 256 << 20
"""Bytes that may wait in memory."""

PICTURES_LIMIT = LIMIT // 4
"""The same for what only shows the run: pictures, of which there are many, must leave room for numbers."""

RETRY_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds after a failure until the next attempt; the last holds for all that follow."""

LAST_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts at the end of a run, by when its last checkpoint was waited for."""


class NotWritten(ValueError):
    """At the end of a run some of its record could not be written."""


@dataclasses.dataclass
class _Waiting:
    """Data buffered for a file.

    Attributes:
        whole: it replaces what the file holds; else it comes after that.
        parts: as they came.
        size: bytes of all parts.
    """

    whole: bool
    parts: list[bytes]
    size: int


@dataclasses.dataclass(frozen=True)
class RetryingFile:
    """A file with buffered writes; beyond `limit` bytes buffered in all, writes to this file are dropped."""

    files: "RetryingFiles"
    path: Path
    limit: int = LIMIT

    def append(self, data: bytes) -> None:
        """Adds to the end of the file, which is made where there is none."""
        self.files.take(self, data, whole=False)

    def replace(self, data: bytes) -> None:
        """Replaces the content of the file; its folder is made where there is none, but not the one above."""
        self.files.take(self, data, whole=True)

    def read(self) -> bytes:
        """The content of the file, buffered writes included; empty where there is no file."""
        return self.files.read(self.path)


class RetryingFiles:
    """The files of a run. As a context manager it waits on exit, for some seconds, until all is written."""

    def __init__(self, warn: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic):
        """`warn` is called at the first failure, with a remedy, and when it is over."""
        self.warn, self._clock = warn, clock
        self._waiting: dict[Path, _Waiting] = {}
        self._dropped: Counter[Path] = Counter()
        # Files that were written, and how long those were in which a failure may have left more.
        self._written: set[Path] = set()
        self._torn: dict[Path, int] = {}
        # Those with lines that a power loss would take.
        self._unsynced: set[Path] = set()
        self._num_failed, self._due = 0, 0.0

    def file(self, path: Path, *, limit: int = LIMIT) -> RetryingFile:
        return RetryingFile(self, path, limit)

    def take(self, file: RetryingFile, data: bytes, *, whole: bool) -> None:
        path, waiting = file.path, self._waiting.get(file.path)
        # What makes a file shorter must not be dropped: what it takes back would stay.
        shortens = whole and path in self._written
        if self._waiting and not shortens and sum(w.size for w in self._waiting.values()) + len(data) > file.limit:
            self._drop(path)
        elif waiting is None or whole:
            self._waiting[path] = _Waiting(whole, [data], len(data))
        else:
            waiting.parts.append(data)
            waiting.size += len(data)
        if waiting is None:
            self._attempt([path])
        elif self._clock() >= self._due:
            self.retry()

    def read(self, path: Path) -> bytes:
        waiting = self._waiting.get(path)
        later = b"" if waiting is None else b"".join(waiting.parts)
        if waiting is not None and waiting.whole:
            return later
        # What is no file, such as a pipe, may never give an answer.
        return (path.read_bytes()[: self._torn.get(path)] if path.is_file() else b"") + later

    def retry(self) -> bool:
        """Retries buffered writes now; whether all are written."""
        self._attempt(list(self._waiting))
        return not self._waiting

    def sync(self) -> None:
        """Writes what waits, and waits until what is written would outlast a power loss; a failure is said."""
        self.retry()
        for path in sorted(self._unsynced):
            try:
                sync(path)
                sync(path.parent)
            except FileNotFoundError:
                self._unsynced.discard(path)  # writing to it says more
                continue
            except OSError as error:
                self.warn(
                    f"{path}: cannot be synced: {error}; {advice(error)}. A power loss now would take its last lines"
                )
                return
            self._unsynced.discard(path)

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            NotWritten: something could not be written in some seconds, or was dropped; with the list.
        """
        for pause in LAST_PAUSES:
            if self.retry():
                break
            time.sleep(pause)
        self.sync()
        if lost := self._lost():
            raise NotWritten(f"{lost}. Checkpoints are not among these; mend the store before the next run")

    def __enter__(self) -> "RetryingFiles":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            processes.from_first(self.finish)
        elif not self.retry() or self._dropped:
            self.warn(self._lost())

    def _attempt(self, paths: list[Path]) -> None:
        failure = None
        for path in paths:
            # What was dropped leaves nothing behind.
            if (waiting := self._waiting.get(path)) is None:
                continue
            try:
                self._write(path, waiting)
            except OSError as error:
                failure = failure or (path, error)
                continue
            del self._waiting[path]
            self._torn.pop(path, None)
            self._written.add(path)
        if failure is not None:
            self._failed(*failure)
        elif self._num_failed and not self._waiting:
            self._num_failed = 0
            self.warn("all that waited in memory is written now")

    def _failed(self, path: Path, error: OSError) -> None:
        if not self._num_failed:
            self.warn(
                f"{path}: cannot be written: {type(error).__name__}: {error}; {advice(error)}. Training goes on; "
                f"what the run records waits in memory, up to {LIMIT >> 20} MiB, and is tried again until it is written"
            )
        self._due = self._clock() + RETRY_PAUSES[min(self._num_failed, len(RETRY_PAUSES) - 1)]
        self._num_failed += 1

    def _write(self, path: Path, waiting: _Waiting) -> None:
        if os.path.lexists(path) and not path.is_file():
            # Nobody can write to a folder, and who opens a pipe may wait for ever.
            aside = path.rename(bad_name(path))
            self.warn(f"{path}: is no file; it is kept as {aside.name}, and a file is written in its place")
        if not path.exists():
            if self._written and not any(written.exists() for written in self._written):
                # The place where a file system was mounted is a folder too, but not that of the run.
                raise Vanished("what was written there before is gone")
            path.parent.mkdir(exist_ok=True)
        data = b"".join(waiting.parts)
        if not waiting.whole:
            self._append(path, data)
            return
        write_file(path, data)

    def _append(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # Some file systems say on closing that there was no room.
        try:
            self._unsynced.add(path)
            try:
                size = os.fstat(descriptor).st_size
                self._torn[path] = min(size, self._torn.get(path, size))
                os.ftruncate(descriptor, self._torn[path])
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, self._torn[path])
            raise

    def _drop(self, path: Path) -> None:
        if not self._dropped:
            self.warn(f"{path}: more waits in memory than may; what does not fit is dropped and counted")
        self._dropped[path] += 1

    def _lost(self) -> str:
        """Data that is not in the files, in words."""
        waits = [f"{path}: {w.size} bytes not written" for path, w in self._waiting.items()]
        return "; ".join(waits + [f"{path}: {number} x dropped" for path, number in self._dropped.items()])
