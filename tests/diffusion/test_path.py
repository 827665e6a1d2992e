"""Laws of the paths: ends, slopes, log-SNR and its inverse, shift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.diffusion.path import (
    LOGSNR_LIMIT,
    ConstantShift,
    Cosine,
    DiscreteBetas,
    ExponentialShift,
    Linear,
    LinearBeta,
    TokenShift,
    shift_time,
)

PATHS = [Linear(), Cosine(), LinearBeta(), DiscreteBetas()]
VARIANCE_PRESERVING = [Cosine(), LinearBeta(), LinearBeta(beta_min=0.5, beta_max=0.5), DiscreteBetas()]
INSIDE = jnp.linspace(0.01, 0.99, 99)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_starts_at_the_data_and_ends_at_noise(path):
    assert path.alpha(jnp.array(0.0)) == 1
    assert path.sigma(jnp.array(0.0)) == 0
    np.testing.assert_allclose(path.sigma(jnp.array(1.0)), 1, atol=3e-5)
    assert 0 <= path.alpha(jnp.array(1.0)) < 7e-3


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_everything_is_finite_at_the_ends(path):
    ends = jnp.array([0.0, 1e-30, 1e-9, 1 - 6e-8, 1.0])
    for function in (path.alpha, path.sigma, path.d_alpha, path.d_sigma, path.logsnr):
        assert jnp.all(jnp.isfinite(function(ends)))
    assert path.logsnr(ends)[0] == LOGSNR_LIMIT


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_slopes_are_the_derivatives(path):
    np.testing.assert_allclose(path.d_alpha(INSIDE), jax.vmap(jax.grad(path.alpha))(INSIDE), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(path.d_sigma(INSIDE), jax.vmap(jax.grad(path.sigma))(INSIDE), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("path", VARIANCE_PRESERVING, ids=repr)
def test_variance_is_preserved(path):
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_logsnr_falls_and_is_what_it_says(path):
    logsnr = path.logsnr(INSIDE)
    assert jnp.all(jnp.diff(logsnr) < 0)
    expected = 2 * np.log(np.asarray(path.alpha(INSIDE)) / np.asarray(path.sigma(INSIDE)))
    np.testing.assert_allclose(logsnr, expected, atol=1e-4)


@pytest.mark.parametrize("path", [*PATHS, LinearBeta(beta_min=0.5, beta_max=0.5)], ids=repr)
def test_time_of_logsnr_inverts_logsnr(path):
    np.testing.assert_allclose(path.time_of_logsnr(path.logsnr(INSIDE)), INSIDE, rtol=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_logsnr_inverts_time_of_logsnr(path):
    levels = jnp.linspace(-9, 9, 37)
    np.testing.assert_allclose(path.logsnr(path.time_of_logsnr(levels)), levels, atol=1e-3)


def test_levels_beyond_the_end_of_the_path_are_its_end():
    for path in (LinearBeta(), DiscreteBetas()):
        assert path.time_of_logsnr(jnp.array(-15.0)) == 1


LEVELS = jnp.arange(1, 1001) / 1000


def test_discrete_betas_are_the_table_of_ddpm():
    squared = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(DiscreteBetas().alpha(LEVELS), np.sqrt(squared), rtol=2e-6)
    np.testing.assert_allclose(DiscreteBetas().sigma(LEVELS), np.sqrt(1 - squared), rtol=2e-5)


def test_linear_beta_is_the_limit_of_ddpm():
    np.testing.assert_allclose(LinearBeta().alpha(LEVELS), DiscreteBetas().alpha(LEVELS), atol=1e-3)


def test_sampling_visits_the_levels_of_a_table_only():
    t = np.array([1.0, 0.83349, 0.5005, 0.4995, 0.0])
    np.testing.assert_allclose(DiscreteBetas().nearest(t), [1.0, 0.833, 0.501, 0.499, 0.0], atol=1e-12)
    np.testing.assert_array_equal(Linear().nearest(t), t)


@pytest.mark.parametrize("shift", [1.0, 1.7, 3.0, 5.0])
def test_shift_keeps_the_ends_and_has_an_inverse(shift):
    t = jnp.linspace(0, 1, 101)
    shifted = shift_time(t, shift)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert jnp.all(jnp.diff(shifted) > 0)
    np.testing.assert_allclose(shift_time(shifted, 1 / shift), t, atol=1e-6)


def test_shift_by_one_is_the_identity():
    t = jnp.linspace(0, 1, 1001)
    np.testing.assert_array_equal(shift_time(t, 1.0), t)


def test_shift_lowers_the_logsnr_of_the_linear_path_evenly():
    path = Linear()
    lowered = path.logsnr(shift_time(INSIDE, 3.0)) - path.logsnr(INSIDE)
    np.testing.assert_allclose(lowered, -2 * np.log(3), atol=1e-4)


def test_token_shift_grows_with_the_root_of_positions_between_its_limits():
    shift = TokenShift(base=256, limit=5.0)
    assert [shift.factor(n) for n in (1, 256, 1024, 2304, 10**6)] == [1.0, 1.0, 2.0, 3.0, 5.0]


def test_exponential_shift_is_that_of_flux():
    """mu = 0.5 for 256 tokens of 2 x 2 positions and 1.15 for 4096, linear between."""
    shift = ExponentialShift()
    mu = [np.log(shift.factor(4 * tokens)) for tokens in (256, 1024, 4096)]
    np.testing.assert_allclose(mu, [0.5, 0.63, 1.15])


def test_a_constant_shift_knows_no_size():
    assert {ConstantShift(shift=3.0).factor(n) for n in (1, 10**6)} == {3.0}


@pytest.mark.parametrize(
    ("component", "fields", "match"),
    [
        (DiscreteBetas, {"num_steps": 0}, r"DiscreteBetas\.num_steps=0"),
        (DiscreteBetas, {"beta_first": 0.1}, r"DiscreteBetas\.beta_first=0\.1"),
        (DiscreteBetas, {"beta_first": 0.0}, r"DiscreteBetas\.beta_first=0\.0"),
        (DiscreteBetas, {"beta_last": 1.0}, r"beta_last=1\.0"),
        (ExponentialShift, {"low_positions": 0}, r"ExponentialShift\.low_positions=0"),
        (ConstantShift, {"shift": 0.0}, r"ConstantShift\.shift=0\.0"),
        (ExponentialShift, {"low_positions": 16384}, r"ExponentialShift\.low_positions=16384"),
        (LinearBeta, {"beta_min": 0.0}, r"LinearBeta\.beta_min=0\.0"),
        (LinearBeta, {"beta_min": 2.0, "beta_max": 1.0}, r"beta_max=1\.0"),
        (TokenShift, {"base": 0}, r"TokenShift\.base=0"),
        (TokenShift, {"limit": 0.5}, r"TokenShift\.limit=0\.5"),
    ],
)
def test_impossible_values_are_refused_by_name(component, fields, match):
    with pytest.raises(ValueError, match=match):
        component(**fields)


def test_the_least_possible_values_are_taken():
    np.testing.assert_allclose(DiscreteBetas(num_steps=1).alpha(jnp.array([0.0, 1.0])), [1, (1 - 1e-4) ** 0.5])
    assert DiscreteBetas(beta_first=0.01, beta_last=0.01).beta_last == 0.01
    assert LinearBeta(beta_min=0.01, beta_max=0.01).beta_max == 0.01
    assert ConstantShift(shift=0.01).factor(7) == 0.01
    assert ExponentialShift(low_positions=1, high_positions=2, low=0.0, high=1.0).factor(2) == pytest.approx(np.e)
    assert [TokenShift(base=1, limit=1.0).factor(n) for n in (1, 4)] == [1, 1]
    assert [TokenShift().factor(n) for n in (256, 1024, 10**6)] == [1, 2, 5]


def test_logsnr_is_clipped_at_its_limit():
    t = jnp.array([1e-6, 1 - 1e-6])
    np.testing.assert_array_equal(Linear().logsnr(t), [LOGSNR_LIMIT, -LOGSNR_LIMIT])
    # Just inside.
    inside = jax.nn.sigmoid(jnp.array([-9.9, 9.9]))
    np.testing.assert_allclose(Linear().logsnr(inside), [19.8, -19.8], rtol=1e-3)


def test_a_slope_without_end_is_that_of_the_least_sigma():
    """d sigma = beta alpha^2 / (2 sigma), with sigma no less than 1e-4."""
    zero = jnp.array(0.0)
    np.testing.assert_allclose(LinearBeta().d_sigma(zero), 0.1 / 2 / 1e-4, rtol=1e-5)
    # log(alpha) falls by -log(1 - beta_first) / 2 in the first of 1000 steps.
    np.testing.assert_allclose(DiscreteBetas().d_sigma(zero), -1000 * np.log1p(-1e-4) / 2 / 1e-4, rtol=1e-4)
