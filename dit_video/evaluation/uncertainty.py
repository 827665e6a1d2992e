"""Confidence intervals of a Frechet distance (FVD) by the jackknife, and its bias-free limit for infinitely many clips.

The distance of N clips exceeds that of the distributions by about b / N, where b depends on the model (Chong and
Forsyth, 1911.07023), and scatters around that mean. Both are read off distances of subsets drawn without
replacement. A bootstrap would not do: rows drawn twice act as fewer clips, which pushes its whole interval upwards.

The subsets are those of a delete-a-group jackknife (Efron and Stein, 1981): the rows are shuffled and cut into
groups, and each group is left out once. Chong and Forsyth fit a line through smaller subsets, down to a few hundred
rows; this one stays near N, where the excess is nearest to b / N, and its end scatters about as the distance itself.

Both sets are cut alike. Where they have as many rows, row i of one stays with row i of the other, so they may be
independent draws, or pairs such as clips and their reconstructions. Rows of one set must be independent of each other:
several clips of one video count as fewer, and both intervals are then too narrow.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from dit_video.evaluation.frechet import Features, frechet_distance

NUM_GROUPS = 16
"""Groups left out in turn; also the least number of rows of a set."""

_NUM_HALVINGS = 16
_BIAS_TOLERANCE = 0.1


class Interval(NamedTuple):
    """Confidence interval: covers the true value in a fraction `level` of repetitions with other clips."""

    low: float
    high: float
    level: float = 0.95


class Extrapolation(NamedTuple):
    """Frechet distance extrapolated to infinitely many clips (FVD_infinity)."""

    value: float
    """The distance extrapolated to N = infinity. Below zero by chance where the distributions are close."""
    bias: float
    """Expected excess of the distance at this N over `value`."""
    interval: Interval
    """Covers the distance of the distributions. `low` is 0 unless `settled`: it then bounds from above alone."""
    settled: bool
    """Whether the excess falls as 1 / n from N / 2 to N. If not, `value` is likely too high: score more clips."""


def frechet_interval(x: Features, y: Features, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Confidence interval for the expected Frechet distance at this number of clips.

    It says how much of a difference between two distances at equal N is chance. It does not cover the distance of the
    distributions, below which the distance at N lies by its bias: see `extrapolate`.

    Centred on the distance, with the jackknife's deviation, whose square is too large rather than too small in
    expectation (Efron and Stein), and Student's t of NUM_GROUPS - 1 degrees of freedom; cut off at zero.

    Args:
        x, y: features, NUM_GROUPS rows each at least.
        level: probability of covering.
        seed: of the shuffle before the cut into groups.

    Raises:
        ValueError: as `frechet_distance`; fewer than NUM_GROUPS rows; a level outside (0, 1).
    """
    x, y, distance = _checked(x, y, level, "frechet_interval")
    return _interval(distance, _without_each_group(x, y, seed), level)


def both(x: Features, y: Features, *, level: float = 0.95, seed: int = 0) -> tuple[Interval, Extrapolation]:
    """`frechet_interval` and `extrapolate` for the price of the second."""
    x, y, distance = _checked(x, y, level, "frechet_interval")
    without = _without_each_group(x, y, seed)
    return _interval(distance, without, level), _extrapolate(x, y, distance, without, level, seed)


def extrapolate(x: Features, y: Features, *, level: float = 0.95, seed: int = 0) -> Extrapolation:
    """FVD_infinity: the Frechet distance without the excess that comes of estimating moments from N clips.

    The excess is b / N: the distances at N and at the N (1 - 1 / NUM_GROUPS) rows of the jackknife give b, and the line
    through them the value at 1 / N = 0 (Quenouille's correction). The interval is that of `frechet_interval` around the
    new centre: the two deviate alike.

    While N is small against the number of directions that the features vary in, the excess falls more slowly than
    1 / n and the line ends too high. Then b is smaller if taken between N / 2 and N than near N. Where it is so by more
    than a tenth, `settled` is False and the interval reaches down to zero.

    Args and raises: as `frechet_interval`.
    """
    x, y, distance = _checked(x, y, level, "extrapolate")
    return _extrapolate(x, y, distance, _without_each_group(x, y, seed), level, seed)


def _extrapolate(
    x: np.ndarray, y: np.ndarray, distance: float, without: Float64[np.ndarray, "G"], level: float, seed: int
) -> Extrapolation:
    bias = (NUM_GROUPS - 1) * (float(without.mean()) - distance)
    bias_from_half = _at_half(x, y, seed) - distance
    # Of constant features or equal sets both are rounding, which must not decide.
    rounding = 1e-9 * (distance + float(np.var(x, axis=0, dtype=np.float64).sum()))
    settled = bias - bias_from_half <= _BIAS_TOLERANCE * abs(bias) + rounding
    interval = _interval(distance - bias, without, level)
    if not settled:
        interval = interval._replace(low=0.0)
    return Extrapolation(value=distance - bias, bias=bias, interval=interval, settled=settled)


def _without_each_group(x: np.ndarray, y: np.ndarray, seed: int) -> Float64[np.ndarray, "G"]:
    """Jackknife: distances with each group left out of both sets in turn."""
    groups = zip(_blocks(len(x), NUM_GROUPS, (seed, 0)), _blocks(len(y), NUM_GROUPS, (seed, 0)))
    return np.array([frechet_distance(np.delete(x, i, axis=0), np.delete(y, j, axis=0)) for i, j in groups])


def _at_half(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Mean distance of halves. Both halves of a cut are used, so that what is linear in the rows cancels."""
    halves = [
        frechet_distance(x[i], y[j])
        for cut in range(1, 1 + _NUM_HALVINGS)
        for i, j in zip(_blocks(len(x), 2, (seed, cut)), _blocks(len(y), 2, (seed, cut)))
    ]
    return float(np.mean(halves))


def _blocks(num_rows: int, num_blocks: int, seed: tuple[int, int]) -> list[np.ndarray]:
    """Shuffled row indices in blocks of about equal size. The same blocks for the same number of rows."""
    return np.array_split(np.random.default_rng(seed).permutation(num_rows), num_blocks)


def _interval(centre: float, without: Float64[np.ndarray, "G"], level: float) -> Interval:
    deviation = math.sqrt((NUM_GROUPS - 1) * float(without.var()))
    reach = _student_quantile((1 + level) / 2, NUM_GROUPS - 1) * deviation
    # Neither the distance nor its expectation is negative.
    return Interval(low=max(0.0, centre - reach), high=max(0.0, centre + reach), level=level)


def _student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t. Abramowitz and Stegun 26.7.5: within 1e-3 for 15 degrees and probability 0.999."""
    z = statistics.NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _checked(x: Features, y: Features, level: float, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Both sets in NumPy, and their distance."""
    if not 0 < level < 1:
        raise ValueError(f"{name}: level={level}, must lie between 0 and 1, as 0.95")
    distance = frechet_distance(x, y)
    num_rows = min(len(x), len(y))
    if num_rows < NUM_GROUPS:
        raise ValueError(
            f"{name}: N={num_rows} rows, must be at least {NUM_GROUPS}, one for each group left out; score more clips"
        )
    return np.asarray(x), np.asarray(y), distance
