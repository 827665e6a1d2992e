"""Files of a data set as its manifest knows them: sizes are compared at every start, contents where that is cheap.

A manifest has {"files": {name: {"bytes": n, "sha256": "..."}}}; one from before has none, and nothing is compared.
"""

import hashlib
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dit_video.config.json_file import check_kinds

Files = Mapping[str, Mapping[str, Any]]


@runtime_checkable
class Sharded(Protocol):
    """A part of the data in a folder whose manifest knows its `files`."""

    directory: str

    def manifest(self) -> Any: ...


CHEAP = 64 << 20
"""Bytes of files, all together, whose contents are compared whenever they are opened."""

# Files whose contents were compared by this process, with size and time of change.
_compared: set[tuple[str, int, int, str]] = set()


def described(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files in a folder, for its manifest."""
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": _sha256(directory / name)}
        for name in sorted(names)
    }


def check_described(files: Any) -> None:
    """Raises ValueError where what a manifest says of its files is not valid; names the file."""
    check_kinds({"files": files}, {"files": dict})
    for name, file in files.items():
        if Path(name).name != name or not name.isprintable():
            raise ValueError(f"file {reprlib.repr(name)} is not in the folder")
        known = file if isinstance(file, dict) else {}
        if type(known.get("bytes")) is not int or not isinstance(known.get("sha256"), str):
            raise ValueError(f"files.{name}={reprlib.repr(file)}: must have bytes and sha256")


def check(directory: Path, files: Files, remedy: str) -> None:
    """Compares the sizes of files with those on record, and their contents where they are CHEAP to read.

    Raises:
        ValueError: a file is not the one that was written; names it, and ends with `remedy`.
    """
    if check_sizes(directory, files, remedy) <= CHEAP:
        check_contents(directory, files, remedy)


def check_sizes(directory: Path, files: Files, remedy: str) -> int:
    """Compares the sizes of files with those on record; raises as `check`. Returns their sum."""
    return sum(_size(directory / name, file, remedy) for name, file in files.items())


def check_contents(
    directory: Path, files: Files, remedy: str, advance: Callable[[int], object] = lambda num_bytes: None
) -> None:
    """Compares sizes and contents of files with those on record.

    Args:
        advance: called with the number of bytes that were read since the last call.

    Raises:
        ValueError: a file is not the one that was written; names it, and ends with `remedy`.
    """
    for name, file in files.items():
        path = directory / name
        size = _size(path, file, remedy)
        state = (os.fspath(path.absolute()), size, path.stat().st_mtime_ns, str(file["sha256"]))
        if state not in _compared and _sha256(path) != file["sha256"]:
            raise ValueError(
                f"{path}: is not the file that was written: its SHA-256 is another than in the manifest; {remedy}"
            )
        _compared.add(state)
        advance(size)


def _size(path: Path, file: Mapping[str, Any], remedy: str) -> int:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is not there, and the manifest has it; {remedy}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size != file["bytes"]:
        raise ValueError(f"{path}: has {status.st_size} bytes, the manifest says {file['bytes']}; {remedy}")
    return status.st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
