"""Environments of Gymnasium that render pictures (extra `worlds`): ALE, ViZDoom, MiniWorld, Crafter and the like.

Imported where such an environment is opened: gymnasium is an extra.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dit_video.video.actions import ActionSpace
from dit_video.worlds.environment import Description, Observation

_DEFAULT_FPS = 30.0
# What an action that does nothing is called.
_NOOP_NAMES = ("noop", "no-op", "no_op", "nop", "none", "idle", "stay", "do_nothing")
# Of a continuous action without limits.
_UNLIMITED = 1.0


class GymnasiumEnvironment:
    """An environment of Gymnasium, an `Environment`: its pictures are those of render_mode="rgb_array"."""

    def __init__(self, name: str, *, fps: float | None = None):
        """Args:
            name: id, as of `gymnasium.make`; "module:id" imports the module that registers it.
            fps: in place of the environment's own.

        Raises:
            ValueError: there is no such environment, it renders no pictures, or has no actions of a kind that is known.
        """
        if importlib.util.find_spec("gymnasium") is None:
            raise ValueError(f"{name!r}: gymnasium is not installed; install the extra: pip install -e '.[worlds]'")
        import gymnasium

        self._failures = gymnasium.error.Error, ImportError
        try:
            self._environment: Any = gymnasium.make(name, render_mode="rgb_array")
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name!r}: neither `corridor` nor an environment of Gymnasium that renders rgb_array ({error}); "
                "install the package that has it, and name that as MODULE:ID where it must be imported"
            ) from error
        self._as_set: Any = self._environment.action_space
        actions, noop, limits = _actions(name, self._environment, gymnasium.spaces)
        self._continuous = actions.continuous
        self.description = Description(
            name=name,
            version=_version(self._environment, gymnasium),
            actions=actions,
            noop=noop,
            limits=limits,
            fps=fps or float(self._environment.metadata.get("render_fps") or _DEFAULT_FPS),
        )

    def reset(self, seed: int) -> Observation:
        # NumPy's generators, which Gymnasium seeds, take 32 bits.
        self._environment.reset(seed=seed % (1 << 31))
        return self._observed(ended=False)

    def step(self, action: Any) -> Observation:
        _, _, terminated, truncated, _ = self._environment.step(self._of_space(action))
        return self._observed(ended=bool(terminated or truncated))

    def close(self) -> None:
        self._environment.close()

    def _of_space(self, action: Any) -> Any:
        if not self._continuous:
            return int(action) + int(self._as_set.start)
        return np.asarray(action, self._as_set.dtype).reshape(self._as_set.shape)

    def _observed(self, *, ended: bool) -> Observation:
        try:
            frame = np.asarray(self._environment.render())
        except self._failures as error:  # some look for what they draw with when they draw
            raise ValueError(f"{self.description.name!r} cannot draw its pictures here: {error}") from error
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.description.name!r} renders {frame.dtype} of shape {frame.shape}, not uint8 of [H W 3]"
            )
        return Observation(frame, None, ended)


def _actions(name: str, environment: Any, spaces: Any) -> tuple[ActionSpace, int | None, tuple]:
    """The actions, which of them does nothing, and the limits of continuous ones."""
    space = environment.action_space
    if isinstance(space, spaces.Discrete):
        names = _names(environment.unwrapped, int(space.n))
        noop = next((i for i, name in enumerate(names) if name.lower() in _NOOP_NAMES), None)
        return ActionSpace(names=names), noop, ()
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        pairs = zip(space.low.tolist(), space.high.tolist())
        limits = tuple(
            (low if math.isfinite(low) else -_UNLIMITED, high if math.isfinite(high) else _UNLIMITED)
            for low, high in pairs
        )
        names = tuple(f"action_{number}" for number in range(space.shape[0]))
        return ActionSpace(names=names, continuous=True), None, limits
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int):
        names = tuple(f"button_{number}" for number in range(space.n))
        return ActionSpace(names=names, continuous=True), None, ((0.0, 1.0),) * space.n
    raise ValueError(
        f"{name!r} has actions {space}; those of Discrete, of a Box of numbers in a row and of MultiBinary are known: "
        "wrap it in one of these, and register that"
    )


def _names(environment: Any, number: int) -> tuple[str, ...]:
    """Names of discrete actions, wherever an environment has them; else their numbers."""
    found: Sequence[Any] = ()
    if callable(meanings := getattr(environment, "get_action_meanings", None)):
        found = list(meanings())
    elif isinstance(names := getattr(environment, "action_names", None), Sequence):
        found = list(names)
    else:
        try:
            found = [action.name for action in environment.actions]  # an enumeration, as MiniGrid and MiniWorld have
        except (AttributeError, TypeError):
            found = ()
    words = tuple(str(word).lower() for word in found)[:number]
    return words if len(set(words)) == number else tuple(str(action) for action in range(number))


def _version(environment: Any, gymnasium: Any) -> str:
    """Version of the environment's own package, and of Gymnasium."""
    package = type(environment.unwrapped).__module__.partition(".")[0]
    ours = f"gymnasium {gymnasium.__version__}"
    if package == "gymnasium":
        return ours
    of = importlib.metadata.packages_distributions().get(package, [])
    return ", ".join([*(f"{name} {importlib.metadata.version(name)}" for name in of[:1]), ours])
