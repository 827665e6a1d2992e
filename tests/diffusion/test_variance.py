"""Laws of the learnt variance, on DDPM's own table of levels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from dit_video.arrays import Output
from dit_video.diffusion.objective import Gaussian, UniformLevels
from dit_video.diffusion.path import DiscreteBetas
from dit_video.diffusion.prediction import Epsilon
from dit_video.diffusion.variance import LearnedVariance, _posterior_mean

OBJECTIVE = Gaussian(
    path=DiscreteBetas(), prediction=Epsilon(), times=UniformLevels(), variance=LearnedVariance(weight=2.0)
)
RNG = np.random.default_rng(0)
X_0, EPS, FOUND = (jnp.asarray(RNG.standard_normal((2, 1, 4, 4, 3)).astype(np.float32)) for _ in range(3))
VARIANCE = jnp.tanh(RNG.standard_normal(X_0.shape)).astype(np.float32)


def bound_by_betas(k: int) -> float:
    """Bits of level k as 2006.11239 and 2102.09672 write them, with the betas, in float64."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    before = np.append(1, bar[:-1])
    backward = betas * (1 - before) / (1 - bar)
    lower = np.log(np.append(backward[1], backward[1:]))
    x_0, eps, predicted, variance = (np.asarray(x, np.float64) for x in (X_0, EPS, FOUND, VARIANCE))
    x_t = bar[k] ** 0.5 * x_0 + (1 - bar[k]) ** 0.5 * eps
    predicted_x_0 = (x_t - (1 - bar[k]) ** 0.5 * predicted) / bar[k] ** 0.5

    def mean(x):
        return (before[k] ** 0.5 * betas[k] * x + (1 - betas[k]) ** 0.5 * (1 - before[k]) * x_t) / (1 - bar[k])

    log_variance = (variance + 1) / 2 * np.log(betas[k]) + (1 - variance) / 2 * lower[k]
    if k == 0:
        std = np.exp(log_variance / 2)
        low = np.where(x_0 < -0.999, 0, norm.cdf(x_0 - 1 / 255, mean(predicted_x_0), std))
        high = np.where(x_0 > 0.999, 1, norm.cdf(x_0 + 1 / 255, mean(predicted_x_0), std))
        return -np.mean(np.log(np.maximum(high - low, 1e-12))) / math.log(2)
    squared = (mean(x_0) - mean(predicted_x_0)) ** 2
    nats = log_variance - lower[k] - 1 + np.exp(lower[k] - log_variance) + squared * np.exp(-log_variance)
    return np.mean(nats) / 2 / math.log(2)


@pytest.mark.parametrize("k", [0, 1, 2, 10, 500, 999])
def test_the_loss_is_the_bound_of_ddpm(k):
    corrupted = OBJECTIVE.corrupt_with(X_0, EPS, jnp.full((2, 1), (k + 1) / 1000))
    loss, metrics = OBJECTIVE.loss(Output(FOUND, VARIANCE), corrupted)
    # At the first level float32 knows the bin of 1/255 to a few digits.
    np.testing.assert_allclose(metrics["variance_bits"], bound_by_betas(k), rtol=1e-2 if k == 0 else 1e-4)
    np.testing.assert_allclose(loss, np.mean((FOUND - EPS) ** 2) + 2 * metrics["variance_bits"], rtol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 10, 999])
def test_mean_of_the_step_back_is_that_of_ddpm(k):
    """Equation 7 of 2006.11239 with its betas. What it takes of x_t is alike in both means of the bound and cancels."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    before = np.append(1, bar[:-1])
    of_x_0 = before[k] ** 0.5 * betas[k] / (1 - bar[k])
    of_x_t = (1 - betas[k]) ** 0.5 * (1 - before[k]) / (1 - bar[k])
    t, s = (jnp.full((2, 1), index / 1000) for index in (k + 1, k))
    mean = _posterior_mean(DiscreteBetas(), X_0, FOUND, t, s)
    np.testing.assert_allclose(mean, of_x_0 * X_0 + of_x_t * FOUND, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [-1, 0, 1, 999])
def test_the_bound_teaches_the_variance_alone(k):
    corrupted = OBJECTIVE.corrupt_with(X_0, EPS, jnp.full((2, 1), (k + 1) / 1000))
    gradient = jax.grad(lambda out: OBJECTIVE.loss(out, corrupted)[0])(Output(FOUND, VARIANCE))
    np.testing.assert_allclose(gradient.prediction, 2 * (FOUND - EPS) / FOUND.size, rtol=1e-5, atol=1e-8)
    assert np.isfinite(gradient.variance).all()
    assert np.any(gradient.variance != 0)


def test_the_best_variance_is_the_true_one_where_the_mean_is_right():
    """With x_0 known, the lower bound (-1) is the variance of the step back: no other loses less."""
    corrupted = OBJECTIVE.corrupt_with(X_0, EPS, jnp.full((2, 1), 0.5))
    bits = [
        float(OBJECTIVE.loss(Output(EPS, jnp.full_like(X_0, v)), corrupted)[1]["variance_bits"])
        for v in (-1.0, 0.0, 1.0)
    ]
    assert bits[0] == pytest.approx(0, abs=1e-4)
    assert bits[0] <= bits[1] <= bits[2]


def test_impossible_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"LearnedVariance\.num_steps=1"):
        LearnedVariance(num_steps=1)
    with pytest.raises(ValueError, match=r"LearnedVariance\.weight=-1"):
        LearnedVariance(weight=-1.0)


def test_the_least_possible_values_are_taken():
    assert LearnedVariance(num_steps=2, weight=0.0).weight == 0
    assert LearnedVariance() == LearnedVariance(num_steps=1000, weight=1.0)
