"""Samplers from noise to latents (Euler, Heun, DDIM, ancestral DDPM): functions of (denoiser, objective, noise, keys).

All walk the objective's time grid in one `lax.scan`, so that the network is compiled once (twice for Heun)
whatever the number of steps. The random numbers of clip i come from keys[i] alone: a clip is the same in a
batch of any size and on any number of devices, up to the network's own rounding.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dit_video.arrays import Latents, Time
from dit_video.config.bounds import at_least
from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.path import over_latents
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.process import Data, Process
from dit_video.diffusion.scheduling_matrix import Levels
from dit_video.diffusion.timestep_spacing import Spacing, Trailing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """Sampler of `num_steps` steps from noise to data at the times of `spacing`.

    `denoise` gets t as [B 1], or as [B t] where frames have levels of their own.
    """

    num_steps: int
    spacing: Spacing = Trailing()

    def __post_init__(self) -> None:
        at_least(self, 1, "num_steps")

    @abc.abstractmethod
    def __call__(
        self, denoise: DenoiseFn, objective: Process, x_1: Data, keys: Key[Array, "B"], levels: Levels | None = None
    ) -> Data:
        """Latents x_0 from standard normal x_1. Deterministic samplers make no use of `keys`.

        Args:
            levels: noise level of each frame by row, from that of x_1 on (scheduling_matrix.py), instead of the times
                of `spacing` for all; a frame whose level stays is left as it is.

        Raises:
            ValueError: the sampler cannot have levels that differ between frames.
        """

    def time_grid(self, objective: Process, x_1: Data) -> Float[Array, "steps"]:
        """The objective's, for latents of x_1's size."""
        return objective.time_grid(self.num_steps, math.prod(jax.tree.leaves(x_1)[0].shape[1:4]), self.spacing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleStep(Sampler):
    """Base of single-step samplers, without memory of the steps before."""

    def __call__(
        self, denoise: DenoiseFn, objective: Process, x_1: Data, keys: Key[Array, "B"], levels: Levels | None = None
    ) -> Data:
        grid = self.time_grid(objective, x_1) if levels is None else levels

        def stepped(x_t, step):
            index, t, s = (jnp.broadcast_to(value, (len(keys), value.size)) for value in step)
            step_keys = jax.vmap(jax.random.fold_in)(keys, index[:, 0])
            x_s = self.step(denoise, objective, x_t, t, s, step_keys)
            return x_s if levels is None else jnp.where(over_latents(s < t), x_s, x_t)

        def body(x_t, step):
            if levels is None:
                return stepped(x_t, step), None
            # Where no frame moves, the network is not called.
            return jax.lax.cond(jnp.any(step[2] < step[1]), lambda: stepped(x_t, step), lambda: x_t), None

        steps = (jnp.arange(len(grid) - 1), grid[:-1], grid[1:])
        x_0, _ = jax.lax.scan(body, jax.tree.map(_float32, x_1), steps)
        return x_0

    @abc.abstractmethod
    def step(self, denoise: DenoiseFn, objective: Any, x_t: Any, t: Time, s: Time, keys: Key[Array, "B"]) -> Any:
        """x_s from x_t, s < t. `keys` are fresh in each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(SingleStep):
    """Euler sampler: first-order steps along the probability-flow ODE (2011.13456, eq. 13).

    With a velocity network each step is x_s = x_t - (t - s) prediction. Of first order where alpha and sigma
    are smooth (Linear, Cosine); LinearBeta's sqrt(t) at the data end costs it accuracy in the last steps,
    DDIM not.
    """

    def step(
        self, denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]
    ) -> Latents:
        return x_t + over_latents(s - t) * _slope(denoise, objective, x_t, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(SingleStep):
    """Heun sampler: second-order steps along the same ODE (EDM, 2206.00364, algorithm 1); 2 num_steps - 1 calls.

    The last step is Euler's, because the slope is not defined by every prediction at t = 0: where frames have levels of
    their own, the last step of each.
    """

    def step(
        self, denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]
    ) -> Latents:
        slope = _slope(denoise, objective, x_t, t)
        x_s = x_t + over_latents(s - t) * slope

        def corrected() -> Latents:
            x = x_t + over_latents(s - t) * (slope + _slope(denoise, objective, x_s, s)) / 2
            return x if s.shape[1] == 1 else jnp.where(over_latents(s > 0), x, x_s)

        return jax.lax.cond(jnp.any(s > 0), corrected, lambda: x_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(SingleStep):
    """DDIM sampler: x_s = alpha_s x_0 + sigma_s eps with the predicted x_0 and eps (2010.02502, eq. 12, eta = 0).

    Exact for constant x_0 and eps on any path; on the Linear path it is Euler's step.
    """

    def step(
        self, denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]
    ) -> Latents:
        x_0, eps = _estimates(objective, denoise(x_t, t).prediction, x_t, t)
        return objective.path.x_t(x_0, eps, s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(SingleStep):
    """The process's own step back, with fresh noise: DDPM's of a Gaussian objective (2006.11239), for any process."""

    def step(self, denoise: DenoiseFn, objective: Process, x_t: Data, t: Time, s: Time, keys: Key[Array, "B"]) -> Data:
        return objective.step(denoise(x_t, t), x_t, t, s, keys)


def _float32(x: Array) -> Array:
    """Numbers in float32; tokens as they are."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _slope(denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time) -> Latents:
    return objective.prediction.velocity(objective.path, denoise(x_t, t).prediction, x_t, t)


def _estimates(objective: Gaussian, prediction: Latents, x_t: Latents, t: Time) -> tuple[Latents, Latents]:
    """Estimates of (x_0, eps) that a prediction implies."""
    return (
        objective.prediction.x_0(objective.path, prediction, x_t, t),
        objective.prediction.eps(objective.path, prediction, x_t, t),
    )
