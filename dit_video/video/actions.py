"""Actions of the frames of a video: what somebody pressed, of a fixed choice, or a few numbers (a steering angle).

Actions [T] or [T A] accompany frames [T]. `actions[f]` is what was pressed *between* frame f - 1 and frame f, so that
frame f shows what came of it; of the first frame of an episode none is known.
"""

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

UNKNOWN = -1
"""Stands for the discrete action of a frame of which none is known; in continuous ones all numbers are NaN."""

Actions = Int32[np.ndarray, "T"] | Float32[np.ndarray, "T A"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """Which actions there are.

    Attributes:
        names: of the actions, by their numbers; of the numbers of a continuous action, by position.
        continuous: whether an action is as many numbers as there are names, and not one of the names.
    """

    names: tuple[str, ...]
    continuous: bool = False

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"ActionSpace.names={self.names}: must be names, each another")

    def __str__(self) -> str:
        return f"{len(self.names)} {'numbers' if self.continuous else 'actions'}: {', '.join(self.names)}"

    def unknown(self, num_frames: int) -> Actions:
        """The actions of frames of which none is known."""
        if self.continuous:
            return np.full((num_frames, len(self.names)), np.nan, np.float32)
        return np.full(num_frames, UNKNOWN, np.int32)

    def checked(self, actions: np.ndarray) -> Actions:
        """Actions of this space, in their own type.

        Raises:
            ValueError: they have another shape, or are none of these.
        """
        if self.continuous:
            if actions.ndim != 2 or actions.shape[1] != len(self.names) or actions.dtype.kind not in "biuf":
                raise ValueError(f"actions are {_kind(actions)}, not of {len(self.names)} numbers a frame")
            as_float = actions.astype(np.float32)
            known = ~np.isnan(as_float).all(axis=1)
            if not np.isfinite(as_float[known]).all():
                raise ValueError("actions have numbers that are not finite")
            return as_float
        if actions.ndim != 1 or actions.dtype.kind not in "biu":
            raise ValueError(f"actions are {_kind(actions)}, not one whole number a frame")
        if outside := set(np.unique(actions).tolist()) - {UNKNOWN, *range(len(self.names))}:
            raise ValueError(f"action {min(outside)} is none of the {len(self.names)}: {reprlib.repr(self.names)}")
        return actions.astype(np.int32)

    def counts(self, actions: Sequence[np.ndarray]) -> dict[str, int]:
        """How many frames have each discrete action; frames of which none is known are left out."""
        of_all = np.concatenate([np.zeros(0, np.int32), *actions])
        found = np.bincount(of_all[of_all != UNKNOWN], minlength=len(self.names))
        return dict(zip(self.names, found.tolist()))

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "continuous": self.continuous}


def from_json(content: Any) -> ActionSpace:
    """The space that `to_json` wrote.

    Raises:
        ValueError: it is none.
    """
    names = content.get("names") if isinstance(content, Mapping) else None
    right = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not right or not isinstance(content.get("continuous"), bool):
        raise ValueError(f"actions={reprlib.repr(content)}: must have names, and whether they are continuous")
    return ActionSpace(names=tuple(names), continuous=content["continuous"])


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
