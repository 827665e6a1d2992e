"""Laws of the samplers, on data whose best denoiser is known in closed form.

For data N(MEAN, STD^2), x_t is N(alpha MEAN, alpha^2 STD^2 + sigma^2), the expectations of x_0 and eps given
x_t are linear in x_t, and the probability-flow ODE carries quantiles to quantiles.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Output
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.objective import ddpm, rectified_flow
from dit_video.diffusion.path import Cosine, Linear, LinearBeta, Path, over_latents
from dit_video.diffusion.prediction import X0, Epsilon, V, Velocity
from dit_video.diffusion.process import noise
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Heun
from dit_video.diffusion.timestep_spacing import Spacing

MEAN, STD = 0.8, 0.5
PATHS = [Linear(), Cosine(), LinearBeta()]
DETERMINISTIC = [Euler, Heun, DDIM, DPMSolver, UniPC]
SAMPLERS = [*DETERMINISTIC, Ancestral]
SHAPE = (1, 2, 2, 4)
KEYS = jax.random.split(jax.random.key(0), 64)
OTHER_KEYS = jax.random.split(jax.random.key(1), 64)


def optimal_denoiser(objective):
    path = objective.path

    def denoise(x_t, t):
        assert t.shape == (x_t.shape[0], 1)
        alpha, sigma = over_latents(path.alpha(t)), over_latents(path.sigma(t))
        score = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return Output(objective.prediction.target(path, MEAN + alpha * STD**2 * score, sigma * score, t))

    return denoise


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample(sampler, objective, x_1, keys):
    return sampler(optimal_denoiser(objective), objective, x_1, keys)


def exact_flow(path, x_1):
    """Where the ODE ends that starts at x_1."""
    alpha, sigma = (float(level(jnp.array(1.0))) for level in (path.alpha, path.sigma))
    return MEAN + STD * (x_1 - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5


@pytest.mark.parametrize(
    ("sampler", "path", "prediction"),
    [
        *itertools.product(SAMPLERS, PATHS, [V()]),
        *itertools.product([DDIM], [Cosine()], [Epsilon(), X0(), Velocity()]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value),
)
def test_a_known_gaussian_is_recovered(sampler, path, prediction):
    objective = dataclasses.replace(ddpm(prediction), path=path)
    x_1 = noise(KEYS, (2, 4, 4, 4))
    x_0 = sample(sampler(num_steps=256), objective, x_1, OTHER_KEYS)
    # 8192 numbers: standard errors 0.0055 and 0.0039, besides the error of 256 steps.
    np.testing.assert_allclose(jnp.mean(x_0), MEAN, atol=0.02)
    np.testing.assert_allclose(jnp.std(x_0), STD, atol=0.02)


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=repr)
@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (DDIM, 1), (Heun, 2)])
def test_order_of_convergence_to_the_exact_flow(sampler, order, path):
    objective = dataclasses.replace(ddpm(V()), path=path)
    x_1 = noise(KEYS[:2], SHAPE)
    errors = [
        float(jnp.max(jnp.abs(sample(sampler(num_steps=n), objective, x_1, KEYS[:2]) - exact_flow(path, x_1))))
        for n in (16, 32)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvenLogSNR(Spacing):
    """Evenly in log-SNR over what the path spans in the middle: where the order of a multistep solver is defined."""

    path: Path

    def times(self, num_steps):
        with jax.ensure_compile_time_eval():
            times = self.path.time_of_logsnr(jnp.linspace(-8, 16, num_steps))
        return np.append(np.asarray(times, np.float64), 0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(("sampler", "order"), [(DPMSolver, 2), (UniPC, 3)])
def test_order_of_convergence_of_multistep_solvers(sampler, order, path):
    objective = dataclasses.replace(ddpm(V()), path=path)
    spacing = EvenLogSNR(path=path)
    x_t = noise(KEYS[:2], SHAPE)
    alpha, sigma = (level(jnp.array(spacing.times(2)[0], jnp.float32)) for level in (path.alpha, path.sigma))
    expected = MEAN + STD * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5
    errors = [
        float(jnp.max(jnp.abs(sample(sampler(num_steps=n, spacing=spacing), objective, x_t, KEYS[:2]) - expected)))
        for n in (33, 65)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_ddim_converges_where_sigma_has_a_root_at_the_data():
    path = LinearBeta()
    objective = dataclasses.replace(ddpm(), path=path)
    x_1 = noise(KEYS[:2], SHAPE)
    x_0 = sample(DDIM(num_steps=256), objective, x_1, KEYS[:2])
    np.testing.assert_allclose(x_0, exact_flow(path, x_1), atol=0.02)


def test_euler_with_a_velocity_network_is_x_minus_dt_velocity():
    objective = rectified_flow()
    x_1 = noise(KEYS[:2], SHAPE)

    def network(x_t, t):
        return Output(jnp.sin(3 * x_t) + over_latents(t) * x_t)

    expected = x_1
    grid = objective.time_grid(6, 4)
    for t, s in itertools.pairwise(grid):
        expected = expected - (t - s) * network(expected, jnp.full((2, 1), t)).prediction
    x_0 = Euler(num_steps=6)(network, objective, x_1, KEYS[:2])
    np.testing.assert_allclose(x_0, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(DDIM(num_steps=6)(network, objective, x_1, KEYS[:2]), expected, rtol=1e-5, atol=1e-5)


def test_one_step_of_euler_for_heun_ends_at_the_data():
    objective = rectified_flow()
    x_1 = noise(KEYS[:2], SHAPE)
    one_step = [sample(sampler(num_steps=1), objective, x_1, KEYS[:2]) for sampler in (Euler, Heun)]
    np.testing.assert_array_equal(*one_step)


def test_ancestral_step_is_the_posterior_of_ddpm():
    """Mean and deviation of x_s against 2006.11239, eq. 7, written with the betas between t and s."""
    path = Cosine()
    objective = ddpm(X0())
    t, s = jnp.full((64, 1), 0.6), jnp.full((64, 1), 0.5)
    x_0, x_t = 0.4, 1.3
    x_s = Ancestral(num_steps=1).step(
        lambda x_t, t: Output(jnp.full_like(x_t, x_0)), objective, jnp.full((64, 1, 16, 16, 1), x_t), t, s, KEYS
    )
    bar_t, bar_s = float(path.alpha(t)[0, 0]) ** 2, float(path.alpha(s)[0, 0]) ** 2
    beta = 1 - bar_t / bar_s
    mean = (bar_s**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - bar_s) * x_t) / (1 - bar_t)
    std = ((1 - bar_s) / (1 - bar_t) * beta) ** 0.5
    np.testing.assert_allclose([jnp.mean(x_s), jnp.std(x_s)], [mean, std], atol=0.01)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_clip_does_not_depend_on_its_batch(sampler):
    objective = ddpm(V())
    together = sample(sampler(num_steps=4), objective, noise(KEYS[:2], SHAPE), KEYS[:2])
    alone = sample(sampler(num_steps=4), objective, noise(KEYS[1:2], SHAPE), KEYS[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-6)


def test_ancestral_noise_comes_from_the_keys_and_is_new_in_each_step():
    objective = ddpm(V())
    x_1 = noise(KEYS[:2], SHAPE)
    sampler = Ancestral(num_steps=4)
    first, again = (sample(sampler, objective, x_1, KEYS[:2]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, sample(sampler, objective, x_1, KEYS[2:4]), atol=0.1)


def test_deterministic_samplers_ignore_the_keys():
    objective = ddpm(V())
    x_1 = noise(KEYS[:2], SHAPE)
    for sampler in DETERMINISTIC:
        one, other = (sample(sampler(num_steps=4), objective, x_1, keys) for keys in (KEYS[:2], KEYS[2:4]))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("sampler", "num_traces"), [(sampler, 2 if sampler is Heun else 1) for sampler in SAMPLERS])
def test_the_network_is_traced_once_whatever_the_number_of_steps(sampler, num_traces):
    objective = rectified_flow()
    x_1 = noise(KEYS[:2], SHAPE)
    denoise = optimal_denoiser(objective)
    for num_steps in (2, 40):
        traces = []

        def watched(x_t, t, traces=traces):
            traces.append(x_t.shape)
            return denoise(x_t, t)

        jax.eval_shape(functools.partial(sampler(num_steps=num_steps), watched, objective), x_1, KEYS[:2])
        assert len(traces) == num_traces


def test_guided_denoisers_are_denoisers():
    """With pairs of equal predictions any guidance changes nothing."""
    objective = ddpm(V())
    denoise = optimal_denoiser(objective)
    guided = Guidance(scale=4.0, interval=(0.2, 0.8)).classifier_free(
        denoise, lambda x_t, t: (denoise(x_t, t), denoise(x_t, t))
    )
    x_1 = noise(KEYS[:2], SHAPE)
    np.testing.assert_allclose(
        Heun(num_steps=5)(guided, objective, x_1, KEYS[:2]),
        Heun(num_steps=5)(denoise, objective, x_1, KEYS[:2]),
        atol=1e-5,
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_without_steps_is_refused(sampler):
    with pytest.raises(ValueError, match=rf"{sampler.__name__}\.num_steps=0"):
        sampler(num_steps=0)
