"""Policies that play a world to record it: at random, or at random with each action held for a while."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.config.user_file import call_file
from dit_video.worlds.environment import Description

STICKY, RANDOM = "sticky", "random"
# Frames for which a sticky action is held.
HELD = (2, 12)
# Share of frames without an action that a sticky policy keeps to, so that no key means a world that stands still.
NOOP_SHARE = 0.25

# Frame -> action; one for each episode.
Player = Callable[[UInt8[np.ndarray, "H W 3"]], Any]
# Of a world and the generator of an episode.
Policy = Callable[[Description, np.random.Generator], Player]


def open_policy(name: str) -> Policy:
    """`sticky`, `random`, or what `get_policy()` of a file returns: a function of a description and a NumPy generator,
    whose result is called with each frame and says the action.

    Raises:
        ValueError: neither.
    """
    if name == STICKY:
        return sticky
    if name == RANDOM:
        return uniform
    if not name.partition(":")[0].endswith(".py"):
        raise ValueError(f"--policy={name}: must be {STICKY}, {RANDOM}, or a file FILE.py with `get_policy`")
    policy: Any = call_file("--policy", name, "get_policy", Callable)  # type: ignore[bad-argument-type]
    return policy


def uniform(about: Description, rng: np.random.Generator) -> Player:
    """Another action at every frame."""
    return lambda frame: _drawn(about, rng)


def sticky(about: Description, rng: np.random.Generator) -> Player:
    """Holds each action for HELD frames; all equally often, and for NOOP_SHARE of the frames or more the one that does
    nothing, where there is one.
    """
    held = itertools.chain.from_iterable(_blocks(about, rng))
    return lambda frame: next(held)


def _blocks(about: Description, rng: np.random.Generator) -> Iterator[list[Any]]:
    if about.actions.continuous:
        while True:
            still = rng.random() < NOOP_SHARE
            action = np.zeros(len(about.limits), np.float32) if still else _drawn(about, rng)
            yield [action] * int(rng.integers(HELD[0], HELD[1] + 1))
    frames = np.zeros(len(about.actions.names), int)
    others = [action for action in range(len(frames)) if action != about.noop]
    while True:
        length = int(rng.integers(HELD[0], HELD[1] + 1))
        if about.noop is not None and frames[about.noop] < NOOP_SHARE * frames.sum():
            action = about.noop
        else:
            least = [action for action in others if frames[action] == frames[others].min()]
            action = least[int(rng.integers(len(least)))]
        frames[action] += length
        yield [action] * length


def _drawn(about: Description, rng: np.random.Generator) -> Any:
    if not about.actions.continuous:
        return int(rng.integers(len(about.actions.names)))
    low, high = np.array(about.limits).T
    return rng.uniform(low, high).astype(np.float32)
