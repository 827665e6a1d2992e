"""JSON files that may be strangers', read into plain values: what they cannot be is said with the name of the file."""

import json
from pathlib import Path
from typing import Any

# Values take up to 24 times the bytes of their text (`{},` is an object of 64 bytes), so 6 GB at most. A manifest has
# some 400 bytes for a video.
MAX_BYTES = 256 << 20


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

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
