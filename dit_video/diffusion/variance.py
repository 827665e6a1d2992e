"""Learned variance of the reverse step (Nichol and Dhariwal, 2102.09672), which published DiTs predict with the noise.

A network predicts for every number where the log-variance lies between its two bounds: the forward variance and the
posterior variance given x_0. Its loss is a bound on likelihood of which the mean has no gradient (section 3.1).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import Latents, Time
from dit_video.config.bounds import at_least
from dit_video.diffusion.path import Level, Path, over_latents

# DDPM's last step is judged as if data were 8-bit in [-1, 1] (2006.11239, section 3.3), and so was DiT on latents.
_HALF_BIN = 1 / 255
_EDGE = 0.999
_LEAST = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedVariance:
    """Learned variance of the reverse step, with its variational bound (L_vlb).

    Attributes:
        num_steps: into which the path is cut for the loss; sampling may take others.
        weight: of the loss of the variance beside that of the prediction.
    """

    num_steps: int = 1000
    weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 2, "num_steps", why="DDPM's is 1000")
        at_least(self, 0, "weight", why="DiT's is 1")

    def log_variance(self, path: Path, variance: Latents, t: Time, s: Time) -> Latents:
        """Log-variance of x_s given x_t, s < t (equation 15).

        Args:
            variance: the network's, -1 to 1 between the bounds.
        """
        upper = jnp.log(jnp.maximum(_forward_variance(path, t, s), _LEAST))
        # At s = 0 the lower bound is 0; there it is that of the step before.
        at_end, one = s <= 0, 1 / self.num_steps
        lower = jnp.log(_backward_variance(path, jnp.where(at_end, t + one, t), jnp.where(at_end, t, s)))
        share = (variance.astype(jnp.float32) + 1) / 2
        return share * over_latents(upper) + (1 - share) * over_latents(lower)

    def loss(
        self, path: Path, x_0: Latents, found_x_0: Latents, variance: Latents, x_t: Latents, t: Time
    ) -> Float[Array, "B t"] | Float[Array, "B t h w"]:
        """Variational bound in bits per number of the step from t to t - 1 / num_steps (eq. 4 to 7).

        The mean per frame, or per cell where these have levels of their own.

        Args:
            found_x_0: as the network predicts it; it gets no gradient from here.
        """
        # There is no earlier step than the first.
        t = jnp.maximum(t, 1 / self.num_steps)
        s = t - 1 / self.num_steps
        s = jnp.where(s < 0.5 / self.num_steps, 0, s)
        found_mean = _posterior_mean(path, jax.lax.stop_gradient(found_x_0), x_t, t, s)
        log_variance = self.log_variance(path, variance, t, s)
        last = over_latents(s <= 0)
        # What is not chosen below must not make a gradient that is no number.
        true_log = over_latents(jnp.log(_backward_variance(path, t, jnp.where(s <= 0, t / 2, s))))
        mean = _posterior_mean(path, x_0, x_t, t, s)
        divergence = 0.5 * (
            log_variance
            - true_log
            - 1
            + jnp.exp(true_log - log_variance)
            + jnp.square(mean - found_mean) * jnp.exp(-log_variance)
        )
        surprise = -_discretized_log_likelihood(x_0, found_mean, 0.5 * log_variance)
        nats = jnp.where(last, surprise, divergence)
        return jnp.mean(nats, axis=tuple(range(t.ndim, 5))) / math.log(2)


def _forward_variance(path: Path, t: Level, s: Level) -> Level:
    """Forward variance of x_t given x_s: beta of the step."""
    return path.sigma(t) ** 2 - (path.alpha(t) / path.alpha(s) * path.sigma(s)) ** 2


def _backward_variance(path: Path, t: Level, s: Level) -> Level:
    """Posterior variance of x_s given x_t and x_0 (2006.11239, equation 7)."""
    return jnp.maximum(_forward_variance(path, t, s) * (path.sigma(s) / path.sigma(t)) ** 2, _LEAST)


def _posterior_mean(path: Path, x_0: Latents, x_t: Latents, t: Time, s: Time) -> Latents:
    """Posterior mean of x_s given x_t and x_0 (2006.11239, equation 7)."""
    of_x_t = path.alpha(t) / path.alpha(s) * (path.sigma(s) / path.sigma(t)) ** 2
    of_x_0 = path.alpha(s) * _forward_variance(path, t, s) / path.sigma(t) ** 2
    return over_latents(of_x_0) * x_0 + over_latents(of_x_t) * x_t


def _discretized_log_likelihood(x: Latents, mean: Latents, log_std: Latents) -> Latents:
    """Log-likelihood of the bin around x of an 8-bit value; the edge bins extend to infinity."""
    inverse = jnp.exp(-log_std)
    above = jax.scipy.stats.norm.cdf((x - mean + _HALF_BIN) * inverse)
    below = jax.scipy.stats.norm.cdf((x - mean - _HALF_BIN) * inverse)
    mass = jnp.where(x < -_EDGE, above, jnp.where(x > _EDGE, 1 - below, above - below))
    return jnp.log(jnp.maximum(mass, _LEAST))
