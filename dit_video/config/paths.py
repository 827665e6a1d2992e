"""Paths that people write: ~ and $VARIABLES mean what they mean in a shell; and the fields of values that are paths."""

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def shell_word(word: str | os.PathLike) -> str:
    """A path, or a value, as it is typed into a shell: in quotes where it has spaces or signs in it."""
    return shlex.quote(str(word))


def expanded(text: str) -> str:
    """A path with a leading ~ or ~user, and with $NAME and ${NAME}, replaced.

    Raises:
        ValueError: it is empty; or names the variable that is not set, or the user who has no home here.
    """
    if not text:
        raise ValueError("is empty, as where a variable is not set; write . for the folder that you are in")

    def value(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        if name not in os.environ:
            raise ValueError(f"{text}: the environment variable {name} is not set; set it, or write the path out")
        return os.environ[name]

    path = os.path.expanduser(_VARIABLE.sub(value, text))
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"{text}: {user} is no home folder on this machine; write the path out, or ./{user}")
    return path


def expand(self: Any) -> None:
    """Replaces what is `expanded` in the fields of a frozen value that its class names in PATHS, while it is made.

    Fields that are None stay.

    Raises:
        ValueError: names the field beside what `expanded` says.
    """
    for name in self.PATHS:
        text = getattr(self, name)
        if text is None:
            continue
        try:
            object.__setattr__(self, name, expanded(text))
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.{name}={error}") from None


def with_paths(value: Any, move: Callable[[str], str]) -> Any:
    """A tree of frozen values with `move` applied to every path in it (fields that classes name in PATHS)."""
    if isinstance(value, Mapping):
        moved = {key: with_paths(item, move) for key, item in value.items()}
        return value if all(moved[key] is value[key] for key in moved) else moved
    if type(value) is tuple:
        items = tuple(with_paths(item, move) for item in value)
        return value if all(new is old for new, old in zip(items, value)) else items
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = getattr(value, "PATHS", ())
    changed = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        new = move(old) if field.name in names and isinstance(old, str) else with_paths(old, move)
        if field.init and new is not old and new != old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value
