import functools
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats

from dit_video.evaluation.frechet import frechet_distance
from dit_video.evaluation.uncertainty import NUM_GROUPS, _student_quantile, extrapolate, frechet_interval

NUM_DRAWS = 120
# A coverage of 0.95 shows less than 0.90 in 120 draws with probability 0.01.
LEAST_COVERAGE = 0.90
DEVIATION = np.exp(-np.arange(12) / 6)


class Case(NamedTuple):
    """Gaussians of diagonal covariance: x ~ N(0, DEVIATION^2), y ~ N(shift, (scale DEVIATION)^2)."""

    shift: float
    scale: float
    num_rows: tuple[int, int]

    @property
    def truth(self) -> float:
        return len(DEVIATION) * self.shift**2 + float(np.square((self.scale - 1) * DEVIATION).sum())

    def draw(self, rng):
        x, y = (rng.normal(size=(n, len(DEVIATION))) * DEVIATION for n in self.num_rows)
        return x, self.scale * y + self.shift


CASES = {
    "zero": Case(0.0, 1.0, (48, 48)),
    "small": Case(0.1, 1.1, (64, 40)),
    "large": Case(0.5, 2.0, (48, 48)),
}


@functools.cache
def measured(name):
    """Distances, intervals of their expectation, and extrapolations, one for each draw of the case."""
    rng = np.random.default_rng(0)
    pairs = [CASES[name].draw(rng) for _ in range(NUM_DRAWS)]
    distances = np.array([frechet_distance(*pair) for pair in pairs])
    return distances, [frechet_interval(*pair) for pair in pairs], [extrapolate(*pair) for pair in pairs]


def coverage(intervals, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@pytest.mark.parametrize(
    "name", ["zero", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "zero")]
)
def test_both_intervals_cover_what_they_claim(name):
    distances, intervals, limits = measured(name)
    assert coverage(intervals, distances.mean()) >= LEAST_COVERAGE
    assert coverage([limit.interval for limit in limits], CASES[name].truth) >= LEAST_COVERAGE


@pytest.mark.parametrize("name", CASES)
def test_extrapolation_takes_off_the_excess_of_few_rows(name):
    distances, _, limits = measured(name)
    truth, values = CASES[name].truth, np.array([limit.value for limit in limits])
    excess = distances.mean() - truth
    assert abs(values.mean() - truth) < excess / 5
    assert np.square(values - truth).mean() < np.square(distances - truth).mean()
    bias = np.array([limit.bias for limit in limits])
    assert bias.mean() == pytest.approx(excess, rel=0.2)
    np.testing.assert_allclose(values + bias, distances, rtol=1e-12)


def test_an_interval_is_no_wider_than_chance_asks_for():
    """Far apart, where the distance is nearly normal: the width is that of Student's t, 2.13 deviations each way."""
    distances, intervals, limits = measured("large")
    expected = 2 * 2.13 * distances.std(ddof=1)
    assert np.mean([high - low for low, high, _ in intervals]) == pytest.approx(expected, rel=0.25)
    widths = [limit.interval.high - limit.interval.low for limit in limits if limit.settled]
    assert np.mean(widths) == pytest.approx(expected, rel=0.25)


def test_no_bound_is_negative_though_a_value_may_be():
    _, intervals, limits = measured("zero")
    assert min(limit.value for limit in limits) < 0
    assert min(interval.low for interval in [*intervals, *(limit.interval for limit in limits)]) == 0
    # Values far below what chance allows: a set compared with its own shuffled rows.
    x = np.random.default_rng(8).normal(size=(40, 12))
    limit = extrapolate(x, np.random.default_rng(9).permutation(x))
    assert limit.value < 0
    assert limit.interval.low == 0 <= limit.interval.high


def test_a_bootstrap_fails_where_the_jackknife_covers():
    """Rows drawn twice act as fewer rows, so the bootstrap's whole interval lies above the distance itself."""
    rng, num_rows = np.random.default_rng(1), 100
    draws = [(rng.normal(size=(num_rows, 24)), rng.normal(size=(num_rows, 24))) for _ in range(40)]
    expected = np.mean([frechet_distance(x, y) for x, y in draws])
    bootstraps = []
    for x, y in draws[:20]:
        rows = rng.integers(num_rows, size=(60, 2, num_rows))
        low, high = np.quantile([frechet_distance(x[i], y[j]) for i, j in rows], [0.025, 0.975])
        assert low > frechet_distance(x, y)
        bootstraps.append(low <= expected <= high)
    assert np.mean(bootstraps) < 0.1
    intervals = [frechet_interval(x, y) for x, y in draws]
    assert all(low < frechet_distance(x, y) < high for (low, high, _), (x, y) in zip(intervals, draws))
    assert coverage(intervals, expected) >= LEAST_COVERAGE


def test_fewer_rows_than_directions_leave_a_bound_from_above_only():
    rng = np.random.default_rng(2)
    for _ in range(10):
        few = extrapolate(rng.normal(size=(24, 40)), 1 + rng.normal(size=(24, 40)))
        assert not few.settled
        assert few.value > 40
        assert few.interval.low == 0
        assert few.interval.high > 40
    many = [extrapolate(rng.normal(size=(160, 40)), 1 + rng.normal(size=(160, 40))) for _ in range(10)]
    assert sum(limit.settled for limit in many) >= 9
    assert all(limit.interval.low > 20 for limit in many if limit.settled)


def test_rows_of_equal_index_may_depend_on_each_other():
    """As clips and their reconstructions. Shuffling one set keeps the distance, but loses what the pairs share."""
    rng, truth, paired, shuffled = np.random.default_rng(3), 12 * 0.5**2, [], []
    for _ in range(50):
        x = rng.normal(size=(48, 12))
        y = 0.5 + 0.98 * x + np.sqrt(1 - 0.98**2) * rng.normal(size=(48, 12))
        paired.append(extrapolate(x, y).interval)
        shuffled.append(extrapolate(x, rng.permutation(y)).interval)
    assert coverage(paired, truth) >= LEAST_COVERAGE
    assert coverage(shuffled, truth) < 0.5


def test_level_sets_the_width_by_student_s_t():
    x, y = CASES["large"].draw(np.random.default_rng(4))
    intervals = [frechet_interval(x, y, level=level) for level in (0.5, 0.9, 0.95, 0.99)]
    widths = {level: high - low for low, high, level in intervals}
    # Of 15 degrees of freedom, from tables.
    for level, quantile in {0.5: 0.69120, 0.9: 1.75305, 0.99: 2.94671}.items():
        assert widths[level] / widths[0.95] == pytest.approx(quantile / 2.13145, rel=2e-4)
    assert frechet_interval(x, y, level=0.9).level == extrapolate(x, y, level=0.9).interval.level == 0.9


def test_same_input_same_output_whatever_the_offset():
    x, y = CASES["small"].draw(np.random.default_rng(5))
    assert extrapolate(x, y) == extrapolate(x, y)
    assert frechet_interval(x, y) == frechet_interval(x, y)
    assert extrapolate(x, y) != extrapolate(x, y, seed=1)
    np.testing.assert_allclose(frechet_interval(x + 1e5, y + 1e5), frechet_interval(x, y), atol=1e-6)
    np.testing.assert_allclose(extrapolate(x + 1e5, y + 1e5)[:2], extrapolate(x, y)[:2], atol=1e-6)
    np.testing.assert_allclose(extrapolate(y, x)[:2], extrapolate(x, y)[:2], rtol=1e-9)


def test_identical_sets_and_constant_features_are_certain():
    x = np.random.default_rng(6).normal(size=(40, 12))
    limit = extrapolate(x, x)
    assert limit.settled
    np.testing.assert_allclose([limit.value, limit.bias, *limit.interval[:2]], 0, atol=1e-9)
    np.testing.assert_allclose(frechet_interval(x, x)[:2], 0, atol=1e-9)
    limit = extrapolate(np.full((20, 7), 1.0), np.full((17, 7), 3.0))
    assert limit.settled
    np.testing.assert_allclose([limit.value, limit.bias, *limit.interval[:2]], [28, 0, 28, 28], atol=1e-9)


@pytest.mark.parametrize("estimate", [frechet_interval, extrapolate])
def test_too_few_rows_bad_levels_and_bad_features_are_named(estimate):
    x = np.random.default_rng(7).normal(size=(NUM_GROUPS, 4))
    assert estimate(x, x + 1) is not None
    with pytest.raises(ValueError, match=rf"{estimate.__name__}: N=15 rows, must be at least 16.*score more clips"):
        estimate(x, x[1:])
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match=f"level={level}, must lie between 0 and 1"):
            estimate(x, x, level=level)
    with pytest.raises(ValueError, match="D=4 and D=3"):
        estimate(x, x[:, :3])
    with pytest.raises(ValueError, match="1 of 16 rows are not finite, first row 0"):
        estimate(x, np.where(x == x[0, 0], np.nan, x))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_and_origin_of_features_decide_nothing(scale):
    """Distances go with the square of a scale; whether the excess has settled depends on neither."""
    rng = np.random.default_rng(2)
    for num_rows, settled in ((24, False), (160, True)):
        x, y = rng.normal(size=(num_rows, 40)), 1 + rng.normal(size=(num_rows, 40))
        limit, scaled = extrapolate(x, y), extrapolate(scale * x, scale * y)
        assert limit.settled == scaled.settled == settled
        np.testing.assert_allclose(scaled[:2], np.multiply(limit[:2], scale**2), rtol=1e-6)
        far = 1e5 * np.arange(40)
        assert extrapolate(x + far, y + far).settled == settled


def test_rounding_of_widely_spread_features_does_not_unsettle():
    """Equal rows in another order: distance and excess are rounding of the square of the spread, however wide."""
    for seed in range(5):
        x = 1e4 * np.random.default_rng(seed).normal(size=(40, 12))
        assert extrapolate(x, np.array(x)).settled


@pytest.mark.parametrize("probability", [0.6, 0.75, 0.9, 0.975, 0.995])
def test_quantiles_of_student_s_t_lack_the_fourth_order_alone(probability):
    """Abramowitz and Stegun 26.7.5, whose next term is g_4(z) / freedom^4."""
    z, freedom = scipy.stats.norm.ppf(probability), 500
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160 / freedom**4
    exact = scipy.stats.t.ppf(probability, freedom)
    np.testing.assert_allclose(_student_quantile(probability, freedom) + fourth, exact, atol=5e-12, rtol=0)
