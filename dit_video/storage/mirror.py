"""Mirror of a run in a bucket: its record is written to a local folder and copied to the bucket in the background.

A record is appended to and its files are renamed, which a bucket cannot do. So it is written in a folder, and what has
changed there is copied, whole files at a time: with each save, and at the end. Checkpoints never come here: they go
straight to the bucket and from it.
"""

import atexit
import dataclasses
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from dit_video.config.atomic import bad_name, is_temporary, write_file
from dit_video.config.json_file import check_kinds, read_object, write_json
from dit_video.distributed import processes
from dit_video.storage.bucket import Bucket, address
from dit_video.storage.failures import LAST_PAUSES, advice, fault, raised_by_stores
from dit_video.storage.user_cache import user_cache

# In a copy: which of its files are in the bucket as they are.
_MARK = "in_bucket.json"

# Folders of this process that are copies, and of what. No file says so: it might be a stranger's.
_copies: dict[Path, str] = {}

# Folders that go when this process ends.
_temporary: set[Path] = set()

# Not part of a record: who trains writes it himself.
_NO_RECORD = ("lock.json", _MARK)


class NotCopied(ValueError):
    """The last changes of a record are in a local folder and could not be copied to the bucket."""


@runtime_checkable
class RunRecord(Protocol):
    """The record of a run (metrics, events, experiment): `folder` is where it is read and written."""

    folder: Path

    def pull(self, needed: str) -> None:
        """Downloads what another machine has written; a run without the file `needed` has not begun."""
        ...

    def push(self) -> None:
        """Uploads what has changed here."""
        ...


class LocalRecord:
    """A record in a run folder: nothing to copy."""

    def __init__(self, folder: Path):
        self.folder = folder

    def pull(self, needed: str) -> None:
        del needed

    def push(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class _Known:
    """A local file that equals the object of this generation."""

    generation: str
    size: int
    mtime_ns: int

    @classmethod
    def from_json(cls, content: Any) -> "_Known":
        """Raises ValueError where `content` is of another kind."""
        if not isinstance(content, dict):
            raise ValueError(f"holds {type(content).__name__}, not an object")
        check_kinds(content, {"generation": str, "size": int, "mtime_ns": int})
        bytes.fromhex(content["generation"])
        return cls(content["generation"], content["size"], content["mtime_ns"])

    def is_of(self, file: Path) -> bool:
        return file.is_file() and (self.size, self.mtime_ns) == _size_and_time(file)


class BucketRecord:
    """A record in a bucket: `folder` is a local copy of `where`, which is gs://bucket/run."""

    def __init__(self, where: str, folder: Path):
        self.folder, self._bucket = folder, Bucket(where)
        self._known: dict[str, _Known] = {}
        try:
            self._known = {name: _Known.from_json(known) for name, known in read_object(folder / _MARK).items()}
        except FileNotFoundError:
            pass
        except ValueError as error:
            # Nobody knows which of these files are newer than those in the bucket.
            aside = folder.rename(bad_name(folder))
            print(f"{error}; this machine's copy of the record is kept in {aside}", file=sys.stderr)
        _copies[folder] = where

    def pull(self, needed: str) -> None:
        """Downloads the files at the top of the run, not those in folders: a run does not need pictures to resume."""
        read, known = self._bucket.read(needed), self._known.get(needed)
        if known is None or known.generation != read.generation.hex():
            # Another machine has begun or gone on since: what is here may be of a run that is no more.
            shutil.rmtree(self.folder, ignore_errors=True)
            self._known = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [] if read.content is None else self._bucket.top()
        for name in names:
            if name in _NO_RECORD:
                continue
            file, known = self.folder / name, self._known.get(name)
            unless = bytes.fromhex(known.generation) if known is not None and file.is_file() else None
            read = self._bucket.read(name, unless=unless)
            if read.content is not None:
                write_file(file, read.content)
                self._known[name] = _Known(read.generation.hex(), *_size_and_time(file))
        self._write_mark()

    def push(self) -> None:
        try:
            for name, file in self._files():
                known = self._known.get(name)
                if known is None or not known.is_of(file):
                    before = _size_and_time(file)  # what is written meanwhile is left for the next time
                    generation = self._bucket.write(name, file.read_bytes())
                    assert generation is not None, "a write without condition returns the new generation"
                    self._known[name] = _Known(generation.hex(), *before)
        finally:
            self._write_mark()

    def _files(self) -> Iterator[tuple[str, Path]]:
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and file.name not in _NO_RECORD and not is_temporary(file.name):
                yield file.relative_to(self.folder).as_posix(), file

    def _write_mark(self) -> None:
        files = {name: dataclasses.asdict(known) for name, known in self._known.items()}
        write_json(self.folder / _MARK, files)


class Copying:
    """Copies a record to its bucket in the background; on exit it waits some minutes until all is copied."""

    def __init__(self, record: RunRecord, warn: Callable[[str], None]):
        """`warn` is called with a copy that failed and what to do."""
        self._record, self._warn = record, warn
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._last: Future[bool] | None = None

    def start(self) -> None:
        """Starts copying what is in the folder now.

        Raises:
            Exception: the copy before failed, and not by a failure of the bucket.
        """
        if self._last is not None and self._last.done():
            self._last.result()
        self._last = self._worker.submit(self._attempt, "it is tried again at the next save")

    def _attempt(self, then: str) -> bool:
        try:
            self._record.push()
        except raised_by_stores() as error:
            cause = fault(error)
            if cause is None:
                raise
            text = str(cause).partition("\n")[0]
            self._warn(f"{self._record.folder}: not copied to its bucket: {text}; {advice(error)}. {then}")
            return False
        return True

    def __enter__(self) -> "Copying":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._worker.shutdown()
        if error is None:
            # The others wait: when they end, this process is ended soon after.
            processes.from_first(self._finish)
        elif processes.is_first():
            self._attempt("The same command copies it")

    def _finish(self) -> None:
        for pause in LAST_PAUSES:
            if self._attempt(f"It is the end of this run: trying again in {pause:.0f} s"):
                return
            time.sleep(pause)
        if not self._attempt("It was the last attempt"):
            raise NotCopied(
                f"{self._record.folder}: the end of the record is there and not in the bucket; mend what is said above "
                "and give the same command again"
            )


def record_of(run: Path) -> RunRecord:
    """The record of a run folder, or of gs://bucket/run."""
    where = address(run)
    if where is None:
        return LocalRecord(run)
    # Processes may share a home, and one of them writes the record.
    return BucketRecord(where, working_folder(where) if processes.is_first() else _temporary_folder(where))


def working_folder(where: str) -> Path:
    """Local folder with this machine's copy of the record of a run in a bucket."""
    # Not by its name: the folder of gs://a/b must not be in that of gs://a.
    return user_cache() / "runs" / hashlib.sha256(where.encode()).hexdigest()[:16] / where.rpartition("/")[2]


def local_copy(run: Path, needed: str) -> Path:
    """A folder to read a run from: `run` itself, or a temporary local copy of one in a bucket.

    Raises:
        FileNotFoundError: there is no `needed` in the bucket.
    """
    where = address(run)
    if where is None:
        return run
    folder = _temporary_folder(where)
    BucketRecord(where, folder).pull(needed)
    if not (folder / needed).is_file():
        raise FileNotFoundError(f"{where}: no run (it lacks {needed}); `dit-video train --workdir` makes one")
    return folder


def push(folder: Path) -> None:
    """Uploads what was written into the local copy of a run; nothing to do where it is the run itself.

    Raises:
        NotCopied: the bucket does not take it; says where it is instead.
    """
    if (where := address_of(folder)) is None:
        return
    try:
        BucketRecord(where, folder).push()
    except raised_by_stores() as error:
        if fault(error) is None:
            raise
        _temporary.discard(folder.parent)
        text = str(error).partition("\n")[0]
        raise NotCopied(f"{where}: not copied there: {text}; {advice(error)}. It is in {folder} instead") from error


def address_of(folder: Path) -> str | None:
    """Address of the run in a bucket that this folder is a local copy of; None where it is a run itself."""
    return _copies.get(folder)


def _temporary_folder(where: str) -> Path:
    if not _temporary:
        atexit.register(_remove_temporary)
    parent = Path(tempfile.mkdtemp(prefix="dit_video_"))
    _temporary.add(parent)
    return parent / where.rpartition("/")[2]


def _remove_temporary() -> None:
    for folder in _temporary:
        shutil.rmtree(folder, ignore_errors=True)


def _size_and_time(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
