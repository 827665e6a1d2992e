"""Documents of text in files and folders: .txt, one document each, and .jsonl, one in each line; also .gz and .zst.

Whatever a file holds, it is counted and named, and never ends the reading of the others.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

KINDS = (".txt", ".jsonl")
PACKED = (".gz", ".zst")
# Of a line of JSON, which is read whole before it means anything.
MOST_LINE_BYTES = 64 << 20


class TextFile(NamedTuple):
    """A file to be read; `name` is its path within its source."""

    source: str
    name: str
    path: Path


class FileReport:
    """What became of a file.

    Attributes:
        reason: why the file is left out; empty where it has text.
        sha256: of its bytes.
    """

    def __init__(self):
        self.reason, self.sha256 = "", ""
        self._counts: dict[str, int] = {}

    def count(self, what: str, number: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + number

    @property
    def notes(self) -> str:
        return "; ".join(f"{number} {what}" for what, number in self._counts.items())


def list_text_files(sources: Sequence[str], out: Path) -> list[TextFile]:
    """All files in files and folders, in order; what lies in `out` is none of them.

    Raises:
        FileNotFoundError: a source is missing.
    """
    found, out = [], out.resolve()
    for source in map(Path, sources):
        if source.is_file():
            found.append(TextFile(str(source.parent), source.name, source))
        elif source.is_dir():
            for folder, folders, names in os.walk(source):
                folders[:] = sorted(name for name in folders if (Path(folder) / name).resolve() != out)
                paths = [Path(folder) / name for name in sorted(names)]
                found += [TextFile(str(source), path.relative_to(source).as_posix(), path) for path in paths]
        else:
            raise FileNotFoundError(f"{source}: is no file and no folder")
    return found


def documents_of(file: TextFile, field: str, report: FileReport) -> Iterator[str]:
    """The documents of a file; what is wrong with it goes into the report.

    Args:
        field: of the JSON object of a line, the text.
    """
    kind = _kind(file.name)
    if kind is None:
        report.reason = f"is none of {', '.join(KINDS)}, nor one of these as {' or '.join(PACKED)}"
        return
    number = 0
    try:
        with file.path.open("rb") as plain:
            report.sha256 = hashlib.file_digest(plain, "sha256").hexdigest()
        with _opened(file.path) as opened:
            for document in _whole(opened, report) if kind == ".txt" else _lines(opened, field, report):
                if document:
                    number += 1
                    yield document
                elif kind != ".txt":
                    report.count("empty documents left out")
    except (OSError, EOFError, ValueError) as error:
        report.count(f"error, which ended it early ({error})")
    if not number:
        report.reason = report.notes or "is empty"


def _kind(name: str) -> str | None:
    lower = name.lower()
    for packed in PACKED:
        lower = lower.removesuffix(packed)
    return next((kind for kind in KINDS if lower.endswith(kind)), None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    match path.suffix.lower():
        case ".gz":
            with gzip.open(path) as file:
                yield file
        case ".zst":
            # Here: a slow import, and few files are packed so.
            import pyarrow

            with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd") as stream:
                yield io.BufferedReader(_Raw(stream))
        case _:
            with path.open("rb") as file:
                yield file


class _Raw(io.RawIOBase):
    """A stream of pyarrow, of which lines can be read."""

    def __init__(self, stream):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _whole(file: io.BufferedIOBase, report: FileReport) -> Iterator[str]:
    yield _decoded(file.read(), report)


def _lines(file: io.BufferedIOBase, field: str, report: FileReport) -> Iterator[str]:
    while line := file.readline(MOST_LINE_BYTES):
        if len(line) == MOST_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MOST_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            report.count(f"lines longer than {MOST_LINE_BYTES >> 20} MiB left out")
        elif line.strip():
            try:
                value = json.loads(_decoded(line, report))
            except (ValueError, RecursionError):
                report.count("lines that are no JSON left out")
                continue
            if isinstance(value, dict) and isinstance(value.get(field), str):
                # Halves of characters, which JSON can spell, are no UTF-8.
                yield value[field].encode(errors="replace").decode()
            else:
                report.count(f"lines without a text {field!r} left out")


def _decoded(data: bytes, report: FileReport) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        report.count("documents with bytes that are no UTF-8, replaced by \ufffd")
        return data.decode(errors="replace")
