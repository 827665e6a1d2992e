"""JSON lines of a run's record (metrics, events, goodput, saves), read with types checked.

A line that is no JSON, or not of its kind, harms no other: whoever writes the file keeps it aside in NAME.bad and names
it, readers leave it out. The last line alone may be half-written, as a kill leaves it, and is then dropped.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from dit_video.config.json_file import parse_object
from dit_video.storage.retrying_files import RetryingFile

Line = TypeVar("Line")
Read = Callable[[dict[str, Any]], Line]
"""Makes a line of its JSON object; raises ValueError where it is of another kind."""


class BadLine(NamedTuple):
    """A line that does not fit; `number` is its place in the file, from 1."""

    number: int
    text: bytes
    why: str


@dataclasses.dataclass(frozen=True)
class Lines(Generic[Line]):
    """Lines of a file.

    Attributes:
        good: those that fit.
        texts: as they stand in the file, without line breaks.
        bad: the others.
    """

    good: list[Line]
    texts: list[bytes]
    bad: list[BadLine]


def parse_lines(content: bytes, read: Read[Line]) -> Lines[Line]:
    """Parses JSON lines; empty ones and a half-written last one are left out."""
    lines: Lines[Line] = Lines([], [], [])
    texts = content.split(b"\n")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = read(parse_object(text))
        except ValueError as error:
            # Without a line break: a kill came while it was written.
            if number < len(texts):
                lines.bad.append(BadLine(number, text, str(error)))
            continue
        lines.good.append(line)
        lines.texts.append(text)
    return lines


def read_lines(path: Path, read: Read[Line]) -> list[Line]:
    """The lines of a file that fit, for those who only read; none where there is no file."""
    return parse_lines(path.read_bytes(), read).good if path.is_file() else []


class LinesFile(Generic[Line]):
    """A file of JSON lines that this process alone writes. Opening it moves bad lines aside and says which."""

    def __init__(self, file: RetryingFile, read: Read[Line]):
        self.path, self._file, self._read = file.path, file, read
        content = file.read()
        lines = parse_lines(content, read)
        if lines.bad:
            aside = file.files.file(file.path.with_name(f"{file.path.name}.bad"))
            aside.append(_joined(bad.text for bad in lines.bad))
            named = ", ".join(f"{bad.number} ({bad.why})" for bad in lines.bad[:3])
            more = f" and {len(lines.bad) - 3} more" if lines.bad[3:] else ""
            file.files.warn(
                f"{file.path}: damaged lines are kept in {aside.path.name}: {named}{more}; the other "
                f"{len(lines.good)} are used"
            )
        if (good := _joined(lines.texts)) != content:
            file.replace(good)

    def lines(self) -> list[Line]:
        return parse_lines(self._file.read(), self._read).good

    def append(self, *lines: Mapping[str, Any]) -> None:
        self._file.append(_joined(json.dumps(line).encode() for line in lines))

    def replace(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replaces all lines; a file that would hold none is not made."""
        content = _joined(json.dumps(line).encode() for line in lines)
        if content != self._file.read():
            self._file.replace(content)


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"".join(text + b"\n" for text in texts)
