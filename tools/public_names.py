"""Writes dit_video/__init__.pyi: what type checkers and editors know of `from dit_video import NAME`.

    python -m tools.public_names

The names are those of dit_video/config/names.py; a test says when the file is not theirs.
"""

import itertools
from pathlib import Path

from dit_video.config.names import PUBLIC

STUB = Path(__file__).parent.parent / "dit_video" / "__init__.pyi"


def stub() -> str:
    """The text of the stub."""
    lines = ["# Written by `python -m tools.public_names`.", "# ruff: noqa: I001"]
    by_module = sorted((module, name) for name, module in PUBLIC.items())
    for module, names in itertools.groupby(by_module, key=lambda item: item[0]):
        lines += [f"from {module} import {name} as {name}" for _, name in names]
    return "\n".join([*lines, "", "__version__: str", ""])


if __name__ == "__main__":
    STUB.write_text(stub())
