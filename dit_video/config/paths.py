"""Paths that people write: ~ and $VARIABLES mean what they mean in a shell."""

import os
import re
from typing import Any

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


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


def expand(self: Any, *names: str) -> None:
    """Replaces what is `expanded` in fields of a frozen value while it is made; fields that are None stay.

    Raises:
        ValueError: names the field beside what `expanded` says.
    """
    for name in names:
        text = getattr(self, name)
        if text is None:
            continue
        try:
            object.__setattr__(self, name, expanded(text))
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.{name}={error}") from None
