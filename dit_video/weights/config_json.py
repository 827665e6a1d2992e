"""Validated fields of published config.json files."""

from collections.abc import Mapping
from typing import Any


def count_of(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Reads a positive integer from a config.json.

    Raises:
        ValueError: it is none, or it is not there and has no default; names it.
    """
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {name}={value!r}: must be a positive number")
    return value


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Checks fields that have the same value in every published network.

    Raises:
        ValueError: names the first that has another.
    """
    for name, value in fixed.items():
        actual = config.get(name, value)
        if (tuple(actual) if isinstance(actual, list) else actual) != value:
            raise ValueError(f"config.json: {name}={actual!r}: every published network of this class has {value!r}")
