"""Comparisons of settings show what differs, however long the values are."""

import pytest

from dit_video.config.json_file import in_short, other_values


@pytest.mark.parametrize(
    ("actual", "expected", "lines"),
    [
        ({"clips": {"num_frames": 17}}, {"clips": {"num_frames": 9}}, ["  clips.num_frames: cache 17, this run 9"]),
        ({"a": [1, 2, 3]}, {"a": [1, 5, 6]}, ["  a[1]: cache 2, this run 5"]),
        ({"a": [1, 2]}, {"a": [1]}, ["  a: cache has 2 values, this run 1"]),
        ({}, {"codec": "x"}, ['  codec: cache null, this run "x"']),
        ({"extra": 1, "same": {"b": [0]}}, {"same": {"b": [0]}}, []),
    ],
)
def test_each_difference_is_one_line_with_its_path(actual, expected, lines):
    assert other_values(actual, expected, "this run") == lines


@pytest.mark.parametrize("place", [0, 1, 59, 60, 500, 998, 999])
def test_long_values_are_cut_around_the_first_difference(place):
    first = "x" * 1000
    second = first[:place] + "y" + first[place + 1 :]
    short = in_short(first, second)
    assert short[0] != short[1]
    assert all(len(text) <= 66 for text in short)
