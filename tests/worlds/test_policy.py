"""Policies: balanced, held for a while, still for a fifth of the time or more, and the same from one seed."""

import itertools

import numpy as np
import pytest

from dit_video.video.actions import ActionSpace
from dit_video.worlds.environment import Description
from dit_video.worlds.policy import HELD, open_policy

KEYS = Description(name="x", version="1", actions=ActionSpace(names=tuple("abcdefg")), noop=2, fps=10.0)
WHEEL = Description(
    name="x",
    version="1",
    actions=ActionSpace(names=("a", "b"), continuous=True),
    limits=((-1.0, 1.0), (0.0, 5.0)),
    fps=10.0,
)
FRAME = np.zeros((2, 2, 3), np.uint8)


def played(name: str, about: Description, num: int, seed: int = 0) -> np.ndarray:
    play = open_policy(name)(about, np.random.default_rng(seed))
    return np.array([play(FRAME) for _ in range(num)])


@pytest.mark.parametrize("seed", range(5))
def test_sticky_actions_are_balanced_and_a_fifth_of_them_does_nothing(seed):
    counts = np.bincount(played("sticky", KEYS, 200, seed), minlength=7)
    assert counts[2] >= 200 / 5
    others = np.delete(counts, 2)
    assert others.max() - others.min() <= HELD[1]


def test_sticky_actions_are_held():
    actions = played("sticky", KEYS, 400)
    lengths = [len(list(run)) for _, run in itertools.groupby(actions.tolist())][:-1]
    assert min(lengths) >= HELD[0]
    assert np.mean(lengths) > 5
    random = played("random", KEYS, 400)
    assert np.mean([len(list(run)) for _, run in itertools.groupby(random.tolist())]) < 2


@pytest.mark.parametrize("name", ["sticky", "random"])
def test_continuous_actions_stay_within_their_limits(name):
    actions = played(name, WHEEL, 300)
    assert actions.dtype == np.float32
    assert (actions >= [-1, 0]).all()
    assert (actions <= [1, 5]).all()
    still = (actions == 0).all(1).mean()
    assert still >= 0.15 if name == "sticky" else still == 0


@pytest.mark.parametrize("about", [KEYS, WHEEL])
def test_one_seed_gives_one_play(about):
    np.testing.assert_array_equal(played("sticky", about, 50, 3), played("sticky", about, 50, 3))
    assert not np.array_equal(played("sticky", about, 50, 3), played("sticky", about, 50, 4))
