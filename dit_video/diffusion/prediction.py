"""Prediction types (epsilon, x_0, v, velocity) and their conversion to x_0 and eps.

Every prediction is a mixture of data and noise whose coefficients depend on t alone. Together with
x_t = alpha x_0 + sigma eps it is a linear system of two equations,

    | alpha  sigma | | x_0 |   |    x_t     |
    |   a      b   | | eps | = | prediction |,

and all conversions are its solution. `V` (Salimans & Ho) and `Velocity` (dx_t / dt) are equal on the Cosine
path up to the factor pi / 2 and differ on every other.

Where the determinant alpha b - sigma a goes to 0, x_t and the prediction say the same thing twice: Epsilon at
alpha = 0 says nothing of x_0, X0 at sigma = 0 nothing of eps. The determinant is kept at least
MIN_DETERMINANT in size, so that the unknowable half shrinks to 0, the mean of whitened latents and of noise,
instead of growing to an arbitrary multiple of the network's error.
"""

import abc
import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import Latents, Output, Time
from dit_video.diffusion.path import Level, Path, over_latents

# (x_t, t) -> prediction: a network whose condition is bound already.
DenoiseFn = Callable[[Latents, Time], Output]

# Just below 0.0066, alpha at the end of LinearBeta: DDPM's own path is left as it is.
MIN_DETERMINANT = 5e-3


class Prediction(abc.ABC):
    """Prediction type: a mixture a x_0 + b eps. All results are float32."""

    @abc.abstractmethod
    def coefficients(self, path: Path, t: Level) -> tuple[Level, Level]:
        """(a, b)."""

    def _determinant(self, path: Path, t: Level) -> Level:
        a, b = self.coefficients(path, t)
        determinant = path.alpha(t) * b - path.sigma(t) * a
        floor = jnp.copysign(MIN_DETERMINANT, determinant)
        return jnp.where(jnp.abs(determinant) < MIN_DETERMINANT, floor, determinant)

    def target(self, path: Path, x_0: Latents, eps: Latents, t: Time) -> Latents:
        """Training target of the network for x_t."""
        a, b = self.coefficients(path, t)
        return over_latents(a) * x_0 + over_latents(b) * eps

    def x_0(self, path: Path, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        """x_0 that a prediction implies."""
        _, b = self.coefficients(path, t)
        solution = over_latents(b) * x_t - over_latents(path.sigma(t)) * _float32(prediction)
        return solution / over_latents(self._determinant(path, t))

    def eps(self, path: Path, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        """eps that a prediction implies."""
        a, _ = self.coefficients(path, t)
        solution = over_latents(path.alpha(t)) * _float32(prediction) - over_latents(a) * x_t
        return solution / over_latents(self._determinant(path, t))

    def velocity(self, path: Path, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        """dx_t / dt = d_alpha x_0 + d_sigma eps: slope of the probability-flow ODE (2011.13456, eq. 13)."""
        x_0 = self.x_0(path, prediction, x_t, t)
        eps = self.eps(path, prediction, x_t, t)
        return over_latents(path.d_alpha(t)) * x_0 + over_latents(path.d_sigma(t)) * eps

    def squared_gain(self, path: Path, t: Level) -> Level:
        """Squared error of x_0 per squared error of the prediction, at fixed x_t."""
        return (path.sigma(t) / self._determinant(path, t)) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epsilon(Prediction):
    """Noise prediction (DDPM, 2006.11239, eq. 14). Ill-conditioned for x_0 near t = 1; see MIN_DETERMINANT."""

    def coefficients(self, path: Path, t: Level) -> tuple[Level, Level]:
        return jnp.zeros_like(t), jnp.ones_like(t)

    def eps(self, path: Path, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        return _float32(prediction)

    def squared_gain(self, path: Path, t: Level) -> Level:
        return jnp.exp(-path.logsnr(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class X0(Prediction):
    """Data prediction. Ill-conditioned for eps near t = 0; see MIN_DETERMINANT."""

    def coefficients(self, path: Path, t: Level) -> tuple[Level, Level]:
        return jnp.ones_like(t), jnp.zeros_like(t)

    def x_0(self, path: Path, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        return _float32(prediction)

    def squared_gain(self, path: Path, t: Level) -> Level:
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class V(Prediction):
    """v-prediction: v = alpha eps - sigma x_0 (Salimans & Ho, 2202.00512, section 4). Stable at both ends."""

    def coefficients(self, path: Path, t: Level) -> tuple[Level, Level]:
        return -path.sigma(t), path.alpha(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(Prediction):
    """Velocity (flow matching, 2209.03003, 2403.03206): dx_t / dt = d_alpha x_0 + d_sigma eps (Linear: eps - x_0)."""

    def coefficients(self, path: Path, t: Level) -> tuple[Level, Level]:
        return path.d_alpha(t), path.d_sigma(t)

    def velocity(self, path: Path, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        return _float32(prediction)


def _float32(prediction: Latents) -> Float[Array, "B t h w c"]:
    return prediction.astype(jnp.float32)
