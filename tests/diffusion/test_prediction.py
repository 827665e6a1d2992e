"""Laws of the predictions: whatever is predicted, x_0 and eps come back from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.diffusion.path import Cosine, Linear, LinearBeta
from dit_video.diffusion.prediction import MIN_DETERMINANT, X0, Epsilon, V, Velocity

PATHS = [Linear(), Cosine(), LinearBeta()]
PREDICTIONS = [Epsilon(), X0(), V(), Velocity()]
SHAPE = (5, 3, 2, 2, 4)
X_0 = 0.7 * jax.random.normal(jax.random.key(0), SHAPE) + 0.3
EPS = jax.random.normal(jax.random.key(1), SHAPE)
TIMES = {
    "inside, per clip": jnp.array([[0.1], [0.3], [0.5], [0.7], [0.9]]),
    "inside, per frame": jax.random.uniform(jax.random.key(2), (5, 3), minval=0.05, maxval=0.95),
    "near the ends": jnp.array([[0.0], [1e-4], [1e-2], [0.99], [1.0]]),
}


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_data_and_noise_come_back_from_the_target(path, prediction, t):
    x_t = path.x_t(X_0, EPS, t)
    target = prediction.target(path, X_0, EPS, t)
    # Rounding of x_t, divided by what x_t holds of the unknown; nothing is promised below MIN_DETERMINANT.
    rounding = 1e-6
    for recovered, truth, determinant in (
        (prediction.x_0(path, target, x_t, t), X_0, path.alpha(t)),
        (prediction.eps(path, target, x_t, t), EPS, path.sigma(t)),
    ):
        direct = (isinstance(prediction, X0) and truth is X_0) or (isinstance(prediction, Epsilon) and truth is EPS)
        stable = direct or isinstance(prediction, V | Velocity)
        error = jnp.max(jnp.abs(recovered - truth), axis=(2, 3, 4))
        tolerance = jnp.full_like(t, 1e-5) if stable else rounding / determinant + 1e-6
        known = stable | (determinant >= MIN_DETERMINANT)
        assert jnp.all(jnp.isfinite(recovered))
        assert jnp.all(jnp.where(known, error < tolerance, True)), (error, tolerance)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_velocity_is_the_slope_of_x_t(path, prediction):
    t = TIMES["inside, per frame"]
    slope = jax.jvp(lambda t: path.x_t(X_0, EPS, t), (t,), (jnp.ones_like(t),))[1]
    target = prediction.target(path, X_0, EPS, t)
    velocity = prediction.velocity(path, target, path.x_t(X_0, EPS, t), t)
    np.testing.assert_allclose(velocity, slope, atol=2e-4)


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=repr)
@pytest.mark.parametrize(("prediction", "t"), [(Epsilon(), 1.0), (X0(), 0.0)], ids=["Epsilon", "X0"])
def test_what_cannot_be_known_shrinks_to_the_mean(path, prediction, t):
    """Epsilon at t = 1 knows no x_0 and X0 at t = 0 no eps: not even a wrong network makes them large."""
    t = jnp.full((5, 1), t)
    error = 1e-2
    target = prediction.target(path, X_0, EPS, t) + error
    x_t = path.x_t(X_0, EPS, t)
    unknown = prediction.x_0 if isinstance(prediction, Epsilon) else prediction.eps
    assert jnp.max(jnp.abs(unknown(path, target, x_t, t))) <= 1.001 * error / MIN_DETERMINANT


def test_v_and_velocity_agree_on_the_circle_only():
    t = TIMES["inside, per clip"]
    on_circle = Velocity().target(Cosine(), X_0, EPS, t)
    np.testing.assert_allclose(on_circle, np.pi / 2 * V().target(Cosine(), X_0, EPS, t), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Velocity().target(Linear(), X_0, EPS, t), EPS - X_0, rtol=1e-6)
    assert not np.allclose(V().target(Linear(), X_0, EPS, t), EPS - X_0, atol=0.1)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_squared_gain_carries_an_error_of_the_prediction_to_x_0(path, prediction):
    t = TIMES["inside, per frame"]
    x_t = path.x_t(X_0, EPS, t)
    target = prediction.target(path, X_0, EPS, t)
    moved = prediction.x_0(path, target + 0.5, x_t, t) - prediction.x_0(path, target, x_t, t)
    gain = jnp.mean(jnp.square(moved / 0.5), axis=(2, 3, 4))
    np.testing.assert_allclose(gain, prediction.squared_gain(path, t), rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_a_half_precision_network_gives_float32(prediction):
    t = TIMES["inside, per clip"]
    output = EPS.astype(jnp.bfloat16)
    for convert in (prediction.x_0, prediction.eps, prediction.velocity):
        assert convert(Cosine(), output, X_0, t).dtype == jnp.float32
