"""What the benches of kill points and of odd states are made of: tools/fault_bench.py."""

import os
import stat

import pytest

from tools import point_bench, state_bench


def test_points_are_spread_over_all_changes():
    assert list(point_bench._spread(10, 3)) == [0, 3, 6]
    assert list(point_bench._spread(4, 9)) == list(point_bench._spread(4, None)) == [0, 1, 2, 3]


KINDS = {"a pipe": stat.S_ISFIFO, "a folder": stat.S_ISDIR, "a link to itself": stat.S_ISLNK, "garbage": stat.S_ISREG}


@pytest.mark.parametrize("state", KINDS)
def test_what_is_put_in_the_place_of_a_file_or_a_folder_is_that(tmp_path, state):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "new"):
        state_bench.put(state, tmp_path / name)
        assert KINDS[state](os.lstat(tmp_path / name).st_mode)
