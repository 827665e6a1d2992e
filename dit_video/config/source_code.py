"""Source code of configuration: the Python expression that makes a tree of frozen values, with the defaults beside it.

It is for people, who go on from it: what is as by default is left out and named in a comment, what a component is
stands beside it, and all names are public ones (names.py).
"""

import dataclasses
import enum
import inspect
import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dit_video.config.components import to_json
from dit_video.config.names import PUBLIC
from dit_video.config.user_file import ExperimentError

_WIDTH = 120
_STEP = "    "


class Source(NamedTuple):
    """An expression, and the public names that it is made of."""

    text: str
    names: tuple[str, ...]


def source_of(component: Any, *, indent: int = 0) -> Source:
    """The expression that makes a component; evaluated with its names, it is equal to it.

    Args:
        indent: columns that the expression's lines after the first stand in from the left, and about those that stand
            before the first.

    Raises:
        ExperimentError: it has a component that is not of this package; says what to copy.
    """
    names: set[str] = set()
    text = _written(component, indent, names)
    # As tools that sort imports do: constants, classes, functions.
    return Source(text, tuple(sorted(names, key=lambda name: (name != name.upper(), name[0].islower(), name))))


def _written(value: Any, indent: int, names: set[str]) -> str:
    """An expression on one line where it fits, else on several."""
    short = _short(value, names)
    if len(short) + indent < _WIDTH and not (dataclasses.is_dataclass(value) and _has_parts(value, indent)):
        return short
    if dataclasses.is_dataclass(value):
        return _component(value, indent, names)
    inner = indent + len(_STEP)
    if isinstance(value, Mapping):
        items = [f"{_text(key)}: {_written(item, inner, names)}," for key, item in value.items()]
        return _broken("{", items, "}", indent)
    if isinstance(value, tuple) and value:
        return _broken("(", [f"{_written(item, inner, names)}," for item in value], ")", indent)
    return short


def _component(value: Any, indent: int, names: set[str]) -> str:
    inner = indent + len(_STEP)
    items = [f"{name}={_written(item, inner, names)}," for name, item, is_default in _fields(value) if not is_default]
    defaults = [f"{name}={_short(item, set())}" for name, item, is_default in _fields(value) if is_default]
    if defaults:
        lead = "# as by default: "
        lines = textwrap.wrap(
            ", ".join(defaults), _WIDTH - inner - len(lead), break_long_words=False, break_on_hyphens=False
        )
        items += [lead + lines[0], *(f"#   {line}" for line in lines[1:])]
    return _broken(f"{_name(type(value), names)}(", items, ")", indent, comment=_summary(type(value), indent))


def _broken(begin: str, items: list[str], end: str, indent: int, comment: str = "") -> str:
    lead = " " * indent
    head = f"{begin}  # {comment}" if comment else begin
    return "\n".join([head, *(f"{lead}{_STEP}{item}" for item in items), lead + end])


def _has_parts(value: Any, indent: int) -> bool:
    """Whether a component is written over several lines though it would fit on one: for its parts, or its defaults."""
    fields = list(_fields(value))
    return any(dataclasses.is_dataclass(item) and not is_default for _, item, is_default in fields) or (
        indent <= 2 * len(_STEP) and bool(fields)
    )


def _short(value: Any, names: set[str]) -> str:
    """An expression on one line, without comments."""
    if dataclasses.is_dataclass(value):
        parts = [f"{name}={_short(item, names)}" for name, item, is_default in _fields(value) if not is_default]
        return f"{_name(type(value), names)}({', '.join(parts)})"
    if isinstance(value, enum.Enum):
        return f"{_name(type(value), names)}.{value.name}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {_short(item, names)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        parts = [_short(item, names) for item in value]
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    """A text in double quotes; as JSON has it, which Python reads alike."""
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _fields(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Name and value of each field that a component is made with, and whether it is the default."""
    for field in dataclasses.fields(value):
        if field.init:
            item = getattr(value, field.name)
            yield field.name, item, _is_default(field, item)


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    """Compared as they are recorded: 1 and 1.0 differ there."""
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        return False
    return json.dumps(to_json(value)) == json.dumps(to_json(default))


def _name(kind: type, names: set[str]) -> str:
    if PUBLIC.get(kind.__name__) != kind.__module__:
        raise ExperimentError(
            f"{kind.__module__}.{kind.__qualname__}: is a class of one's own, not of this package, so that no code can "
            "be written that makes it; copy the experiment file that defines it and change the copy"
        )
    names.add(kind.__name__)
    return kind.__name__


def _summary(kind: type, indent: int) -> str:
    """First line of a class's docstring, where there is room for it."""
    line = (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")
    return line if indent + len(kind.__name__) + len(line) + 10 < _WIDTH else ""
