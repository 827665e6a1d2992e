"""Noise schedules as paths from data to noise: x_t = alpha(t) x_0 + sigma(t) eps.

**t = 0 is data, t = 1 is noise**, everywhere in this package (as in SD3, https://arxiv.org/abs/2403.03206;
SiT and Diffusion Forcing's code run the other way). Every method is elementwise in t, in float32, and finite
on the closed interval [0, 1]; where the exact value is not finite the clamp is named beside it.
"""

import abc
import dataclasses
import functools
import math
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from dit_video.arrays import Latents, Time
from dit_video.config.bounds import above, at_least

Level = Float[Array, "..."]

# log-SNR is reported within +-LOGSNR_LIMIT: beyond, float32 holds alpha or sigma to few digits and exp
# overflows soon.
LOGSNR_LIMIT = 20.0
# The slope of LinearBeta's sigma is infinite at t = 0, where sigma vanishes like sqrt(t).
MIN_SIGMA = 1e-4


def over_latents(level: Shaped[Array, "B #t"] | Shaped[Array, "B t h w"]) -> Shaped[Array, "B _ _ _ 1"]:
    """A value per clip, per frame or per cell, ready to multiply latents [B t h w c]."""
    return level.reshape(*level.shape, *(1,) * (5 - level.ndim))


class Path(abc.ABC):
    """Path (noise schedule): alpha falls from 1, sigma rises from 0 to 1, the log-SNR falls strictly."""

    @abc.abstractmethod
    def alpha(self, t: Level) -> Level:
        """Share of the data in x_t."""

    @abc.abstractmethod
    def sigma(self, t: Level) -> Level:
        """Share of the noise in x_t."""

    @abc.abstractmethod
    def d_alpha(self, t: Level) -> Level:
        """d alpha / d t."""

    @abc.abstractmethod
    def d_sigma(self, t: Level) -> Level:
        """d sigma / d t."""

    @abc.abstractmethod
    def time_of_logsnr(self, logsnr: Level) -> Level:
        """The t at which `self.logsnr(t) == logsnr`, in closed form."""

    def nearest(self, t: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
        """Sampling times closest to `t`: a discrete path has only the levels of its table."""
        return t

    def logsnr(self, t: Level) -> Level:
        """log(alpha^2 / sigma^2), clipped to +-LOGSNR_LIMIT (it is infinite where alpha or sigma is 0)."""
        return jnp.clip(2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t))), -LOGSNR_LIMIT, LOGSNR_LIMIT)

    def x_t(self, x_0: Latents, eps: Latents, t: Time) -> Latents:
        """Noisy latents."""
        return over_latents(self.alpha(t)) * x_0 + over_latents(self.sigma(t)) * eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Path):
    """Linear path of rectified flow: alpha = 1 - t, sigma = t (SD3, 2403.03206, eq. 13)."""

    def alpha(self, t: Level) -> Level:
        return 1 - t

    def sigma(self, t: Level) -> Level:
        return t

    def d_alpha(self, t: Level) -> Level:
        return -jnp.ones_like(t)

    def d_sigma(self, t: Level) -> Level:
        return jnp.ones_like(t)

    def time_of_logsnr(self, logsnr: Level) -> Level:
        return jax.nn.sigmoid(-logsnr / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Path):
    """Cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol & Dhariwal, 2102.09672, eq. 17 with offset s = 0, in the continuous time of VDM (2107.00630).
    """

    def alpha(self, t: Level) -> Level:
        # The sine of the complement is exactly 0 at t = 1; float32's cos(pi / 2) is below 0.
        return jnp.sin(jnp.pi / 2 * (1 - t))

    def sigma(self, t: Level) -> Level:
        return jnp.sin(jnp.pi / 2 * t)

    def d_alpha(self, t: Level) -> Level:
        return -jnp.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Level) -> Level:
        return jnp.pi / 2 * self.alpha(t)

    def time_of_logsnr(self, logsnr: Level) -> Level:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-logsnr / 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBeta(Path):
    """Linear-beta schedule in continuous time (VP-SDE): the limit of DDPM's schedule for many steps.

    With beta(t) = beta_min + t (beta_max - beta_min) and B(t) its integral from 0, alpha = exp(-B / 2) and
    sigma^2 = 1 - alpha^2 (Song et al., 2011.13456, eq. 33). DDPM's 1e-4 to 0.02 over 1000 steps are the
    defaults. A little data is left at t = 1 (alpha = 0.0066). The slope of sigma is infinite at t = 0; it is
    computed from sigma clamped to MIN_SIGMA, and a network that predicts the velocity meets it: prefer
    Epsilon or V here.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"LinearBeta.beta_min={self.beta_min}, beta_max={self.beta_max}: must be 0 < beta_min <= "
                "beta_max; DDPM's are 0.1 and 20"
            )

    def _beta(self, t: Level) -> Level:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Level) -> Level:
        return t * self.beta_min + t**2 / 2 * (self.beta_max - self.beta_min)

    def alpha(self, t: Level) -> Level:
        return jnp.exp(-self._integral(t) / 2)

    def sigma(self, t: Level) -> Level:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def d_alpha(self, t: Level) -> Level:
        return -self._beta(t) / 2 * self.alpha(t)

    def d_sigma(self, t: Level) -> Level:
        return self._beta(t) / 2 * self.alpha(t) ** 2 / jnp.maximum(self.sigma(t), MIN_SIGMA)

    def time_of_logsnr(self, logsnr: Level) -> Level:
        """As in the base; levels noisier than the end of the path (log-SNR -10.05 by default) give t = 1."""
        integral = jax.nn.softplus(-logsnr)
        # The positive root of the quadratic B(t) = integral, written so that small integrals do not cancel.
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return jnp.minimum(2 * integral / (self.beta_min + root), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteBetas(Path):
    """Discrete linear-beta schedule of DDPM with `num_steps` levels, as of published DiTs (2006.11239, section 4).

    beta_k grows linearly over k = 0 ... num_steps - 1 and level k, at t = (k + 1) / num_steps, has alpha^2 = the
    product of 1 - beta over 0 ... k. Between levels log(alpha) is interpolated linearly in t, as DPM-Solver does
    (2206.00927, appendix D.4); sampling visits levels only. `LinearBeta` is the limit of many steps.
    """

    num_steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        at_least(self, 1, "num_steps", why="DDPM's is 1000")
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(
                f"DiscreteBetas.beta_first={self.beta_first}, beta_last={self.beta_last}: must be 0 < beta_first <= "
                "beta_last < 1; DDPM's are 1e-4 and 0.02"
            )

    def _log_alpha(self, t: Level) -> tuple[Level, Level]:
        """(log(alpha), its slope in t)."""
        table = _log_alphas(self)
        position = t * self.num_steps
        below = jnp.clip(jnp.floor(position), 0, self.num_steps - 1)
        rise = jnp.asarray(np.diff(table), jnp.float32)[below.astype(int)]
        value = jnp.asarray(table, jnp.float32)[below.astype(int)] + (position - below) * rise
        return value, rise * self.num_steps

    def alpha(self, t: Level) -> Level:
        return jnp.exp(self._log_alpha(t)[0])

    def sigma(self, t: Level) -> Level:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)[0]))

    def d_alpha(self, t: Level) -> Level:
        log_alpha, slope = self._log_alpha(t)
        return slope * jnp.exp(log_alpha)

    def d_sigma(self, t: Level) -> Level:
        """As LinearBeta's: from sigma clamped to MIN_SIGMA, where it is 0."""
        return -self.alpha(t) * self.d_alpha(t) / jnp.maximum(self.sigma(t), MIN_SIGMA)

    def time_of_logsnr(self, logsnr: Level) -> Level:
        """As in the base; levels noisier than the end of the path (log-SNR -10.12 by default) give t = 1."""
        positions = jnp.linspace(0, 1, self.num_steps + 1)
        return jnp.interp(jax.nn.softplus(-logsnr), jnp.asarray(-2 * _log_alphas(self), jnp.float32), positions)

    def nearest(self, t: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
        # Halves go to even k, as in diffusers; what is a half but for float64's rounding is one.
        return (np.round(np.round(t * self.num_steps - 1, 6)) + 1) / self.num_steps


@functools.lru_cache
def _log_alphas(path: DiscreteBetas) -> Float[np.ndarray, "levels"]:
    """log(alpha) at t = 0, 1 / num_steps, ... 1, in float64."""
    betas = np.linspace(path.beta_first, path.beta_last, path.num_steps)
    return np.concatenate([[0.0], np.cumsum(np.log1p(-betas)) / 2])


@overload
def shift_time(t: Level, shift: float) -> Level: ...
@overload
def shift_time(t: Float[np.ndarray, "..."], shift: float) -> Float[np.ndarray, "..."]: ...


def shift_time(t: Float[Array | np.ndarray, "..."], shift: float) -> Float[Array | np.ndarray, "..."]:
    """Timestep shift towards noise: t' = a t / (1 + (a - 1) t) (SD3, 2403.03206, eq. 23, with a = sqrt(m / n)).

    On the Linear path this lowers the log-SNR by 2 log(a) everywhere. `shift` = 1 is the identity, and the
    inverse of shifting by a is shifting by 1 / a.
    """
    # The same fraction, written so that rounding keeps 0 and 1 exactly and nothing passes 1.
    return shift * t / (shift * t + (1 - t))


class Shift(abc.ABC):
    """Timestep shift for clips of `num_positions` = t h w latent positions, the same in training and sampling."""

    @abc.abstractmethod
    def factor(self, num_positions: int) -> float:
        """The factor for `shift_time`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantShift(Shift):
    """Constant timestep shift, as published models are sampled: SD3 with 3, Wan with 3 at 480p and 5 at 720p."""

    shift: float

    def __post_init__(self) -> None:
        above(self, 0, "shift", why="1.0 means no shift")

    def factor(self, num_positions: int) -> float:
        return self.shift


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExponentialShift(Shift):
    """Dynamic timestep shift of Flux: exp(mu), with mu linear in the number of positions.

    mu is `low` at `low_positions` and `high` at `high_positions`. Flux counts tokens of 2 x 2 positions, 256 and 4096
    of them.
    """

    low: float = 0.5
    high: float = 1.15
    low_positions: int = 1024
    high_positions: int = 16384

    def __post_init__(self) -> None:
        if not 0 < self.low_positions < self.high_positions:
            raise ValueError(
                f"ExponentialShift.low_positions={self.low_positions}, high_positions={self.high_positions}: must be "
                "0 < low_positions < high_positions; Flux's are 1024 and 16384"
            )

    def factor(self, num_positions: int) -> float:
        slope = (self.high - self.low) / (self.high_positions - self.low_positions)
        return math.exp(self.low + slope * (num_positions - self.low_positions))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShift(Shift):
    """Resolution-dependent timestep shift: clip(sqrt(num_positions / base), 1, limit) (SD3).

    More positions show the same content more often, so that the same noise level hides less of it (SD3,
    section 5.3.2).
    """

    base: int = 256
    limit: float = 5.0

    def __post_init__(self) -> None:
        at_least(self, 1, "base", why="it is the number of positions without shift")
        at_least(self, 1, "limit", why="1 means no shift")

    def factor(self, num_positions: int) -> float:
        return min(max((num_positions / self.base) ** 0.5, 1.0), self.limit)
