"""The folder of a run's checkpoint steps, on a file system or in a bucket: which are complete, and setting steps aside.

In a file system a step has another name until it is complete. A bucket cannot rename: there Orbax writes a file into a
step that says so when all else is written.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from etils import epath

from dit_video.config.json_file import check_kinds, parse_object
from dit_video.storage.bucket import files_of_buckets
from dit_video.storage.failures import Unreadable, Vanished, as_os_errors
from dit_video.storage.mirror import address_of

FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints_damaged"

AnyPath: TypeAlias = Path | epath.Path

UNFINISHED = "the save was never finished"
"""Reason for which a half-written step is set aside."""

_COMPLETE = "commit_success.txt"

# Orbax looks for what it has written with these in the path as a pattern, and finds nothing.
_PATTERN = "*?["

# Bytes of a file that are read at once.
_BLOCK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Aside:
    """A step that was set aside, with its note."""

    folder: str
    bytes: int
    why: str | None
    found: str | None


@runtime_checkable
class Steps(Protocol):
    """Checkpoint steps: folders named by their number, below `path`."""

    path: AnyPath

    def check(self) -> None:
        """Checks that the folder is still there: an unmounted file system must not be written under its mount point.

        Raises:
            Vanished: the folder was there when this was made.
        """
        ...

    def exists(self) -> bool:
        """Whether the folder exists."""
        ...

    def has(self, step: int) -> bool:
        """Whether this step exists and is complete."""
        ...

    def complete(self) -> list[int]:
        """Complete steps in order, listed anew; none where there is no folder.

        Raises:
            OSError: it cannot be listed.
        """
        ...

    def read(self, step: int) -> None:
        """Reads all files of a step, to no end but to know that they can be read.

        Raises:
            FileNotFoundError: there is no such step.
            OSError: a file cannot be read, or not the one that is listed.
        """
        ...

    def unopenable(self, step: int) -> str | None:
        """A pipe, socket or device in a step, at which a reader would wait for ever; None where all are plain files."""
        ...

    def unfinished(self) -> list[str]:
        """Names of steps whose save is in progress, or was killed."""
        ...

    def half_written(self, step: int) -> list[str]:
        """Names of half-written folders of one step."""
        ...

    def remove(self, name: str) -> None:
        """Deletes as much of a step as possible.

        Raises:
            OSError: something of it is left.
        """
        ...

    def set_aside(self, name: str, why: str) -> str:
        """Moves a step aside, with a note of the reason; returns its new path."""
        ...

    def aside(self) -> list[Aside]:
        """Steps that were set aside."""
        ...

    def size(self, step: int) -> int:
        """Bytes of all files of a step."""
        ...


class LocalSteps:
    """Checkpoint steps on a file system."""

    def __init__(self, workdir: Path):
        """Raises ValueError for a path that Orbax takes for a pattern, and for a link to what is not there."""
        folder = workdir / FOLDER
        if folder.is_symlink() and not folder.exists():
            where = folder.readlink()
            raise ValueError(f"{folder} is a link to {where}, which is not there; mount it, or mend the link")
        self.path: AnyPath = folder.resolve()  # Orbax takes no relative path
        if letters := " and ".join(letter for letter in _PATTERN if letter in str(self.path)):
            raise ValueError(
                f"{self.path}: {letters} in a path stands for a pattern to Orbax, which would not find what it has "
                "written; rename the folder, or use another --workdir"
            )
        self._aside = workdir / DAMAGED_FOLDER

    def check(self) -> None:
        if not self.path.is_dir():
            raise Vanished(f"{self.path} is gone; look whether its file system is mounted")

    def exists(self) -> bool:
        return self.path.is_dir()

    def has(self, step: int) -> bool:
        return (self.path / str(step)).is_dir()

    def complete(self) -> list[int]:
        try:
            with os.scandir(self.path) as entries:
                return sorted(int(entry.name) for entry in entries if entry.name.isdecimal() and entry.is_dir())
        except FileNotFoundError:
            return []

    def read(self, step: int) -> None:
        top = self.path / str(step)
        for folder, _, names in os.walk(top, onerror=_raise):
            for name in names:
                try:
                    # Whoever reads the step says of what else there is that it is none of its files.
                    if stat.S_ISREG(os.stat(os.path.join(folder, name)).st_mode):
                        _read_through(os.path.join(folder, name))
                except FileNotFoundError as error:
                    if not top.is_dir():
                        raise  # a training that goes on at this moment deletes old steps
                    raise Unreadable(f"{os.path.join(folder, name)}: listed, and not there") from error

    def unopenable(self, step: int) -> str | None:
        for folder, _, names in os.walk(self.path / str(step)):
            for path in (os.path.join(folder, name) for name in names):
                with contextlib.suppress(OSError):  # what is not there at all is the reader's to find
                    if not stat.S_ISREG(os.stat(path).st_mode):
                        return path
        return None

    def unfinished(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("*.orbax-checkpoint-tmp*"))

    def half_written(self, step: int) -> list[str]:
        return sorted(path.name for path in self.path.glob(f"{step}.orbax-checkpoint-tmp*"))

    def remove(self, name: str) -> None:
        try:
            shutil.rmtree(self.path / name)
        except OSError:
            shutil.rmtree(self.path / name, ignore_errors=True)
            if (self.path / name).exists():
                raise

    def set_aside(self, name: str, why: str) -> str:
        target, numbers = self._aside / name, itertools.count(2)
        while target.exists():
            target = self._aside / f"{name}_{next(numbers)}"
        self._aside.mkdir(exist_ok=True)
        target.with_name(f"{target.name}.json").write_bytes(_note(why))
        shutil.move(self.path / name, target)
        return str(target)

    def aside(self) -> list[Aside]:
        asides = []
        for folder in sorted(path for path in self._aside.glob("*") if path.is_dir()):
            note = folder.with_name(f"{folder.name}.json")
            note_content = _read_note(note.read_bytes()) if note.is_file() else {}
            asides.append(Aside(str(folder), _num_bytes(folder), note_content.get("why"), note_content.get("found")))
        return asides

    def size(self, step: int) -> int:
        return _num_bytes(self.path / str(step))


def _read_through(path: str) -> None:
    with open(path, "rb") as file:
        while file.read(_BLOCK):
            pass


class BucketSteps:
    """Checkpoint steps in a bucket, at `where`, which is gs://bucket/run."""

    def __init__(self, where: str):
        self._files = files_of_buckets()
        self._folder, self._aside = f"{where}/{FOLDER}", f"{where}/{DAMAGED_FOLDER}"
        self.path: AnyPath = epath.Path(self._folder)

    def check(self) -> None:
        pass  # a bucket that does not answer says so

    @as_os_errors()
    def exists(self) -> bool:
        return self._files.isdir(self._folder)

    @as_os_errors()
    def has(self, step: int) -> bool:
        return self._files.exists(f"{self._folder}/{step}/{_COMPLETE}")

    @as_os_errors()
    def complete(self) -> list[int]:
        return sorted(int(name) for name in self._names() if self.has(int(name)))

    @as_os_errors()
    def read(self, step: int) -> None:
        if not (files := self._files.find(f"{self._folder}/{step}", detail=True)):
            raise FileNotFoundError(f"{self._folder}/{step}")
        for path, about in files.items():
            for start in range(0, about["size"], _BLOCK):
                self._files.cat_file(path, start=start, end=min(start + _BLOCK, about["size"]))

    def unopenable(self, step: int) -> str | None:
        del step
        return None  # a bucket has nothing but objects

    @as_os_errors()
    def unfinished(self) -> list[str]:
        return sorted(name for name in self._names() if not self.has(int(name)))

    def _names(self) -> list[str]:
        """Numbers of steps, complete or not."""
        try:
            paths = self._files.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        names = (name.rstrip("/").rpartition("/")[2] for name in paths)
        return [name for name in names if name.isdecimal()]

    @as_os_errors()
    def half_written(self, step: int) -> list[str]:
        return [str(step)] if self._files.isdir(f"{self._folder}/{step}") and not self.has(step) else []

    @as_os_errors()
    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._folder}/{name}", recursive=True)

    @as_os_errors()
    def set_aside(self, name: str, why: str) -> str:
        source, target = f"{self._folder}/{name}", f"{self._aside}/{name}"
        numbers = itertools.count(2)
        while self._files.exists(target):
            target = f"{self._aside}/{name}_{next(numbers)}"
        self._files.pipe_file(f"{target}.json", _note(why))
        self._files.copy(source, target, recursive=True)
        # First what says that it is complete: nobody who looks now takes it for a good one.
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{source}/{_COMPLETE}")
        self.remove(name)
        return target

    @as_os_errors()
    def aside(self) -> list[Aside]:
        try:
            files = self._files.find(self._aside, detail=True)
        except FileNotFoundError:
            return []
        sizes: Counter[str] = Counter()
        notes = {}
        for path, about in files.items():
            name, inside, _ = path.partition(f"/{DAMAGED_FOLDER}/")[2].partition("/")
            if inside:
                sizes[name] += about["size"]
            else:
                notes[name] = _read_note(self._files.cat_file(path))
        note_of = {name: notes.get(f"{name}.json", {}) for name in sizes}
        return [
            Aside(f"{self._aside}/{name}", size, note_of[name].get("why"), note_of[name].get("found"))
            for name, size in sorted(sizes.items())
        ]

    @as_os_errors()
    def size(self, step: int) -> int:
        return self._files.du(f"{self._folder}/{step}")


def steps_of(workdir: Path) -> Steps:
    """Checkpoint steps of the run in `workdir`, which may be a copy of one in a bucket."""
    where = address_of(workdir)
    return LocalSteps(workdir) if where is None else BucketSteps(where)


def _raise(error: OSError) -> None:
    raise error


def _num_bytes(folder: AnyPath) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _read_note(content: bytes) -> dict[str, Any]:
    """What `_note` wrote; nothing where it is damaged, for the step beside it is what counts."""
    try:
        note = parse_object(content)
        check_kinds(note, dict.fromkeys(note, str))
    except ValueError:
        return {}
    return note


def _note(why: str) -> bytes:
    return (json.dumps({"found": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "why": why}, indent=1) + "\n").encode()
