"""Timestep spacing of samplers (trailing, linspace, leading), before any shift.

The names are those of Lin et al., 2305.08891, table 2, and of diffusers' `timestep_spacing`. There a table of 1000
levels is counted k = 0 ... 999; here level k is t = (k + 1) / 1000, so that t = 0 is the data itself.
"""

import abc
import dataclasses

import numpy as np
from jaxtyping import Float

from dit_video.config.bounds import at_least

Times = Float[np.ndarray, "steps"]


class Spacing(abc.ABC):
    """Timestep spacing: num_steps + 1 falling times, the last of them 0."""

    @abc.abstractmethod
    def times(self, num_steps: int) -> Times:
        """In float64."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trailing(Spacing):
    """Trailing spacing: evenly from `first` to 0, all steps of one length."""

    first: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.first <= 1:
            raise ValueError(f"Trailing.first={self.first}: must be in (0, 1]; 1.0 begins with noise")

    def times(self, num_steps: int) -> Times:
        return np.linspace(self.first, 0, num_steps + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linspace(Spacing):
    """Linspace spacing: evenly from 1 to `last`, then 0, so that the last step, to the data, is a short one.

    diffusers' multistep solvers space one time more and leave out `last`, so that the step to the data is longer than
    the others by it: `drop_last`.
    """

    last: float = 1e-3
    drop_last: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.last < 1:
            raise ValueError(f"Linspace.last={self.last}: must be in (0, 1); 0.001 is the first level of 1000")

    def times(self, num_steps: int) -> Times:
        spaced = np.linspace(1, self.last, num_steps + self.drop_last)
        return np.append(spaced[:num_steps], 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leading(Spacing):
    """Leading spacing: every n-th of `num_train_steps` levels counted from the data; the noisiest levels are left out.

    DDPM's and DDIM's own, for num_steps that divide num_train_steps. It begins with less noise than x_1 has, which
    darkens and flattens samples (2305.08891); use it where a published model was judged with it.
    """

    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        at_least(self, 1, "num_train_steps", why="DDPM's is 1000")

    def times(self, num_steps: int) -> Times:
        stride = self.num_train_steps // num_steps
        if stride == 0:
            raise ValueError(
                f"num_steps={num_steps}: Leading.num_train_steps={self.num_train_steps} has no more levels to visit"
            )
        levels = stride * np.arange(num_steps - 1, -1, -1) + 1
        return np.append(levels / self.num_train_steps, 0)
