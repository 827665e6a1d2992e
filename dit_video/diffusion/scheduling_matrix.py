"""Scheduling matrices: the noise level of each latent frame at each step of sampling (Chen et al., 2407.01392, 3.3).

Every frame walks the same time grid; a matrix says how many steps later a frame begins than the one before it. What is
known does not walk: frames begin in the order of their distance from known ones, outwards from what is there.
"""

import abc
import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit_video.config.bounds import at_least

Levels = Float[Array, "rows t"]


class SchedulingMatrix(abc.ABC):
    """Scheduling matrix: in what order the frames of a clip are denoised."""

    @abc.abstractmethod
    def delay(self, num_steps: int) -> int:
        """Steps that a frame begins after the one before it."""

    def levels(self, grid: Float[Array, "steps"], known: Bool[Array | np.ndarray, "t"]) -> Levels:
        """Noise levels by row and frame, from the first of `grid` in all frames to the last.

        There are as many rows as without known frames; in those left over no level changes, which costs nothing.

        Args:
            grid: falling times of sampling.
            known: of which frames all is known.
        """
        num_steps, delay = len(grid) - 1, self.delay(len(grid) - 1)
        rows = jnp.arange(num_steps + delay * (len(known) - 1) + 1)[:, None]
        return grid[jnp.clip(rows - delay * turns(known), 0, num_steps)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeClip(SchedulingMatrix):
    """All frames at once: as many steps as the sampler has."""

    def delay(self, num_steps: int) -> int:
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameByFrame(SchedulingMatrix):
    """One frame after the other, autoregressively: a frame begins when the one before it is clean."""

    def delay(self, num_steps: int) -> int:
        return num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid(SchedulingMatrix):
    """Pyramid: the later a frame, the noisier; each begins `steps_apart` steps after the one before it."""

    steps_apart: int = 1

    def __post_init__(self) -> None:
        at_least(self, 0, "steps_apart", why="0 is WholeClip")

    def delay(self, num_steps: int) -> int:
        return min(self.steps_apart, num_steps)


def turns(known: Bool[Array | np.ndarray, "t"]) -> Int[Array, "t"]:
    """When each frame begins: by its distance from the nearest known one, or from the start where none is."""
    places = jnp.arange(len(known))
    distances = jnp.where(known, jnp.abs(places[:, None] - places), len(known)).min(axis=1)
    return jnp.where(jnp.any(known), jnp.maximum(distances - 1, 0), places)
