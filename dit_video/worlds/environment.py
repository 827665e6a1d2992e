"""Environment protocol: a world that shows a picture, and answers to an action with the next."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.video.actions import ActionSpace


class Observation(NamedTuple):
    """What a world shows.

    Attributes:
        pose: of the camera, where the world tells it.
        ended: whether the episode is over with this frame.
    """

    frame: UInt8[np.ndarray, "H W 3"]
    pose: Float[np.ndarray, "P"] | None = None
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a world is, for records.

    Attributes:
        name: as it is opened.
        version: of what renders it; another one may show other pictures.
        actions: those that it takes.
        noop: the number of the action that does nothing; None where none is known to.
        limits: of each number of a continuous action: the least and the greatest.
        fps: frames per second at which it is meant to be shown.
        pose: names of the numbers of a pose; none where the world does not tell it.
        options: what it was opened with, as JSON.
    """

    name: str
    version: str
    actions: ActionSpace
    noop: int | None = None
    limits: tuple[tuple[float, float], ...] = ()
    fps: float
    pose: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Environment(Protocol):
    """A world, in which episodes follow each other; each is a function of its seed and the actions."""

    @property
    def description(self) -> Description: ...

    def reset(self, seed: int) -> Observation:
        """Begins an episode."""
        ...

    def step(self, action: Any) -> Observation:
        """The frame after an action: the number of a discrete one, or an array of numbers."""
        ...

    def close(self) -> None:
        """Gives back what the world holds."""
        ...


CORRIDOR = "corridor"
"""Name of the world that comes along."""


def open_environment(name: str, *, size: int = 64, fps: float | None = None) -> Environment:
    """Opens the corridor, or an environment of Gymnasium by its id.

    Args:
        size: height and width of the corridor's frames; those of Gymnasium have a size of their own.
        fps: in place of the environment's own.

    Raises:
        ValueError: there is no such environment, or it is not of the kind; says what to do.
    """
    if name == CORRIDOR:
        from dit_video.worlds.corridor import Corridor

        return Corridor(size=size) if fps is None else Corridor(size=size, fps=fps)
    from dit_video.worlds.gymnasium_environment import GymnasiumEnvironment

    return GymnasiumEnvironment(name, fps=fps)
