"""Bounds: the edge is inside where it says so, NaN is outside of every bound, and the message names what to change."""

import dataclasses
import math
import re

import pytest

from dit_video.config.bounds import above, at_least, between, share


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
