"""Bounds of fields: a component that is made with a value outside of them says so in one way.

The message names the class, the field, the value and what it must be.
"""

from typing import Any


def at_least(component: Any, least: int | float, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is below `least`; fields that are None are left alone.

    Args:
        why: added to the message: the usual value, or what follows from a smaller one.
    """
    for field in fields:
        value = getattr(component, field)
        if value is not None and not value >= least:
            _refuse(component, field, value, "must not be negative" if least == 0 else f"must be at least {least}", why)


def above(component: Any, bound: int | float, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is not greater than `bound`; fields that are None are left alone."""
    for field in fields:
        value = getattr(component, field)
        if value is not None and not value > bound:
            _refuse(component, field, value, "must be positive" if bound == 0 else f"must be greater than {bound}", why)


def between(component: Any, low: int | float, high: int | float, *fields: str, why: str = "") -> None:
    """Raises ValueError where one of `fields` is outside of [low, high]; fields that are None are left alone."""
    for field in fields:
        value = getattr(component, field)
        if value is not None and not low <= value <= high:
            _refuse(component, field, value, f"must be between {low} and {high}", why)


def _refuse(component: Any, field: str, value: Any, rule: str, why: str) -> None:
    raise ValueError(f"{type(component).__name__}.{field}={value}: {rule}{'; ' if why else ''}{why}")
