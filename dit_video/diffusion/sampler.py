"""Samplers from noise to latents (Euler, Heun, DDIM, ancestral DDPM): functions of (denoiser, objective, noise, keys).

All walk the objective's time grid in one `lax.scan`, so that the network is compiled once (twice for Heun)
whatever the number of steps. The random numbers of clip i come from keys[i] alone: a clip is the same in a
batch of any size and on any number of devices, up to the network's own rounding.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dit_video.arrays import Latents, Time
from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.path import over_latents
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.timestep_spacing import Spacing, Trailing


def noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
    """Standard normal noise of `shape` per clip, clip i from keys[i]; makes x_1 too."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """Sampler of `num_steps` steps from noise to data at the times of `spacing`; `denoise` gets t as [B 1]."""

    num_steps: int
    spacing: Spacing = Trailing()

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"{type(self).__name__}.num_steps={self.num_steps}: must be at least 1")

    @abc.abstractmethod
    def __call__(self, denoise: DenoiseFn, objective: Gaussian, x_1: Latents, keys: Key[Array, "B"]) -> Latents:
        """Latents x_0 from standard normal x_1. Deterministic samplers make no use of `keys`."""

    def time_grid(self, objective: Gaussian, x_1: Latents) -> Float[Array, "steps"]:
        """The objective's, for latents of x_1's size."""
        return objective.time_grid(self.num_steps, math.prod(x_1.shape[1:4]), self.spacing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleStep(Sampler):
    """Base of single-step samplers, without memory of the steps before."""

    def __call__(self, denoise: DenoiseFn, objective: Gaussian, x_1: Latents, keys: Key[Array, "B"]) -> Latents:
        grid = self.time_grid(objective, x_1)

        def body(x_t, step):
            index, t, s = (jnp.broadcast_to(value, (x_1.shape[0], 1)) for value in step)
            step_keys = jax.vmap(jax.random.fold_in)(keys, index[:, 0])
            return self.step(denoise, objective, x_t, t, s, step_keys), None

        steps = (jnp.arange(self.num_steps), grid[:-1], grid[1:])
        x_0, _ = jax.lax.scan(body, x_1.astype(jnp.float32), steps)
        return x_0

    @abc.abstractmethod
    def step(
        self, denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]
    ) -> Latents:
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

    The last step is Euler's, because the slope is not defined by every prediction at t = 0.
    """

    def step(
        self, denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]
    ) -> Latents:
        slope = _slope(denoise, objective, x_t, t)
        x_s = x_t + over_latents(s - t) * slope

        def corrected() -> Latents:
            return x_t + over_latents(s - t) * (slope + _slope(denoise, objective, x_s, s)) / 2

        return jax.lax.cond(jnp.all(s > 0), corrected, lambda: x_s)


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
    """Ancestral (DDPM) sampler: x_s from the posterior q(x_s | x_t, x_0) at the predicted x_0 (2006.11239, eq. 6, 7).

    For any path (VDM, 2107.00630, appendix A), written as 2010.02502, eq. 12 with eta = 1: of the noise in
    x_s the share rho = (alpha_t sigma_s) / (alpha_s sigma_t) is kept from x_t, the rest is drawn afresh. Where the
    objective learns a variance, what is drawn has that one.
    """

    def step(
        self, denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]
    ) -> Latents:
        path = objective.path
        prediction, variance = denoise(x_t, t)
        x_0, eps = _estimates(objective, prediction, x_t, t)
        rho = (path.alpha(t) * path.sigma(s)) / (path.alpha(s) * path.sigma(t))
        mean = path.x_t(x_0, over_latents(rho) * eps, s)
        if objective.variance is None:
            std = over_latents(path.sigma(s) * jnp.sqrt(1 - jnp.minimum(rho, 1) ** 2))
        else:
            assert variance is not None, "an objective with a learnt variance needs a network with learned_variance"
            # The last step ends at its mean.
            std = jnp.exp(0.5 * objective.variance.log_variance(path, variance, t, s)) * over_latents(s > 0)
        return mean + std * noise(keys, x_t.shape[1:])


def _slope(denoise: DenoiseFn, objective: Gaussian, x_t: Latents, t: Time) -> Latents:
    return objective.prediction.velocity(objective.path, denoise(x_t, t).prediction, x_t, t)


def _estimates(objective: Gaussian, prediction: Latents, x_t: Latents, t: Time) -> tuple[Latents, Latents]:
    """Estimates of (x_0, eps) that a prediction implies."""
    return (
        objective.prediction.x_0(objective.path, prediction, x_t, t),
        objective.prediction.eps(objective.path, prediction, x_t, t),
    )
