"""Bounds of fields: a component that is made with a value outside of them says so in one way.

The message names the class, the field, the value and what it must be. A field that is None is left alone; of a field
that is a tuple each value must be inside.
"""

from collections.abc import Callable
from typing import Any


def at_least(component: Any, least: int | float, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is below `least`.

    Args:
        why: added to the message: the usual value, or what follows from a smaller one.
    """
    rule = "must not be negative" if least == 0 else f"must be at least {least}"
    _require(component, fields, lambda value: value >= least, rule, why)


def above(component: Any, bound: int | float, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is not greater than `bound`."""
    rule = "must be positive" if bound == 0 else f"must be greater than {bound}"
    _require(component, fields, lambda value: value > bound, rule, why)


def between(component: Any, low: int | float, high: int | float, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is outside of [low, high]."""
    _require(component, fields, lambda value: low <= value <= high, f"must be between {low} and {high}", why)


def share(component: Any, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is outside of [0, 1): a share that may be none and is never all."""
    _require(component, fields, lambda value: 0 <= value < 1, "must be at least 0 and below 1", why)


def _require(component: Any, fields: tuple[str, ...], holds: Callable[[Any], bool], rule: str, why: str) -> None:
    for field in fields:
        value = getattr(component, field)
        parts = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(map(holds, parts)):
            each = "each " if isinstance(value, tuple) else ""
            raise ValueError(f"{type(component).__name__}.{field}={value}: {each}{rule}{'; ' if why else ''}{why}")
