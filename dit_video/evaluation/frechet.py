"""Frechet distance (FID, FVD) and kernel distance (KID, KVD) between two sets of features. NumPy, float64 inside.

Heusel et al. (2017): d^2 = |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)); covariances over N - 1, as TF-GAN.
Binkowski et al., "Demystifying MMD GANs" (2018): the kernel distance.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float64

Features = Array | np.ndarray
"""Floating point [N D], one row for each clip; every function here checks it."""


class FrechetTerms(NamedTuple):
    """The squared Frechet distance by its two terms, of means and of covariances."""

    mean_term: float
    """|mu_x - mu_y|^2"""
    covariance_term: float
    """tr(S_x + S_y - 2 (S_x S_y)^(1/2))"""

    @property
    def value(self) -> float:
        return self.mean_term + self.covariance_term


def frechet_distance(x: Features, y: Features) -> float:
    """Frechet distance (FVD, FID): squared, of two Gaussians fitted to the rows of x and y.

    Raises:
        ValueError: not [N D] with N >= 2, different D, or a value that is not finite.
    """
    return frechet_terms(x, y).value


def frechet_terms(x: Features, y: Features) -> FrechetTerms:
    """Frechet distance by its two terms, of means and of covariances.

    With centred features X and Y, tr (S_x S_y)^(1/2) is the sum of the singular values of X Y^T over
    sqrt((N_x - 1) (N_y - 1)). No root of a covariance is taken, so rank deficiency (N <= D) does no harm. What is
    nothing but rounding is 0, so that a set is at distance 0 from itself.
    """
    x, y = _checked_pair(x, y, "frechet_distance")
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    # Rows over sqrt(N - 1): then S = x^T x.
    x = (x - mean_x) / np.sqrt(len(x) - 1)
    y = (y - mean_y) / np.sqrt(len(y) - 1)
    trace = np.square(x).sum() + np.square(y).sum()
    root = np.linalg.svd(_compressed(x) @ _compressed(y).T, compute_uv=False).sum()
    rounding = max(x.shape) * np.finfo(np.float64).eps * trace
    gap = float(trace - 2 * root)
    return FrechetTerms(float(np.square(mean_x - mean_y).sum()), gap if abs(gap) > rounding else 0.0)


def kernel_distance(x: Features, y: Features, *, block_size: int | None = None) -> float:
    """Kernel distance (KVD, KID): unbiased squared maximum mean discrepancy (MMD) under (a . b / D + 1)^3.

    Its expectation is zero for two sets of one distribution at any N, so it may be negative.

    Args:
        x, y: features, N >= 2 rows each.
        block_size: None compares all rows at once. Otherwise, as in TF-GAN, the mean over consecutive blocks of
            about equal size, at most `block_size` rows each.

    Raises:
        ValueError: as `frechet_distance`; block_size below 2; a block that would have fewer than 2 rows.
    """
    x, y = _checked_pair(x, y, "kernel_distance")
    if block_size is None:
        return _kernel_distance(x, y)
    if block_size < 2:
        raise ValueError(f"kernel_distance: block_size={block_size}, must be at least 2, or None for all rows")
    num_blocks = -(-max(len(x), len(y)) // block_size)
    if min(len(x), len(y)) < 2 * num_blocks:
        raise ValueError(
            f"kernel_distance: block_size={block_size} cuts {len(x)} and {len(y)} rows into {num_blocks} blocks, "
            f"some of fewer than 2 rows; take a larger block_size"
        )
    pairs = zip(np.array_split(x, num_blocks), np.array_split(y, num_blocks))
    return float(np.mean([_kernel_distance(*pair) for pair in pairs]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMoments:
    """Streaming moments of features (count, mean, scatter), from which a Frechet distance follows.

    Merging is exact and symmetric up to rounding, so shards may be pooled in any order.
    """

    count: int
    mean: Float64[np.ndarray, "D"]
    scatter: Float64[np.ndarray, "D D"]
    """Sum of outer products of the features' deviations from their mean."""

    @classmethod
    def of(cls, features: Features) -> "FeatureMoments":
        """Moments of one chunk, one row or more.

        Raises:
            ValueError: not [N D], no row, or a value that is not finite.
        """
        features = _checked(features, "FeatureMoments", least_rows=1)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(count=len(features), mean=mean, scatter=centred.T @ centred)

    def merge(self, other: "FeatureMoments") -> "FeatureMoments":
        """Moments of both sets together. Chan, Golub and LeVeque (1979)."""
        if self.mean.size != other.mean.size:
            raise ValueError(f"FeatureMoments: D={self.mean.size} and D={other.mean.size} differ")
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return FeatureMoments(count=count, mean=mean, scatter=scatter)

    @property
    def covariance(self) -> Float64[np.ndarray, "D D"]:
        """Covariance matrix, over count - 1.

        Raises:
            ValueError: fewer than two rows were seen.
        """
        if self.count < 2:
            raise ValueError(f"FeatureMoments.covariance: count={self.count}, must be at least 2")
        return self.scatter / (self.count - 1)

    def frechet_terms(self, other: "FeatureMoments") -> FrechetTerms:
        """Frechet distance from moments by its two terms, within 1e-6 tr(S_x + S_y).

        Roots of the covariances' eigenvalues are needed here. Those below the rounding of the largest count as zero,
        and each may lose 1e-8 of its root; the features themselves, where they are kept, give full precision.
        """
        if self.mean.size != other.mean.size:
            raise ValueError(f"FeatureMoments: D={self.mean.size} and D={other.mean.size} differ")
        x, y = self.covariance, other.covariance
        root = np.linalg.svd(_factor(x) @ _factor(y).T, compute_uv=False).sum()
        trace = np.trace(x) + np.trace(y)
        return FrechetTerms(float(np.square(self.mean - other.mean).sum()), float(trace - 2 * root))


def _compressed(x: np.ndarray) -> np.ndarray:
    """A matrix r of at most D rows with r^T r = x^T x, hence equal singular values of its products."""
    return x if x.shape[0] <= x.shape[1] else np.asarray(np.linalg.qr(x, mode="r"))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A matrix r with r^T r = covariance. Eigenvalues below rounding are zero."""
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    noise = eigenvalues[-1] * len(eigenvalues) * np.finfo(np.float64).eps
    eigenvalues = np.where(eigenvalues > noise, eigenvalues, 0)
    return np.sqrt(eigenvalues)[:, None] * eigenvectors.T


def _kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(k: np.ndarray) -> float:
        n = len(k)
        return (k.sum() - np.trace(k)) / (n * (n - 1))

    return float(mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())


def _checked_pair(x: Features, y: Features, name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = _checked(x, name, least_rows=2), _checked(y, name, least_rows=2)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name}: features have D={x.shape[1]} and D={y.shape[1]}, which must be equal")
    return x, y


def _checked(features: Features, name: str, *, least_rows: int) -> Float64[np.ndarray, "N D"]:
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name}: features have shape {features.shape}, must be [N D]")
    if not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"{name}: features are {features.dtype}, must be floating point")
    if len(features) < least_rows:
        raise ValueError(f"{name}: N={len(features)} rows, must be at least {least_rows}")
    features = features.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}: {bad.size} of {len(features)} rows are not finite, first row {bad[0]}")
    return features
