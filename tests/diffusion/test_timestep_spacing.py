"""Laws of the spacings: how many times, their ends, their order, and the tables of the paper."""

import numpy as np
import pytest

from dit_video.diffusion.timestep_spacing import Leading, Linspace, Trailing

SPACINGS = [
    Trailing(),
    Trailing(first=0.999),
    Linspace(),
    Linspace(drop_last=True),
    Leading(),
    Leading(num_train_steps=50),
]


@pytest.mark.parametrize("spacing", SPACINGS, ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_times_fall_to_exactly_zero(spacing, num_steps):
    times = spacing.times(num_steps)
    assert times.shape == (num_steps + 1,)
    assert np.all(np.diff(times) < 0)
    assert times[0] <= 1
    assert times[-1] == 0


def test_spacings_are_those_of_the_paper():
    """2305.08891, table 2: ten of 1000 levels, there counted 1 ... 1000."""
    assert (np.rint(1000 * Leading().times(10))[:-1] == np.arange(901, 0, -100)).all()
    assert (np.rint(1000 * Linspace().times(10))[:-1] == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]).all()
    assert (np.rint(1000 * Trailing().times(10))[:-1] == np.arange(1000, 0, -100)).all()


def test_dropping_the_last_lengthens_the_step_to_the_data():
    times = Linspace(last=0.2, drop_last=True).times(4)
    np.testing.assert_allclose(times, [1.0, 0.8, 0.6, 0.4, 0.0])


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match=r"num_steps=51.*Leading\.num_train_steps=50"):
        Leading(num_train_steps=50).times(51)


@pytest.mark.parametrize(
    ("component", "fields", "match"),
    [
        (Trailing, {"first": 1.5}, r"Trailing\.first=1\.5"),
        (Trailing, {"first": 0.0}, r"Trailing\.first=0\.0"),
        (Linspace, {"last": 1.0}, r"Linspace\.last=1\.0"),
        (Linspace, {"last": 0.0}, r"Linspace\.last=0\.0"),
        (Leading, {"num_train_steps": 0}, r"Leading\.num_train_steps=0"),
    ],
)
def test_impossible_values_are_refused_by_name(component, fields, match):
    with pytest.raises(ValueError, match=match):
        component(**fields)


def test_the_outermost_values_are_taken():
    assert Trailing(first=1.0) == Trailing()
    np.testing.assert_array_equal(Leading(num_train_steps=1).times(1), [1, 0])
    np.testing.assert_allclose(Leading(num_train_steps=7).times(7), np.arange(7, -1, -1) / 7)
    np.testing.assert_array_equal(Linspace().times(1), [1, 0])
    np.testing.assert_allclose(Linspace().times(2), [1, 1e-3, 0])
    assert Leading().num_train_steps == 1000
