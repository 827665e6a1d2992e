"""Laws of guidance: what it is at scale 0, 1 and w, inside and outside its interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Output
from dit_video.diffusion.guidance import Guidance

X_T = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))


def conditional(x_t, t):
    return Output(x_t * 2 + t[:, :, None, None, None])


def unconditional(x_t, t):
    return Output(x_t - 1)


def pair(x_t, t):
    return conditional(x_t, t), unconditional(x_t, t)


def test_scale_one_is_the_conditional_denoiser_itself():
    assert Guidance(scale=1.0).classifier_free(conditional, pair) is conditional


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_scale_moves_along_the_line_from_unconditional_to_conditional(scale):
    t = jnp.full((2, 1), 0.5)
    guided = Guidance(scale=scale).classifier_free(conditional, pair)
    with_condition, without = pair(X_T, t)
    expected = without.prediction + scale * (with_condition.prediction - without.prediction)
    np.testing.assert_allclose(guided(X_T, t).prediction, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("time", "acts"), [(0.1, False), (0.25, True), (0.5, True), (0.75, True), (0.9, False)])
def test_guidance_acts_inside_its_interval_only(time, acts):
    t = jnp.full((2, 1), time)
    limited = jax.jit(Guidance(scale=3.0, interval=(0.25, 0.75)).classifier_free(conditional, pair))
    everywhere = Guidance(scale=3.0).classifier_free(conditional, pair)
    expected = everywhere(X_T, t) if acts else conditional(X_T, t)
    np.testing.assert_allclose(limited(X_T, t).prediction, expected.prediction, rtol=1e-6, atol=1e-6)


def test_each_frame_is_guided_by_its_own_noise_level():
    t = jnp.array([[0.1, 0.5, 0.9], [0.5, 0.1, 0.6]])
    limited = Guidance(scale=3.0, interval=(0.25, 0.75)).classifier_free(conditional, pair)(X_T, t).prediction
    everywhere = Guidance(scale=3.0).classifier_free(conditional, pair)(X_T, t).prediction
    acts = np.array([[False, True, False], [True, False, True]])
    np.testing.assert_allclose(limited[acts], everywhere[acts], rtol=1e-6)
    np.testing.assert_array_equal(limited[~acts], conditional(X_T, t).prediction[~acts])


def test_outside_the_interval_the_pair_is_not_evaluated():
    evaluated = []

    def watched_pair(x_t, t):
        jax.debug.callback(lambda: evaluated.append(True))
        return pair(x_t, t)

    guided = jax.jit(Guidance(scale=3.0, interval=(0.25, 0.75)).classifier_free(conditional, watched_pair))
    jax.block_until_ready(guided(X_T, jnp.full((2, 1), 0.9)))
    jax.effects_barrier()
    assert evaluated == []
    jax.block_until_ready(guided(X_T, jnp.full((2, 1), 0.5)))
    jax.effects_barrier()
    assert evaluated == [True]


def test_half_precision_predictions_are_mixed_in_float32():
    def half(x_t, t):
        return Output(conditional(x_t, t).prediction.astype(jnp.bfloat16))

    guided = Guidance(scale=2.0, interval=(0.2, 1.0)).classifier_free(half, lambda x_t, t: (half(x_t, t), half(x_t, t)))
    assert guided(X_T, jnp.full((2, 1), 0.5)).prediction.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"scale": -1.0}, r"Guidance\.scale=-1\.0"),
        ({"interval": (0.5, 0.5)}, r"Guidance\.interval=\(0\.5, 0\.5\)"),
        ({"interval": (-0.1, 1.0)}, r"Guidance\.interval=\(-0\.1, 1\.0\)"),
        ({"interval": (0.0, 2.0)}, r"Guidance\.interval=\(0\.0, 2\.0\)"),
    ],
)
def test_impossible_values_are_refused_by_name(fields, match):
    with pytest.raises(ValueError, match=match):
        Guidance(**fields)


def test_nothing_is_guided_where_nothing_is_said():
    assert Guidance() == Guidance(scale=1.0, interval=(0.0, 1.0))
    assert Guidance(scale=0.0, interval=(0.0, 0.1)).scale == 0


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75)])
def test_a_learnt_variance_is_the_conditional_one_s_and_predictions_are_float32(interval):
    def with_variance(denoise, value):
        return lambda x_t, t: Output(denoise(x_t, t).prediction.astype(jnp.bfloat16), jnp.full_like(x_t, value))

    first, second = with_variance(conditional, 0.5), with_variance(unconditional, -0.5)
    guided = Guidance(scale=2.0, interval=interval).classifier_free(
        first, lambda x_t, t: (first(x_t, t), second(x_t, t))
    )
    for time in (0.1, 0.5):
        out = guided(X_T, jnp.full((2, 1), time))
        assert out.prediction.dtype == jnp.float32
        np.testing.assert_array_equal(out.variance, 0.5)
