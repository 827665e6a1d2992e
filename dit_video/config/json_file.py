"""JSON files, read with limits for untrusted content and types checked, written atomically; errors name the file."""

import json
import reprlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.config.atomic import write_file

# Values take up to 24 times the bytes of their text (`{},` is an object of 64 bytes), so 6 GB at most. A manifest has
# some 400 bytes for a video.
MAX_BYTES = 256 << 20

Kinds = Mapping[str, type | tuple[type, ...]]
"""The type of each field of an object: int, float (any number), str, bool, list, dict, NoneType; or several."""

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_object(path: Path, kinds: Kinds = {}) -> dict[str, Any]:  # noqa: B006 (no one changes a Mapping)
    """Reads a JSON object from a file.

    Args:
        kinds: of the fields that it must have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no plain file, more than MAX_BYTES, or whatever `parse_object` and `check_kinds` refuse.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        # Of a pipe nothing may ever come.
        raise ValueError(f"{path}: is a pipe, a socket or a device, not a file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{path}: {status.st_size} bytes, more than the {MAX_BYTES} that are read of a JSON file")
    try:
        content = parse_object(path.read_bytes())
        check_kinds(content, kinds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content


def parse_object(text: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        ValueError: no JSON, nested too deep for Python, or another value than an object.
    """
    try:
        content = json.loads(text.decode())
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON (byte {error.start} is not UTF-8)") from error
    except ValueError as error:
        # Of json, or of an integer with thousands of digits.
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds {type(content).__name__}, not an object")
    return content


def check_kinds(content: Mapping[str, Any], kinds: Kinds) -> None:
    """Raises ValueError where a field is missing, or of another type than `kinds` says; names it and its value."""
    for name, kind in kinds.items():
        expected = kind if isinstance(kind, tuple) else (kind,)
        if name not in content:
            raise ValueError(f"has no {name}")
        value = content[name]
        if not _is_of(value, expected):
            words = " or ".join(_WORDS[one] for one in expected)
            raise ValueError(f"{name}={reprlib.repr(value)}: must be {words}")


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """In Python true is a whole number, and a whole number no float; in JSON it is the other way round."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically: it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(data, indent=1) + "\n").encode())


def other_values(
    actual: Mapping[str, Any], expected: Mapping[str, Any], whose: str, *, actually: str = "cache"
) -> list[str]:
    """Compares settings with those expected: a line for each difference; `actually` and `whose` name the two sides.

    Settings within settings are named by their path; of a list the first value that differs is shown.
    """
    return [
        f"  {path}: {actually} {mine}, {whose} {theirs}"
        for name in expected
        for path, mine, theirs in _differences(name, actual.get(name), expected[name])
    ]


def _differences(path: str, actual: Any, expected: Any) -> Iterator[tuple[str, str, str]]:
    """Path, actual and expected value of everything that differs, in words short enough for a line."""
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        for name in {**expected, **actual}:
            yield from _differences(f"{path}.{name}", actual.get(name), expected.get(name))
    elif isinstance(actual, Sequence) and isinstance(expected, Sequence) and not isinstance(actual, str):
        if len(actual) != len(expected):
            yield path, f"has {len(actual)} values", f"{len(expected)}"
        elif differ := [i for i, (a, b) in enumerate(zip(actual, expected)) if a != b]:
            yield from _differences(f"{path}[{differ[0]}]", actual[differ[0]], expected[differ[0]])
    elif actual != expected:
        yield path, *in_short(actual, expected)


def in_short(first: Any, second: Any, length: int = 60) -> tuple[str, str]:
    """Two values as JSON for one line; where they are long, what surrounds the place where they begin to differ."""
    texts = json.dumps(first), json.dumps(second)
    same = next((i for i, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
    begin = max(0, same - length // 3)

    def cut(text: str) -> str:
        if len(text) <= length:
            return text
        return ("..." if begin else "") + text[begin : begin + length] + ("..." if text[begin + length :] else "")

    return cut(texts[0]), cut(texts[1])
