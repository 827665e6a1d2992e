"""Nearest neighbours in feature space: memorisation (novelty) and diversity of samples."""

import numpy as np
from jaxtyping import Array, Float, Int

Samples = Float[Array | np.ndarray, "N D"]
HeldOut = Float[Array | np.ndarray, "H D"]
Training = Float[Array | np.ndarray, "M D"]


def nearest(x: Samples, among: Training) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Nearest neighbour of each row of `x` among the rows of `among`, and its Euclidean distance."""
    squared = _squared_distances(x, among)
    index = squared.argmin(axis=1)
    return index, np.sqrt(squared[np.arange(len(index)), index])


def novelty(samples: Samples, held_out: HeldOut, training: Training) -> float | None:
    """Novelty: median distance of samples to their nearest training clip, over that of held-out clips.

    0 where samples are training clips, 1 where they keep the distance that real clips keep which nobody has seen.
    Far above 1 says nothing good either: such samples are like no real clip. None where held-out clips are themselves
    training clips, which leaves nothing to compare with.
    """
    usual = float(np.median(nearest(held_out, training)[1]))
    return float(np.median(nearest(samples, training)[1])) / usual if usual > 0 else None


def diversity(samples: Samples, held_out: HeldOut) -> float:
    """Diversity: mean distance between two samples over that of held-out clips; 0 where all samples are equal."""
    return _mean_distance(samples) / max(_mean_distance(held_out), float(np.finfo(np.float32).tiny))


def _mean_distance(x: Samples) -> float:
    n = len(x)
    return float(np.sqrt(_squared_distances(x, x)).sum() / (n * (n - 1)))


def _squared_distances(x: Samples, y: Training) -> Float[np.ndarray, "N M"]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    # Centred first: the expansion of the square loses digits where features lie far from the origin.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
    # What is nothing but rounding is zero, so that a copy is at distance 0.
    scale = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None]
    return np.where(squared > 1e-12 * scale, squared, 0.0)
