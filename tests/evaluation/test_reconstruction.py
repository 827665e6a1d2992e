import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.evaluation.reconstruction import psnr, ssim


def clips(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def reference_ssim(x, y, data_range):
    """Wang et al. (2004), equations 13 to 17, one window at a time."""
    offsets = np.arange(11) - 5
    gaussian = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    gaussian /= gaussian.sum()
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (gaussian * a).sum(), (gaussian * b).sum()
            var_a, var_b = (gaussian * (a - mean_a) ** 2).sum(), (gaussian * (b - mean_b) ** 2).sum()
            covariance = (gaussian * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c_1)
                * (2 * covariance + c_2)
                / ((mean_a**2 + mean_b**2 + c_1) * (var_a + var_b + c_2))
            )
    return np.mean(values)


def test_ssim_agrees_with_the_definition_window_by_window():
    x = clips(0, 2, 1, 13, 15, 2)
    y = np.clip(x + np.random.default_rng(1).normal(0, 30, x.shape), 0, 255).astype(np.uint8)
    for clip, value in enumerate(ssim(x, y)):
        expected = np.mean([reference_ssim(*(z[clip, 0, ..., c].astype(float) for z in (x, y)), 255) for c in (0, 1)])
        assert float(value) == pytest.approx(expected, abs=1e-5)


def test_black_against_white_has_the_closed_forms():
    """SSIM = C1 / (1 + C1) with C1 = 0.01^2: the luminance term alone, structure being 1; PSNR = 0 dB."""
    black = jnp.zeros((2, 1, 12, 12, 3))
    np.testing.assert_allclose(ssim(black, black + 1, data_range=1.0), 9.999000099990664e-05, rtol=1e-5)
    np.testing.assert_allclose(psnr(black, black + 1, data_range=1.0), 0.0, atol=1e-6)


def test_equal_clips():
    x = clips(2, 1, 2, 16, 16, 3)
    np.testing.assert_allclose(ssim(x, x), 1.0, rtol=1e-6)
    assert np.isinf(psnr(x, x)).all()


def test_psnr_counts_the_error_of_the_whole_clip_and_each_clip_alone():
    x = np.zeros((2, 2, 4, 4, 1), np.uint8)
    y = x.copy()
    y[1, 0] = 51  # Half the pixels of the second clip are off by a fifth of the range.
    np.testing.assert_allclose(psnr(x, y), [np.inf, 10 * np.log10(2 * 25)], rtol=1e-6)


def test_uint8_and_pixels_agree():
    x, y = clips(3, 1, 1, 14, 14, 3), clips(4, 1, 1, 14, 14, 3)
    for measure in (psnr, ssim):
        pixels = (jnp.asarray(z, jnp.float32) / 127.5 for z in (x, y))
        np.testing.assert_allclose(measure(*pixels, data_range=2.0), measure(x, y), rtol=1e-4)


def test_gradients_are_finite_and_rise_towards_the_original():
    x = jnp.asarray(clips(5, 1, 1, 14, 14, 1), jnp.float32) / 127.5 - 1
    y = x * 0.5
    for measure in (psnr, ssim):

        def quality(y, measure=measure):
            return measure(x, y, data_range=2.0).mean()

        gradient = jax.grad(quality)(y)
        assert np.isfinite(gradient).all()
        assert (gradient * (x - y)).sum() > 0


def test_bad_input_is_named():
    x = clips(6, 1, 1, 12, 12, 3)
    with pytest.raises(ValueError, match=r"must be \[B T H W C\]"):
        psnr(x[0], x[0])
    with pytest.raises(ValueError, match="must be alike"):
        ssim(x, x.astype(np.float32))
    with pytest.raises(ValueError, match="data_range is needed for float32"):
        psnr(x.astype(np.float32), x.astype(np.float32))
    with pytest.raises(ValueError, match="frames of 10x12, must be at least 11x11"):
        ssim(x[:, :, :10], x[:, :, :10])
