"""Bounds: the edge is inside where it says so, NaN is outside of every bound, and the message names what to change."""

import dataclasses
import importlib
import math
import re
import typing

import pytest

from dit_video.config.bounds import above, at_least, between, share
from dit_video.config.names import MODULES


@dataclasses.dataclass(frozen=True)
class Component:
    rate: float | tuple[float, ...] | None
    num_steps: int | None = 1


def test_a_value_on_the_edge_is_inside_except_above_it():
    at_least(Component(2), 2, "rate")
    between(Component(0), 0, 1, "rate")
    between(Component(1), 0, 1, "rate")
    share(Component(0), "rate")
    with pytest.raises(ValueError, match=re.escape("Component.rate=1: must be at least 0 and below 1")):
        share(Component(1), "rate")
    with pytest.raises(ValueError, match=re.escape("Component.rate=2: must be greater than 2")):
        above(Component(2), 2, "rate")


def test_fields_that_are_none_are_left_alone():
    component = Component(None, None)
    at_least(component, 1, "rate", "num_steps")
    above(component, 0, "rate", "num_steps")
    between(component, 0, 1, "rate", "num_steps")
    share(component, "rate", "num_steps")


def test_each_value_of_a_tuple_must_be_inside():
    at_least(Component((1, 2)), 1, "rate")
    with pytest.raises(ValueError, match=re.escape("Component.rate=(1, 0): each must be at least 1; as frames are")):
        at_least(Component((1, 0)), 1, "rate", why="as frames are")


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan])
def test_a_value_below_or_no_number_is_refused_by_each(value):
    component = Component(value)
    with pytest.raises(ValueError, match=re.escape(f"Component.rate={value}: must not be negative; usually 1")):
        at_least(component, 0, "rate", why="usually 1")
    with pytest.raises(ValueError, match=re.escape(f"Component.rate={value}: must be positive; usually 1")):
        above(component, 0, "rate", why="usually 1")
    with pytest.raises(ValueError, match=re.escape(f"Component.rate={value}: must be between 0 and 1; usually 1")):
        between(component, 0, 1, "rate", why="usually 1")
    with pytest.raises(ValueError, match=re.escape(f"Component.rate={value}: must be at least 0 and below 1")):
        share(component, "rate")


def test_each_named_field_is_checked_and_the_first_one_outside_is_named():
    with pytest.raises(ValueError, match=re.escape("Component.num_steps=0: must be at least 1")):
        at_least(Component(3, 0), 1, "rate", "num_steps")
    with pytest.raises(ValueError, match=re.escape("Component.rate=2: must be between 0 and 1")):
        between(Component(2), 0, 1, "rate", "num_steps")


# What a mesh may be is a rule of all its axes together, where the devices are known.
OF_OTHER_RULES = {f"MeshShape.{axis}" for axis in ("data", "fsdp", "context", "tensor")}
PLAIN = {int: 64, float: 0.5, str: "x", bool: False, tuple[int, int]: (64, 64), tuple[int, int, int]: (64, 64, 64)}


def counts():
    """Each whole number among the fields of the components that can be made of numbers and words alone."""
    for name, module in MODULES.items():
        component = getattr(importlib.import_module(module), name)
        kinds = typing.get_type_hints(component)
        fields = [field for field in dataclasses.fields(component) if field.init]
        required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        values = {name: 1 if name == "num_heads" else PLAIN.get(kinds[name]) for name in required}
        if None not in values.values():
            yield from ((component, values, f.name) for f in fields if kinds[f.name] in (int, int | None))


def test_no_count_is_negative_and_the_message_names_it():
    named = set()
    for component, values, count in counts():
        name = f"{component.__name__}.{count}"
        if name not in OF_OTHER_RULES:
            with pytest.raises(ValueError, match=rf"{count}\b.*-1|-1.*\b{count}\b"):
                component(**values | {count: -1})
            named.add(name)
    assert {"FVD.num_clips", "HeldOutError.every", "Keep.every", "AdamW.warmup_steps", "T5Config.depth"} <= named
