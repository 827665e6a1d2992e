"""Paths from data to noise: x_t = alpha(t) x_0 + sigma(t) eps.

**t = 0 is data, t = 1 is noise**, everywhere in this package (as in SD3, https://arxiv.org/abs/2403.03206;
SiT and Diffusion Forcing's code run the other way). Every method is elementwise in t, in float32, and finite
on the closed interval [0, 1]; where the exact value is not finite the clamp is named beside it.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dit_video.arrays import Latents, Time

Level = Float[Array, "..."]

# log-SNR is reported within +-LOGSNR_LIMIT: beyond, float32 holds alpha or sigma to few digits and exp
# overflows soon.
LOGSNR_LIMIT = 20.0
# The slope of LinearBeta's sigma is infinite at t = 0, where sigma vanishes like sqrt(t).
MIN_SIGMA = 1e-4


def over_latents(level: Shaped[Array, "B #t"]) -> Shaped[Array, "B #t 1 1 1"]:
    """A value per clip or per frame, ready to multiply latents [B t h w c]."""
    return level[:, :, None, None, None]


class Path(abc.ABC):
    """alpha falls from 1, sigma rises from 0 to 1, and the log-SNR between them falls strictly."""

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

    def logsnr(self, t: Level) -> Level:
        """log(alpha^2 / sigma^2), clipped to +-LOGSNR_LIMIT (it is infinite where alpha or sigma is 0)."""
        return jnp.clip(2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t))), -LOGSNR_LIMIT, LOGSNR_LIMIT)

    def x_t(self, x_0: Latents, eps: Latents, t: Time) -> Latents:
        """Noisy latents."""
        return over_latents(self.alpha(t)) * x_0 + over_latents(self.sigma(t)) * eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Path):
    """The straight line of rectified flow: alpha = 1 - t, sigma = t (SD3, 2403.03206, eq. 13)."""

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
    """The quarter circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

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
    """The variance-preserving path whose beta grows linearly: the limit of DDPM's schedule for many steps.

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


def shift_time(t: Level, shift: float) -> Level:
    """Move times towards noise: t' = a t / (1 + (a - 1) t) (SD3, 2403.03206, eq. 23, with a = sqrt(m / n)).

    On the Linear path this lowers the log-SNR by 2 log(a) everywhere. `shift` = 1 is the identity, and the
    inverse of shifting by a is shifting by 1 / a.
    """
    # The same fraction, written so that rounding keeps 0 and 1 exactly and nothing passes 1.
    return shift * t / (shift * t + (1 - t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShift:
    """How far times move for clips of many latent positions: clip(sqrt(num_positions / base), 1, limit).

    More positions show the same content more often, so that the same noise level hides less of it (SD3,
    section 5.3.2). Pass the result to `shift_time`, the same in training and in sampling.
    """

    base: int = 256
    limit: float = 5.0

    def __post_init__(self) -> None:
        if self.base < 1:
            raise ValueError(f"TokenShift.base={self.base}: must be at least 1, the number of positions without shift")
        if self.limit < 1:
            raise ValueError(f"TokenShift.limit={self.limit}: must be at least 1; 1 means no shift")

    def factor(self, num_positions: int) -> float:
        """The shift for latents of `num_positions` = t h w."""
        return min(max((num_positions / self.base) ** 0.5, 1.0), self.limit)
