"""Every scheduling matrix and every pattern of known frames samples the right conditional of a linear-Gaussian video.

A clip is an AR(1) process in time whose two columns and two channels are correlated. The best denoiser at any levels of
its cells is linear, and so is a deterministic sampler: x_0 = M x_1 + b, mean b and covariance M M^T, which is read off
without drawing a number. What is known is conditioned on in closed form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Output
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.objective import Gaussian, LogitNormal, rectified_flow
from dit_video.diffusion.path import Cosine, over_latents
from dit_video.diffusion.prediction import V
from dit_video.diffusion.process import Known, noise
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Heun
from dit_video.diffusion.scheduling_matrix import FrameByFrame, Pyramid, WholeClip, turns
from dit_video.diffusion.timestep_spacing import Trailing
from dit_video.tasks import diffuse

SHAPE = (4, 1, 2, 2)
SIZE = int(np.prod(SHAPE))
FLOW = rectified_flow()
MATRICES = [WholeClip(), FrameByFrame(), Pyramid(steps_apart=12)]

# Which of four frames are known; of the region, the left column of all but the first frame, and all of the last.
FRAMES = {
    "nothing": [0, 0, 0, 0],
    "extension": [1, 1, 0, 0],
    "backward": [0, 0, 1, 1],
    "in between": [1, 0, 0, 1],
    "one in the middle": [0, 1, 0, 0],
}
PATTERNS = {name: np.array(known, bool)[None] for name, known in FRAMES.items()}
REGION = np.zeros((1, *SHAPE[:3]), bool)
REGION[:, 1:, :, 0], REGION[:, 3] = True, True
PATTERNS["region"] = REGION


def video() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a clip, flattened: frames decay by 0.8, within a frame cells are correlated."""
    mix = np.random.default_rng(0).normal(size=(4, 4))
    within = mix @ mix.T / 4 + 0.1 * np.eye(4)
    over_time = 0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    return np.linspace(-1, 1, SIZE), np.kron(over_time, within)


MEAN, COVARIANCE = video()


def denoised(path, x_t, t):
    """E[x_0 | x_t] for any levels, the same in every row."""
    alpha, sigma = (jnp.broadcast_to(over_latents(f(t)), x_t.shape)[0].ravel() for f in (path.alpha, path.sigma))
    noisy = alpha[:, None] * COVARIANCE * alpha + jnp.diag(sigma**2 + 1e-6)
    gain = jnp.linalg.solve(noisy, alpha[:, None] * COVARIANCE)
    return (MEAN + (x_t.reshape(-1, SIZE) - alpha * MEAN) @ gain).reshape(x_t.shape)


def network(objective: Gaussian):
    """The best denoiser as a network that predicts what the objective says."""

    def output(x_t, t, cond):
        x_0, path = denoised(objective.path, x_t, t), objective.path
        sigma = jnp.maximum(over_latents(path.sigma(t)), 1e-4)
        eps = (x_t - over_latents(path.alpha(t)) * x_0) / sigma
        return Output(objective.prediction.target(path, x_0, eps, t))

    return output


def conditional(mask: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the whole clip where some cells are known."""
    known = np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (5 - mask.ndim)), (1, *SHAPE)).ravel()
    mean, covariance = MEAN.copy(), np.zeros_like(COVARIANCE)
    gain = COVARIANCE[~known][:, known] @ np.linalg.inv(COVARIANCE[known][:, known] + 1e-9 * np.eye(known.sum()))
    mean[known] = values.ravel()[known]
    mean[~known] += gain @ (values.ravel()[known] - MEAN[known])
    covariance[np.ix_(~known, ~known)] = COVARIANCE[~known][:, ~known] - gain @ COVARIANCE[known][:, ~known]
    return mean, covariance


VALUES = np.random.default_rng(1).normal(size=(1, *SHAPE)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("sampler", "objective"))
def sample(sampler, objective, x_1, keys, mask, levels):
    known = None if mask is None else Known(jnp.broadcast_to(VALUES, x_1.shape), mask)
    return diffuse.sample(objective, sampler, network(objective), x_1, keys, known=known, levels=levels)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def levels_of(matrix, sampler, objective, mask):
    grid = objective.time_grid(sampler.num_steps, SIZE // 2, sampler.spacing)
    return matrix.levels(grid, mask.reshape(*mask.shape[:2], -1).all(axis=2)[0])


def mean_and_covariance(sampler, objective, mask, matrix) -> tuple[np.ndarray, np.ndarray]:
    """Of what a deterministic sampler makes, from the images of zero and of every unit vector."""
    x_1 = np.concatenate([np.zeros((1, SIZE)), np.eye(SIZE)]).astype(np.float32).reshape(-1, *SHAPE)
    keys = jax.random.split(jax.random.key(0), len(x_1))
    x_0 = np.asarray(sample(sampler, objective, x_1, keys, mask, levels_of(matrix, sampler, objective, mask)))
    offset, images = x_0[0].ravel(), x_0[1:].reshape(SIZE, SIZE) - x_0[0].ravel()
    return offset, images.T @ images


@pytest.mark.parametrize("matrix", MATRICES, ids=lambda matrix: type(matrix).__name__)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_matrix_and_every_pattern_samples_the_right_conditional(pattern, matrix):
    mean, covariance = mean_and_covariance(Heun(num_steps=40), FLOW, PATTERNS[pattern], matrix)
    expected_mean, expected_covariance = conditional(PATTERNS[pattern], VALUES)
    np.testing.assert_allclose(mean, expected_mean, atol=0.02)
    np.testing.assert_allclose(covariance, expected_covariance, atol=0.02)


@pytest.mark.parametrize("sampler", [Euler(num_steps=400), DDIM(num_steps=400)], ids=lambda s: type(s).__name__)
def test_so_does_every_sampler_without_memory(sampler):
    cosine = Gaussian(path=Cosine(), prediction=V(), times=LogitNormal())
    mean, covariance = mean_and_covariance(sampler, cosine, PATTERNS["backward"], Pyramid(steps_apart=100))
    expected_mean, expected_covariance = conditional(PATTERNS["backward"], VALUES)
    np.testing.assert_allclose(mean, expected_mean, atol=0.02)
    np.testing.assert_allclose(covariance, expected_covariance, atol=0.02)


def test_and_the_ancestral_one_within_monte_carlo_error():
    sampler, mask, num = Ancestral(num_steps=64), PATTERNS["region"], 4096
    keys = jax.random.split(jax.random.key(2), num)
    levels = levels_of(Pyramid(steps_apart=8), sampler, FLOW, mask)
    x_0 = np.asarray(sample(sampler, FLOW, noise(keys, SHAPE), keys, mask, levels)).reshape(num, SIZE)
    mean, covariance = conditional(mask, VALUES)
    np.testing.assert_allclose(x_0.mean(axis=0), mean, atol=5 / np.sqrt(num) + 0.02)
    np.testing.assert_allclose(np.cov(x_0.T), covariance, atol=8 / np.sqrt(num) + 0.02)


@pytest.mark.parametrize("sampler", [Euler, Heun, DDIM, Ancestral])
def test_the_matrix_whole_clip_is_the_ordinary_sampler(sampler):
    sampler, mask = sampler(num_steps=8), PATTERNS["extension"]
    keys = jax.random.split(jax.random.key(3), 3)
    x_1, levels = noise(keys, SHAPE), levels_of(WholeClip(), sampler, FLOW, mask)
    np.testing.assert_allclose(
        sample(sampler, FLOW, x_1, keys, mask, levels), sample(sampler, FLOW, x_1, keys, mask, None), atol=2e-6
    )


def test_what_is_known_comes_back_bit_for_bit():
    keys = jax.random.split(jax.random.key(3), 3)
    for mask in PATTERNS.values():
        x_0 = np.asarray(sample(Euler(num_steps=2), FLOW, noise(keys, SHAPE), keys, mask, None))
        known = np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (5 - mask.ndim)), x_0.shape)
        np.testing.assert_array_equal(x_0[known], np.broadcast_to(VALUES, x_0.shape)[known])


def test_extending_backwards_is_extending_the_reversed_clip_forwards():
    """The process is the same in both directions, but for its mean, which is taken off."""
    forward, backward = PATTERNS["extension"], PATTERNS["backward"]
    _, forward_covariance = mean_and_covariance(Heun(num_steps=20), FLOW, forward, FrameByFrame())
    _, backward_covariance = mean_and_covariance(Heun(num_steps=20), FLOW, backward, FrameByFrame())
    reversed_frames = np.arange(SIZE).reshape(4, -1)[::-1].ravel()
    np.testing.assert_allclose(
        backward_covariance[np.ix_(reversed_frames, reversed_frames)], forward_covariance, atol=1e-4
    )


def test_frames_begin_outwards_from_what_is_known():
    expected = {
        "nothing": [0, 1, 2, 3], "extension": [0, 0, 0, 1], "backward": [1, 0, 0, 0], "in between": [0, 0, 0, 0],
        "one in the middle": [0, 0, 0, 1],
    }  # fmt: skip
    for name, turn in expected.items():
        np.testing.assert_array_equal(turns(PATTERNS[name][0]), turn, name)


def test_a_matrix_falls_from_noise_to_data_in_every_frame():
    grid = FLOW.time_grid(6, 4, Trailing())
    for matrix, rows in ((WholeClip(), 7), (FrameByFrame(), 25), (Pyramid(steps_apart=2), 13)):
        levels = np.asarray(matrix.levels(grid, np.zeros(4, bool)))
        assert levels.shape == (rows, 4)
        np.testing.assert_array_equal(levels[0], 1)
        np.testing.assert_array_equal(levels[-1], 0)
        assert (np.diff(levels, axis=0) <= 0).all()
        assert (np.diff(levels, axis=1) >= 0).all(), "the later, the noisier"


@pytest.mark.parametrize("sampler", [DPMSolver(num_steps=4), UniPC(num_steps=4)])
def test_a_solver_with_memory_refuses_frames_that_begin_one_after_the_other(sampler):
    keys = jax.random.split(jax.random.key(3), 1)
    levels = levels_of(FrameByFrame(), sampler, FLOW, PATTERNS["nothing"])
    with pytest.raises(ValueError, match=r"a multistep solver remembers steps .* or scheduling=WholeClip\(\)"):
        sample(sampler, FLOW, noise(keys, SHAPE), keys, None, levels)


def test_history_guidance_leads_away_from_what_would_come_without_the_known_frames():
    """With scale 0 nothing is heard of them: the first step is that of noise in their place."""
    keys, mask = jax.random.split(jax.random.key(3), 2), PATTERNS["extension"]
    x_1 = noise(keys, SHAPE)
    known = Known(jnp.broadcast_to(VALUES, x_1.shape), jnp.asarray(mask))
    t = jnp.full((2, 1), 0.7)
    net = network(FLOW)

    def predicted(history: float):
        conditioning = diffuse.Conditioning(guidance=Guidance(history=history))
        return conditioning.denoiser(net, known, x_1)(x_1, t).prediction

    seen, unseen = net(*known.clean(x_1, t), None).prediction, net(*known.noised(x_1, t, x_1), None).prediction
    np.testing.assert_allclose(predicted(1.0), seen, atol=1e-6)
    np.testing.assert_allclose(predicted(0.0), unseen, atol=1e-5)
    np.testing.assert_allclose(predicted(2.5), unseen + 2.5 * (seen - unseen), atol=1e-5)
    assert np.abs(np.asarray(seen - unseen)[:, 2:]).max() > 0.1
