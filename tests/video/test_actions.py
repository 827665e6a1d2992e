"""Spaces of actions: what is an action of them and what is not."""

import numpy as np
import pytest

from dit_video.video.actions import UNKNOWN, ActionSpace, from_json

KEYS = ActionSpace(names=("noop", "left", "right"))
WHEEL = ActionSpace(names=("angle", "throttle"), continuous=True)


@pytest.mark.parametrize("space", [KEYS, WHEEL])
def test_a_space_is_read_back_and_has_actions_that_are_not_known(space):
    assert from_json(space.to_json()) == space
    unknown = space.unknown(3)
    np.testing.assert_array_equal(space.checked(unknown), unknown)
    assert len(unknown) == 3


@pytest.mark.parametrize(
    ("space", "actions", "named"),
    [
        (KEYS, np.array([0, 3]), "action 3 is none of the 3"), (KEYS, np.array([-2]), "action -2"),
        (KEYS, np.array([0.5]), "float64"), (KEYS, np.zeros((2, 2), int), r"\(2, 2\)"),
        (WHEEL, np.zeros((2, 3)), "of 2 numbers"), (WHEEL, np.array([[np.inf, 0]]), "not finite"),
        (WHEEL, np.array([[np.nan, 0]]), "not finite"),
    ],
)  # fmt: skip
def test_what_is_no_action_is_named(space, actions, named):
    with pytest.raises(ValueError, match=named):
        space.checked(actions)


def test_actions_are_counted_without_those_that_are_not_known():
    assert KEYS.counts([np.array([UNKNOWN, 0, 0]), np.array([2])]) == {"noop": 2, "left": 0, "right": 1}


@pytest.mark.parametrize("content", [None, [], {"names": ["a"]}, {"names": [1], "continuous": False}])
def test_what_is_no_space_is_refused(content):
    with pytest.raises(ValueError, match="must have names"):
        from_json(content)


@pytest.mark.parametrize("names", [(), ("left", "left")])
def test_names_of_actions_are_some_and_each_another(names):
    with pytest.raises(ValueError, match="must be names, each another"):
        ActionSpace(names=names)
