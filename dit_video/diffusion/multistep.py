"""Multistep ODE solvers (DPM-Solver++, UniPC): second order and more with one network call per step.

In the log of the ratio alpha / sigma the probability-flow ODE is linear but for the predicted x_0: from t to s < t,

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - sigma_s alpha_t / sigma_t) mean of x_0,

the mean weighted exponentially over the step. Its x_0 is extrapolated from those of the last two steps, and UniPC
corrects it with the next. Nothing here depends on what the network predicts or on the path, beyond that.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dit_video.arrays import Latents
from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.path import Path
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.sampler import Sampler
from dit_video.diffusion.scheduling_matrix import Levels

# Where a path has alpha = 0 at t = 1, which is infinitely far from any step; diffusers' flows begin here too.
FIRST_TIME = 1 - 1e-6

# Exact to float32 for steps that change alpha / sigma by a factor of up to e^30.
NUM_NODES = 16

PerStep = Float[Array, "num_steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2211.01095, algorithm 2).

    The first and the last step are of first order: nothing is known before the one, and alpha / sigma is infinite at
    the end of the other.
    """

    def __call__(
        self, denoise: DenoiseFn, objective: Gaussian, x_1: Latents, keys: Key[Array, "B"], levels: Levels | None = None
    ) -> Latents:
        _refuse(self, levels)
        grid = _within_reach(objective.path, self.time_grid(objective, x_1))

        def body(carry, step):
            x_t, earlier = carry
            t, solve = step
            x_0 = _denoised(denoise, objective, x_t, t)
            return (solve.predicted(x_t, x_0, earlier), x_0), None

        x_1 = x_1.astype(jnp.float32)
        (x_0, _), _ = jax.lax.scan(body, (x_1, jnp.zeros_like(x_1)), (grid[:-1], _solves(objective.path, grid)))
        return x_0


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(Sampler):
    """UniPC-2 with B_2(h), in x_0 (Zhao et al., 2302.04867, section 3).

    DPM-Solver++(2M) predicts where the step ends; what the network says there corrects it, at no further call.
    """

    def __call__(
        self, denoise: DenoiseFn, objective: Gaussian, x_1: Latents, keys: Key[Array, "B"], levels: Levels | None = None
    ) -> Latents:
        _refuse(self, levels)
        grid = _within_reach(objective.path, self.time_grid(objective, x_1))
        solves = _solves(objective.path, grid)
        # What corrects x_t belongs to the step that led there. None led to x_1, which this one leaves as it is.
        none = _Solve(keep=1.0, gain=0.0, extrapolate=0.0, correct_earlier=0.0, correct_next=0.0)
        led_here = jax.tree.map(lambda first, rest: jnp.concatenate([jnp.full(1, first), rest[:-1]]), none, solves)

        def body(carry, step):
            x_t, x_before, x_0_before, x_0_earlier = carry
            t, led_here, solve = step
            x_0 = _denoised(denoise, objective, x_t, t)
            x_t = led_here.corrected(x_before, x_0, x_0_before, x_0_earlier)
            return (solve.predicted(x_t, x_0, x_0_before), x_t, x_0, x_0_before), None

        x_1 = x_1.astype(jnp.float32)
        start = (x_1, x_1, jnp.zeros_like(x_1), jnp.zeros_like(x_1))
        (x_0, *_), _ = jax.lax.scan(body, start, (grid[:-1], led_here, solves))
        return x_0


class _Solve(NamedTuple):
    """Coefficients of one solver step, or of all [num_steps].

    Attributes:
        keep: share of x_t in x_s.
        gain: share of the mean x_0.
        extrapolate: the mean x_0 is x_0 + extrapolate (x_0 - that of the step before).
        correct_earlier, correct_next: or, once the next is known, x_0 + correct_earlier (that of the step before -
            x_0) + correct_next (the next - x_0).
    """

    keep: PerStep | float
    gain: PerStep | float
    extrapolate: PerStep | float
    correct_earlier: PerStep | float
    correct_next: PerStep | float

    def predicted(self, x_t: Latents, x_0: Latents, earlier: Latents) -> Latents:
        return self.keep * x_t + self.gain * (x_0 + self.extrapolate * (x_0 - earlier))

    def corrected(self, x_t: Latents, following: Latents, x_0: Latents, earlier: Latents) -> Latents:
        mean = x_0 + self.correct_earlier * (earlier - x_0) + self.correct_next * (following - x_0)
        return self.keep * x_t + self.gain * mean


def _refuse(sampler: Sampler, levels: Levels | None) -> None:
    if levels is not None:
        raise ValueError(
            f"sampler={type(sampler).__name__}: a multistep solver remembers steps that all frames took together, so "
            "frames cannot begin one after the other; take Euler, Heun, DDIM or Ancestral, or scheduling=WholeClip()"
        )


def _within_reach(path: Path, grid: Float[Array, "steps"]) -> Float[Array, "steps"]:
    return jnp.where(path.alpha(grid) > 0, grid, FIRST_TIME)


def _denoised(denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Float[Array, ""]) -> Latents:
    times = jnp.broadcast_to(t, (x_t.shape[0], 1))
    return objective.denoised(denoise(x_t, times).prediction, x_t, times)


def _solves(path: Path, grid: Float[Array, "steps"]) -> _Solve:
    """Coefficients of the steps between the times of `grid`."""
    alpha, sigma = path.alpha(grid), path.sigma(grid)
    # The last step ends at infinity; it is predicted only, and at first order, which needs no length.
    length = jnp.diff(jnp.log(alpha[:-1]) - jnp.log(sigma[:-1]))
    # The steps with one before and one after.
    before, length_inside = length[:-1], length[1:]
    # The weights with which the next x_0 and the earlier one, which lies at -ratio steps, give the mean of a line and
    # of a parabola exactly; 1/2 for the next alone is B_2(h)'s choice.
    ratio = before / length_inside
    line, parabola = _mean_of_power(length_inside, 1), _mean_of_power(length_inside, 2)
    earlier = (parabola - line) / (ratio * (1 + ratio))
    none = jnp.zeros(len(grid) - 1)
    return _Solve(
        keep=sigma[1:] / sigma[:-1],
        gain=alpha[1:] - sigma[1:] * alpha[:-1] / sigma[:-1],
        extrapolate=none.at[1:-1].set(length_inside / before / 2),
        correct_earlier=none.at[1:-1].set(earlier),
        correct_next=none.at[:-1].set(0.5).at[1:-1].set(line + ratio * earlier),
    )


def _mean_of_power(length: PerStep, power: int) -> PerStep:
    """The mean of (l / length)^power over 0 < l < length with weight exp(l).

    Summed over Gauss-Legendre nodes: in the closed form the leading digits of short steps cancel.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    place = (nodes + 1) / 2
    mass = jnp.exp(length[:, None] * (place - 1)) * weights
    return mass @ place**power / jnp.sum(mass, axis=1)
