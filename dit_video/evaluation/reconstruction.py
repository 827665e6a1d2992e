"""PSNR and SSIM of reconstructions, per clip, differentiable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, UInt8

AnyVideo = Array | np.ndarray
"""uint8 or floating point [B T H W C], which every function here checks."""

# Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).
WINDOW = 11
SIGMA = 1.5
K_1 = 0.01
K_2 = 0.03


def psnr(x: AnyVideo, y: AnyVideo, *, data_range: float | None = None) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio (PSNR) of each clip in decibels, from the mean squared error over the whole clip.

    Args:
        x, y: uint8 or float video of equal shape and dtype.
        data_range: largest minus smallest possible value; 255 for uint8 when left out, required for floats (2.0
            for pixels in [-1, 1]).

    Returns:
        Infinite for equal clips.
    """
    x, y, data_range = _checked(x, y, data_range, "psnr")
    return _psnr(x, y, data_range)


def finite_psnr(x: AnyVideo, y: AnyVideo) -> Float[np.ndarray, "B"]:
    """PSNR of uint8 clips in dB; one without any error counts as if one value of it were off by one."""
    return np.minimum(psnr(x, y), 10 * np.log10(255.0**2 * x[0].size))


def mean_frames(video: UInt8[np.ndarray, "B T H W C"]) -> UInt8[np.ndarray, "B T H W C"]:
    """Each clip's mean frame, held still: what a codec that ignores motion could give."""
    return np.broadcast_to(video.mean(axis=1, keepdims=True).round().astype(np.uint8), video.shape)


def ssim(x: AnyVideo, y: AnyVideo, *, data_range: float | None = None) -> Float[Array, "B"]:
    """Structural similarity (SSIM) of each clip: mean over frames, channels and window positions. Wang et al. (2004).

    Gaussian window of 11x11 with sigma 1.5, inside the frame only; K1 = 0.01, K2 = 0.03; moments are weighted
    means without Bessel's correction, as the authors define them.

    Args:
        x, y: uint8 or float video of equal shape and dtype, frames of 11x11 or more.
        data_range: as for `psnr`.
    """
    x, y, data_range = _checked(x, y, data_range, "ssim")
    if min(x.shape[2:4]) < WINDOW:
        raise ValueError(f"ssim: frames of {x.shape[2]}x{x.shape[3]}, must be at least {WINDOW}x{WINDOW}")
    return _ssim(x, y, data_range)


@functools.partial(jax.jit, static_argnames="data_range")
def _psnr(x: Array, y: Array, data_range: float) -> Float[Array, "B"]:
    error = jnp.square(x - y).mean(axis=(1, 2, 3, 4))
    return 10 * jnp.log10(data_range**2 / error)


@functools.partial(jax.jit, static_argnames="data_range")
def _ssim(x: Array, y: Array, data_range: float) -> Float[Array, "B"]:
    # Variances are E[u^2] - E[u]^2, which cancels badly in float32 unless u is near 0; no level enters.
    level_x, level_y = (z.mean(axis=(1, 2, 3), keepdims=True) for z in (x, y))
    u, v = x - level_x, y - level_y
    mean_u, mean_v = _blur(u), _blur(v)
    variances = _blur(u * u) - mean_u**2 + _blur(v * v) - mean_v**2
    covariance = _blur(u * v) - mean_u * mean_v
    mean_x, mean_y = mean_u + level_x, mean_v + level_y
    c_1, c_2 = (K_1 * data_range) ** 2, (K_2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    structure = (2 * covariance + c_2) / (variances + c_2)
    return (luminance * structure).mean(axis=(1, 2, 3, 4))


def _blur(x: Float[Array, "B T H W C"]) -> Float[Array, "B T h w C"]:
    """Gaussian blur over windows inside the frame: h = H - 10, w = W - 10."""
    for axis in (2, 3):
        matrix = _window_matrix(x.shape[axis])
        blurred = jnp.tensordot(matrix, x, axes=(1, axis), precision=Precision.HIGHEST)
        x = jnp.moveaxis(blurred, 0, axis)
    return x


def _window_matrix(size: int) -> Float[np.ndarray, "{size}-10 {size}"]:
    """Row i holds the normalised Gaussian over source positions i to i + 10."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    gaussian = np.exp(-np.square(offsets) / (2 * SIGMA**2))
    gaussian /= gaussian.sum()
    rows = np.arange(size - WINDOW + 1)[:, None]
    matrix = np.zeros((len(rows), size), np.float32)
    matrix[rows, rows + np.arange(WINDOW)] = gaussian
    return matrix


def _checked(
    x: AnyVideo, y: AnyVideo, data_range: float | None, name: str
) -> tuple[Float[Array, "B T H W C"], Float[Array, "B T H W C"], float]:
    if x.ndim != 5:
        raise ValueError(f"{name}: x has shape {x.shape}, must be [B T H W C]")
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(f"{name}: x is {x.dtype} {x.shape} and y is {y.dtype} {y.shape}; they must be alike")
    if data_range is None:
        if x.dtype != jnp.uint8:
            raise ValueError(f"{name}: data_range is needed for {x.dtype} video (2.0 for pixels in [-1, 1])")
        data_range = 255.0
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), float(data_range)
