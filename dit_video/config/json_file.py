"""JSON files, read with limits for untrusted content and written atomically; errors name the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Values take up to 24 times the bytes of their text (`{},` is an object of 64 bytes), so 6 GB at most. A manifest has
# some 400 bytes for a video.
MAX_BYTES = 256 << 20


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: more than MAX_BYTES, no JSON, nested too deep for Python, or another value than an object.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes, more than the {MAX_BYTES} that are read of a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deep") from error
    except ValueError as error:
        # Of json, of the decoder of UTF-8, or of an integer with thousands of digits.
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, not an object")
    return content


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically: it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def other_values(actual: Mapping[str, Any], expected: Mapping[str, Any], whose: str) -> list[str]:
    """Compares the settings of a cache with those expected: a line for each difference; `whose` names the latter."""
    differ = [name for name, value in expected.items() if actual.get(name) != value]
    return [f"  {name}: cache {short(actual.get(name))}, {whose} {short(expected[name])}" for name in differ]


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
