"""The record of a run in a bucket, by way of a copy in a folder of this machine.

A record is appended to and its files are renamed, which a bucket cannot do. So it is written in a folder, and what has
changed there is copied, whole files at a time: with each save, and at the end. Checkpoints never come here: they go
straight to the bucket and from it.
"""

import atexit
import contextlib
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from dit_video import processes
from dit_video.json_file import read_object
from dit_video.object_store import Bucket, address
from dit_video.storage import LAST_PAUSES, advice, fault, raised_by_stores
from dit_video.user_cache import user_cache

# In a copy: which of its files are in the bucket as they are.
_MARK = "in_bucket.json"

# Folders of this process that are copies, and of what. No file says so: it might be a stranger's.
_copies: dict[Path, str] = {}


class NotCopied(ValueError):
    """The end of a record is in a folder of this machine and not in the bucket."""


@runtime_checkable
class Record(Protocol):
    """The record of a run: `folder` is where it is read and written."""

    folder: Path

    def pull(self, needed: str) -> None:
        """Gets what another machine has written; a run that lacks the file `needed` has not begun."""
        ...

    def push(self) -> None:
        """Gives what has changed here."""
        ...


class InFolder:
    """Where the record is written is where it is kept."""

    def __init__(self, folder: Path):
        self.folder = folder

    def pull(self, needed: str) -> None:
        del needed

    def push(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class _Known:
    """A file of a copy that is as the object of this generation."""

    generation: str
    size: int
    mtime_ns: int

    def is_of(self, file: Path) -> bool:
        return file.is_file() and (self.size, self.mtime_ns) == _size_and_time(file)


class InBucket:
    """A copy, in `folder`, of what is kept at `where`, which is gs://bucket/run."""

    def __init__(self, where: str, folder: Path):
        self.folder, self._bucket = folder, Bucket(where)
        self._known: dict[str, _Known] = {}
        with contextlib.suppress(FileNotFoundError):
            self._known = {name: _Known(**known) for name, known in read_object(folder / _MARK).items()}
        _copies[folder] = where

    def pull(self, needed: str) -> None:
        """Gets the files of the run folder itself, not those of folders in it: nobody goes on from pictures."""
        if self._bucket.read(needed).content is None:
            # The bucket was emptied: what is here is of a run that is no more.
            shutil.rmtree(self.folder, ignore_errors=True)
            self._known = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self._bucket.top():
            file, known = self.folder / name, self._known.get(name)
            unless = bytes.fromhex(known.generation) if known is not None and file.is_file() else None
            found = self._bucket.read(name, unless=unless)
            if found.content is not None:
                temporary = file.with_name(f"{name}.tmp")
                temporary.write_bytes(found.content)
                temporary.replace(file)
                self._known[name] = _Known(found.generation.hex(), *_size_and_time(file))
        self._write_mark()

    def push(self) -> None:
        for name, file in self._files():
            known = self._known.get(name)
            if known is None or not known.is_of(file):
                before = _size_and_time(file)  # what is written meanwhile is left for the next time
                generation = self._bucket.write(name, file.read_bytes())
                assert generation is not None, "written whatever was there"
                self._known[name] = _Known(generation.hex(), *before)
        self._write_mark()

    def _files(self) -> Iterator[tuple[str, Path]]:
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and file.name != _MARK and file.suffix != ".tmp":
                yield file.relative_to(self.folder).as_posix(), file

    def _write_mark(self) -> None:
        files = {name: dataclasses.asdict(known) for name, known in self._known.items()}
        temporary = self.folder / f"{_MARK}.tmp"
        temporary.write_text(json.dumps(files), encoding="utf-8")
        temporary.replace(self.folder / _MARK)


class Copying:
    """Copies a record in the background, and on the way out, some minutes where it must, until all is copied."""

    def __init__(self, record: Record, say: Callable[[str], None]):
        """`say` is told of a copy that failed and what to do."""
        self._record, self._say = record, say
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="record")

    def start(self) -> None:
        """What is in the folder now is copied soon."""
        self._worker.submit(self._attempt, "it is tried again at the next save")

    def _attempt(self, then: str) -> bool:
        try:
            self._record.push()
        except raised_by_stores() as error:
            cause = fault(error)
            if cause is None:
                raise
            text = str(cause).partition("\n")[0]
            self._say(f"{self._record.folder}: not copied to its bucket: {text}; {advice(error)}. {then}")
            return False
        return True

    def __enter__(self) -> "Copying":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._worker.shutdown()
        if not processes.is_first():
            return
        for pause in LAST_PAUSES if error is None else ():
            if self._attempt(f"It is the end of this run: trying again in {pause:.0f} s"):
                return
            time.sleep(pause)
        last = self._attempt("The same command copies it")
        if not last and error is None:
            raise NotCopied(
                f"{self._record.folder}: the end of the record is there and not in the bucket; mend what is said above "
                "and give the same command again"
            )


def record_of(run: Path) -> Record:
    """The record of a run that is trained here: of a run folder, or of gs://bucket/run."""
    where = address(run)
    return InFolder(run) if where is None else InBucket(where, working_folder(where))


def working_folder(where: str) -> Path:
    """Where this machine keeps its copy of the record of a run that it trains."""
    return user_cache() / "runs" / where.removeprefix("gs://")


def at_hand(run: Path, needed: str) -> Path:
    """The folder of a run that is to be read: `run` itself, or a copy that goes when this process ends.

    Raises:
        FileNotFoundError: there is no `needed` in the bucket.
    """
    where = address(run)
    if where is None:
        return run
    folder = Path(tempfile.mkdtemp(prefix="dit_video_")) / where.rpartition("/")[2]
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    InBucket(where, folder).pull(needed)
    if not (folder / needed).is_file():
        raise FileNotFoundError(f"{where}: no run (it lacks {needed}); `dit-video train --workdir` makes one")
    return folder


def give_back(folder: Path) -> None:
    """What was written into a run that is at hand goes where that is kept."""
    if (where := address_of(folder)) is not None:
        InBucket(where, folder).push()


def address_of(folder: Path) -> str | None:
    """Of which run in a bucket this folder is a copy; None where it is a run itself."""
    return _copies.get(folder)


def _size_and_time(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
