"""Gaussian diffusion objectives: path x prediction x times x weighting.

DDPM, rectified flow and diffusion forcing are one object with different parts. Each part is a value; a method
that needs another path, another weighting or another law of times is a new small dataclass here or beside it.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dit_video.arrays import Latents, Mean, Output, Time
from dit_video.config.bounds import above, at_least
from dit_video.diffusion.path import Cosine, Level, Linear, Path, Shift, TokenShift, over_latents, shift_time
from dit_video.diffusion.prediction import Epsilon, Prediction, Velocity
from dit_video.diffusion.process import Corrupted, Known, Metrics, noise
from dit_video.diffusion.timestep_spacing import Spacing, Trailing
from dit_video.diffusion.variance import LearnedVariance

# The loss is also reported for this many equal intervals of t.
NUM_BINS = 4
_TRAILING = Trailing()


class Times(abc.ABC):
    """Distribution of t in training, before any shift."""

    @abc.abstractmethod
    def quantile(self, u: Level) -> Level:
        """The inverse of the cumulative distribution: uniform u in [0, 1] -> t in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(Times):
    """Uniform distribution of t."""

    def quantile(self, u: Level) -> Level:
        return u


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformLevels(Times):
    """Uniform distribution over the levels t = 1 / num_steps, ... 1, for paths with discrete timesteps (DDPM)."""

    num_steps: int = 1000

    def __post_init__(self) -> None:
        at_least(self, 1, "num_steps", why="DDPM's is 1000")

    def quantile(self, u: Level) -> Level:
        return (jnp.minimum(jnp.floor(u * self.num_steps), self.num_steps - 1) + 1) / self.num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(Times):
    """Logit-normal distribution of t: the middle of the path more often than its ends (SD3, 2403.03206, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        above(self, 0, "std", why="SD3 uses 1.0")

    def quantile(self, u: Level) -> Level:
        return jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(u))


class Weighting(abc.ABC):
    """Loss weighting by noise level."""

    @abc.abstractmethod
    def weight(self, path: Path, prediction: Prediction, t: Level) -> Level:
        """Factor on the squared error of the prediction at t."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unweighted(Weighting):
    """No weighting: plain mean squared error of the prediction."""

    def weight(self, path: Path, prediction: Prediction, t: Level) -> Level:
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """Min-SNR weighting: the squared error of x_0 counts min(SNR, gamma) (Hang et al., 2303.09556, section 3.4).

    On the prediction's own error that is min(SNR, gamma) / SNR for Epsilon, min(SNR, gamma) for X0 and, where
    alpha^2 + sigma^2 = 1, min(SNR, gamma) / (SNR + 1) for V.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        above(self, 0, "gamma", why="the paper uses 5.0")

    def weight(self, path: Path, prediction: Prediction, t: Level) -> Level:
        return jnp.minimum(jnp.exp(path.logsnr(t)), self.gamma) * prediction.squared_gain(path, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian diffusion objective. `per_frame` draws one t per latent frame instead of one per clip.

    `variance`: how the variance of the reverse step is learnt too; None where the network does not predict it.
    """

    path: Path
    prediction: Prediction
    times: Times
    weighting: Weighting = Unweighted()
    shift: Shift | None = None
    per_frame: bool = False
    variance: LearnedVariance | None = None

    def prior(self, keys: Key[Array, "B"], shape: tuple[int, ...]) -> Latents:
        """Standard normal noise."""
        return noise(keys, shape)

    def corrupt(self, rng: Key[Array, ""], x_0: Latents, known: Known | None = None) -> Corrupted:
        """Draw times and noise for a batch of latents.

        t is [B 1], or [B t] for `per_frame` or with known frames, or [B t h w] where cells of them are known.
        """
        key_t, key_eps = jax.random.split(rng)
        batch_size, num_frames = x_0.shape[:2]
        independent = None if known is None else known.independent
        u = _stratified(key_t, batch_size, num_frames if self.per_frame or independent is not None else 1)
        if independent is not None and not self.per_frame:
            u = jnp.where(independent[:, None], u, u[:, :1])
        t = shift_time(self.times.quantile(u), self._shift_factor(math.prod(x_0.shape[1:4])))
        return self.corrupt_with(x_0, jax.random.normal(key_eps, x_0.shape), t, known)

    def corrupt_with(self, x_0: Latents, eps: Latents, t: Time, known: Known | None = None) -> Corrupted:
        """The same at times and with noise of the caller's; validation calls it at fixed levels."""
        x_0 = x_0.astype(jnp.float32)
        if known is not None and known.absent is not None:
            t = jnp.where(known.absent, 1.0, t)
        x_t, weight = self.path.x_t(x_0, eps, t), self.weighting.weight(self.path, self.prediction, t)
        target = self.prediction.target(self.path, x_0, eps, t)
        if known is not None:
            weight = jnp.broadcast_to(known.spread(weight), x_t.shape[: known.mask.ndim])
            x_t, t = known.clean(x_t, t)
        return Corrupted(x_t=x_t, t=t, target=target, weight=weight)

    def loss(
        self, output: Output, corrupted: Corrupted, known: Known | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Weighted mean squared error, and the same per interval of t; plus the loss of a variance that is learnt.

        Where frames or cells are known, means are over the others.

        Metrics: for each of NUM_BINS equal intervals `loss/t_LOW_HIGH`, the mean over the frames (or clips)
        whose t falls there, and `count/t_LOW_HIGH`, their number. The loss is the mean
        of the former weighted by the latter. `variance_bits` is the unweighted loss of the variance.
        """
        error = jnp.square(output.prediction.astype(jnp.float32) - corrupted.target)
        # [B #t] or [B t h w]: one number for each level that was drawn.
        per_level = jnp.mean(error, axis=tuple(range(corrupted.t.ndim, 5)))
        if corrupted.t.ndim == 2 and corrupted.t.shape[1] == 1:
            per_level = jnp.mean(per_level, axis=1, keepdims=True)
        per_level = corrupted.weight * per_level

        metrics: Metrics = {}
        free = (
            jnp.ones_like(per_level)
            if known is None
            else jnp.broadcast_to(known.judged(), per_level.shape).astype(float)
        )
        bins = jnp.clip(jnp.floor(corrupted.t * NUM_BINS), 0, NUM_BINS - 1)
        for i in range(NUM_BINS):
            inside = (bins == i).astype(jnp.float32) * free
            count = jnp.sum(inside)
            name = f"t_{i / NUM_BINS:.2f}_{(i + 1) / NUM_BINS:.2f}"
            metrics[f"loss/{name}"] = Mean(jnp.sum(inside * per_level), count)
            metrics[f"count/{name}"] = count
        loss = jnp.sum(free * per_level) / jnp.sum(free) if known is not None else jnp.mean(per_level)
        if self.variance is not None:
            # A variance at level 0 is none; where frames are known it is not looked at.
            x_t, t = corrupted.x_t, corrupted.t if known is None else jnp.where(known.mask, 1.0, corrupted.t)
            x_0, found_x_0 = (self.denoised(x, x_t, t) for x in (corrupted.target, output.prediction))
            bits = self.variance.loss(self.path, x_0, found_x_0, learnt_variance(output), x_t, t)
            bits = jnp.mean(bits, where=True if known is None else known.judged())
            metrics["variance_bits"] = bits
            loss += self.variance.weight * bits
        return loss, metrics

    def step(self, output: Output, x_t: Latents, t: Time, s: Time, keys: Key[Array, "B"]) -> Latents:
        """x_s from the posterior q(x_s | x_t, x_0) at the predicted x_0 (DDPM, 2006.11239, eq. 6 and 7).

        For any path (VDM, 2107.00630, appendix A), written as 2010.02502, eq. 12 with eta = 1: of the noise in
        x_s the share rho = (alpha_t sigma_s) / (alpha_s sigma_t) is kept from x_t, the rest is drawn afresh. Where a
        variance is learnt, what is drawn has that one.
        """
        path = self.path
        x_0 = self.prediction.x_0(path, output.prediction, x_t, t)
        eps = self.prediction.eps(path, output.prediction, x_t, t)
        rho = (path.alpha(t) * path.sigma(s)) / (path.alpha(s) * path.sigma(t))
        mean = path.x_t(x_0, over_latents(rho) * eps, s)
        if self.variance is None:
            std = over_latents(path.sigma(s) * jnp.sqrt(1 - jnp.minimum(rho, 1) ** 2))
        else:
            # The last step ends at its mean.
            learnt = self.variance.log_variance(path, learnt_variance(output), t, s)
            std = jnp.exp(0.5 * learnt) * over_latents(s > 0)
        return mean + std * noise(keys, x_t.shape[1:])

    def denoised(self, prediction: Latents, x_t: Latents, t: Time) -> Latents:
        """The x_0 that a network's prediction implies: the scale on which objectives are compared."""
        return self.prediction.x_0(self.path, prediction, x_t, t)

    def time_grid(self, num_steps: int, num_positions: int, spacing: Spacing = _TRAILING) -> Float[Array, "steps"]:
        """Sampling schedule: num_steps + 1 times falling to exactly 0; by default from exactly 1.

        Spaced, then shifted as in training for latents of `num_positions` = t h w, then those nearest on the path.
        """
        return jnp.asarray(self.host_times(num_steps, num_positions, spacing))

    def host_times(self, num_steps: int, num_positions: int, spacing: Spacing) -> Float[np.ndarray, "steps"]:
        """`time_grid` as numbers of the host, for which nothing is compiled."""
        shifted = shift_time(spacing.times(num_steps), self._shift_factor(num_positions))
        return np.asarray(self.path.nearest(shifted), np.float32)

    def _shift_factor(self, num_positions: int) -> float:
        return 1.0 if self.shift is None else self.shift.factor(num_positions)


_EPSILON = Epsilon()


def ddpm(prediction: Prediction = _EPSILON) -> Gaussian:
    """DDPM objective: cosine path, uniform times, noise prediction (2006.11239, 2102.09672); `V()` for 2202.00512."""
    return Gaussian(path=Cosine(), prediction=prediction, times=Uniform())


def rectified_flow() -> Gaussian:
    """Rectified flow as in SD3 (2403.03206): linear path, velocity, logit-normal times, resolution-dependent shift."""
    return Gaussian(path=Linear(), prediction=Velocity(), times=LogitNormal(), shift=TokenShift())


def diffusion_forcing(objective: Gaussian) -> Gaussian:
    """Diffusion forcing: an objective with an independent noise level for each frame (Chen et al., 2407.01392).

    Whether a frame may see later ones is a property of the network, not of the objective.
    """
    return dataclasses.replace(objective, per_frame=True)


def learnt_variance(output: Output) -> Latents:
    """What a network says of the variance.

    Raises:
        ValueError: it says nothing of it.
    """
    if output.variance is None:
        raise ValueError("objective.variance: the network predicts no variance; set network.learned_variance=True")
    return output.variance


def _stratified(key: Key[Array, ""], batch_size: int, num_frames: int) -> Float[Array, "B f"]:
    """Stratified uniform numbers: each column has exactly one in each of `batch_size` equal intervals.

    Less noise in the loss than independent draws (VDM, 2107.00630, appendix I.1). The interval of a row is a
    random permutation of its own per column, so that every entry alone is uniform on [0, 1), no row depends
    on its place in the batch, and the frames of a clip are independent.
    """
    key_order, key_offset = jax.random.split(key)
    shape = (batch_size, num_frames)
    stratum = jnp.argsort(jax.random.uniform(key_order, shape), axis=0)
    return (stratum + jax.random.uniform(key_offset, shape)) / batch_size
