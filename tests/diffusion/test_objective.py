"""Laws of the objectives: what is drawn, what is lost, how it is weighted and reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Output
from dit_video.diffusion.objective import (
    NUM_BINS,
    LogitNormal,
    MinSNR,
    Uniform,
    UniformLevels,
    ddpm,
    diffusion_forcing,
    rectified_flow,
)
from dit_video.diffusion.path import Cosine, Linear, LinearBeta, TokenShift
from dit_video.diffusion.prediction import X0, Epsilon, V, Velocity
from dit_video.diffusion.process import Corrupted

OBJECTIVES = {
    "ddpm": ddpm(),
    "ddpm v": ddpm(V()),
    "rectified_flow": rectified_flow(),
    "forced ddpm": diffusion_forcing(ddpm()),
    "forced rectified_flow": diffusion_forcing(rectified_flow()),
    "everything else": dataclasses.replace(ddpm(X0()), path=LinearBeta(), weighting=MinSNR()),
}
# Few shapes, because each costs a compilation of the random numbers.
X_0 = 0.7 * jax.random.normal(jax.random.key(0), (8, 3, 4, 4, 2)) + 0.3
NOISE = jax.random.normal(jax.random.key(3), (32, 4, 8, 8, 4))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_perfect_prediction_loses_nothing_and_denoises(objective):
    corrupted = objective.corrupt(jax.random.key(1), X_0)
    loss, metrics = objective.loss(Output(corrupted.target), corrupted)
    assert loss == 0
    assert sum(metrics[name] for name in metrics if name.startswith("count/")) == corrupted.t.size
    x_0 = objective.denoised(corrupted.target, corrupted.x_t, corrupted.t)
    known = (objective.path.alpha(corrupted.t) > 0.05)[:, :, None, None, None]
    np.testing.assert_allclose(jnp.where(known, x_0, X_0), X_0, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_time_is_per_clip_or_per_frame(objective):
    corrupted = objective.corrupt(jax.random.key(1), X_0)
    assert corrupted.t.shape == corrupted.weight.shape == (8, 3 if objective.per_frame else 1)
    assert corrupted.x_t.dtype == corrupted.t.dtype == corrupted.target.dtype == jnp.float32


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_corrupt_is_a_function_of_its_key(objective):
    first, again, other = (objective.corrupt(jax.random.key(seed), X_0) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.t, other.t)
    assert not np.array_equal(first.x_t, other.x_t)


@pytest.mark.parametrize("path", [Linear(), Cosine(), LinearBeta()], ids=repr)
@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_corrupted_latents_have_the_moments_of_the_path(path, time):
    objective = dataclasses.replace(ddpm(V()), path=path)
    t = jnp.full((32, 1), time)
    x_t = objective.corrupt_with(jnp.full_like(NOISE, 2.0), NOISE, t).x_t
    np.testing.assert_allclose(jnp.mean(x_t), 2 * path.alpha(t[0, 0]), atol=0.02)
    np.testing.assert_allclose(jnp.std(x_t), path.sigma(t[0, 0]), atol=0.02)


def test_noise_of_corrupt_is_standard_normal_and_new_for_every_clip():
    eps = ddpm().corrupt(jax.random.key(5), jnp.zeros_like(NOISE)).target
    np.testing.assert_allclose([jnp.mean(eps), jnp.std(eps)], [0, 1], atol=0.02)
    assert len(np.unique(eps[:, 0, 0, 0, 0])) == 32


@pytest.mark.parametrize("times", [Uniform(), LogitNormal(), LogitNormal(mean=-0.5, std=1.5)], ids=repr)
@pytest.mark.parametrize("per_frame", [False, True])
def test_times_are_stratified_over_the_batch(times, per_frame):
    """In each frame, one clip has its t in each of the batch's equally likely intervals."""
    objective = dataclasses.replace(rectified_flow(), times=times, shift=None, per_frame=per_frame)
    t = objective.corrupt(jax.random.key(0), jnp.zeros((64, 3, 1, 1, 1))).t
    edges = times.quantile(jnp.arange(1, 64) / 64)
    intervals = np.sort(np.searchsorted(edges, t), axis=0)
    np.testing.assert_array_equal(intervals, np.broadcast_to(np.arange(64)[:, None], t.shape))


def test_time_of_any_row_has_the_whole_distribution():
    """Stratified over the batch, yet each row alone is uniform, and the frames of a clip are independent."""
    objective = diffusion_forcing(ddpm())
    x_0 = jnp.zeros((6, 2, 1, 1, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    t = np.asarray(jax.jit(jax.vmap(lambda key: objective.corrupt(key, x_0).t))(keys))
    levels = np.linspace(0.1, 0.9, 9)
    for row in (0, 5):
        deciles = np.quantile(t[:, row], levels, axis=0)
        np.testing.assert_allclose(deciles, np.stack([levels, levels], axis=1), atol=0.03)
        assert abs(np.corrcoef(t[:, row].T)[0, 1]) < 0.06


def test_logit_normal_has_its_moments():
    u = (jnp.arange(10000) + 0.5) / 10000
    t = np.asarray(LogitNormal(mean=-0.4, std=1.2).quantile(u), np.float64)
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [-0.4, 1.2], atol=2e-3)


def test_the_ends_of_the_uniform_give_the_ends_of_time():
    ends = jnp.array([0.0, 1.0])
    for times in (Uniform(), LogitNormal()):
        np.testing.assert_array_equal(times.quantile(ends), ends)


def test_uniform_levels_are_the_levels_of_a_table_all_alike():
    u = (jnp.arange(4000) + 0.5) / 4000
    drawn, counts = np.unique(np.asarray(UniformLevels(num_steps=1000).quantile(u)), return_counts=True)
    np.testing.assert_allclose(drawn, np.arange(1, 1001) / 1000, rtol=1e-6)
    assert set(counts) == {4}
    np.testing.assert_allclose(UniformLevels(num_steps=4).quantile(jnp.array([0.0, 1.0])), [0.25, 1.0])


def test_shift_moves_training_times_and_the_grid_alike():
    plain = dataclasses.replace(rectified_flow(), shift=None)
    shifted = dataclasses.replace(plain, shift=TokenShift(base=12, limit=5.0))
    t = plain.corrupt(jax.random.key(0), X_0).t  # 48 positions: shift by 2
    np.testing.assert_allclose(shifted.corrupt(jax.random.key(0), X_0).t, 2 * t / (1 + t), rtol=1e-5)
    grid = plain.time_grid(50, 48)
    np.testing.assert_allclose(shifted.time_grid(50, 48), 2 * grid / (1 + grid), rtol=1e-5)


@pytest.mark.parametrize("num_positions", [1, 1000, 3001, 10**6])
def test_time_grid_falls_from_exactly_one_to_exactly_zero(num_positions):
    grid = rectified_flow().time_grid(50, num_positions)
    assert grid.shape == (51,)
    assert grid.dtype == jnp.float32
    assert grid[0] == 1
    assert grid[-1] == 0
    assert jnp.all(jnp.diff(grid) < 0)


def test_loss_is_the_weighted_mean_of_its_bins():
    objective = dataclasses.replace(diffusion_forcing(ddpm()), weighting=MinSNR())
    corrupted = objective.corrupt(jax.random.key(1), X_0)
    loss, metrics = jax.jit(objective.loss)(Output(jnp.zeros_like(X_0)), corrupted)
    per_level = corrupted.weight * jnp.mean(jnp.square(corrupted.target), axis=(2, 3, 4))
    np.testing.assert_allclose(loss, jnp.mean(per_level), rtol=1e-5)
    bins = [metrics[f"loss/{name}"] for name in _bin_names()]
    assert [bin.count for bin in bins] == [metrics[f"count/{name}"] for name in _bin_names()]
    np.testing.assert_allclose(sum(bin.total for bin in bins) / corrupted.t.size, loss, rtol=1e-5)
    for i, (total, count) in enumerate(bins):
        inside = (corrupted.t >= i / NUM_BINS) & (corrupted.t < (i + 1) / NUM_BINS)
        np.testing.assert_allclose(total / count, np.mean(per_level[inside]), rtol=1e-5)


def test_an_empty_bin_is_a_mean_over_nothing_and_both_ends_are_counted():
    objective = ddpm()
    t = jnp.array([[0.0], [1.0]])
    corrupted = objective.corrupt_with(X_0[:2], X_0[2:4], t)
    _, metrics = objective.loss(Output(jnp.zeros_like(X_0[:2])), corrupted)
    assert [metrics[f"count/{name}"] for name in _bin_names()] == [1, 0, 0, 1]
    assert [metrics[f"loss/{name}"].count for name in _bin_names()] == [1, 0, 0, 1]
    assert all(jnp.isfinite(value) for value in jax.tree.leaves(metrics))


def test_loss_is_float32_whatever_the_network_computes_in():
    corrupted = Corrupted(x_t=X_0, t=jnp.full((8, 1), 0.5), target=jnp.ones_like(X_0), weight=jnp.ones((8, 1)))
    loss, _ = ddpm().loss(Output(jnp.full_like(X_0, 1 + 2**-7, jnp.bfloat16)), corrupted)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 2.0**-14, rtol=1e-6)


@pytest.mark.parametrize("path", [Cosine(), LinearBeta()], ids=repr)
def test_min_snr_weights_are_those_of_the_paper(path):
    t = jnp.linspace(0.02, 0.98, 49)
    snr = np.asarray(path.alpha(t), np.float64) ** 2 / np.asarray(path.sigma(t), np.float64) ** 2
    clipped = np.minimum(snr, 5.0)
    weighting = MinSNR(gamma=5.0)
    np.testing.assert_allclose(weighting.weight(path, Epsilon(), t), clipped / snr, rtol=1e-3)
    np.testing.assert_allclose(weighting.weight(path, X0(), t), clipped, rtol=1e-3)
    np.testing.assert_allclose(weighting.weight(path, V(), t), clipped / (snr + 1), rtol=1e-3)


@pytest.mark.parametrize("prediction", [Epsilon(), X0(), V(), Velocity()], ids=repr)
@pytest.mark.parametrize("path", [Linear(), Cosine(), LinearBeta()], ids=repr)
def test_min_snr_is_finite_at_the_ends(path, prediction):
    assert jnp.all(jnp.isfinite(MinSNR().weight(path, prediction, jnp.array([0.0, 1.0]))))


def test_objectives_are_values():
    assert rectified_flow() == rectified_flow()
    assert hash(diffusion_forcing(ddpm())) == hash(diffusion_forcing(ddpm()))
    assert ddpm() != ddpm(V())


@pytest.mark.parametrize(
    ("component", "fields", "match"),
    [
        (UniformLevels, {"num_steps": 0}, r"UniformLevels\.num_steps=0"),
        (LogitNormal, {"std": 0.0}, r"LogitNormal\.std=0\.0"),
        (MinSNR, {"gamma": 0.0}, r"MinSNR\.gamma=0\.0"),
        (MinSNR, {"gamma": -1.0}, r"MinSNR\.gamma=-1\.0"),
    ],
)
def test_impossible_values_are_refused_by_name(component, fields, match):
    with pytest.raises(ValueError, match=match):
        component(**fields)


def _bin_names() -> list[str]:
    return [f"t_{i / NUM_BINS:.2f}_{(i + 1) / NUM_BINS:.2f}" for i in range(NUM_BINS)]


def test_the_least_possible_values_are_taken_and_defaults_are_those_of_the_papers():
    assert UniformLevels(num_steps=1).quantile(jnp.array([0.0, 0.5, 1.0])).tolist() == [1, 1, 1]
    assert LogitNormal(std=0.01).std == 0.01
    assert MinSNR(gamma=0.01).gamma == 0.01
    assert (UniformLevels().num_steps, LogitNormal().mean, LogitNormal().std, MinSNR().gamma) == (1000, 0, 1, 5)
