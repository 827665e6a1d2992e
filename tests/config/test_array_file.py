"""A stranger's .npz: what is asked for is read, up to a bound that holds before anything is unpacked."""

import numpy as np
import pytest

from dit_video.config.array_file import read_arrays


def test_arrays_of_these_names_are_read_and_the_names_of_all_known(tmp_path):
    np.savez(tmp_path / "a.npz", action=np.arange(3), other=np.zeros(2))
    arrays, there = read_arrays(tmp_path / "a.npz", {"action", "missing"}, max_bytes=1 << 10)
    assert list(arrays) == ["action"]
    np.testing.assert_array_equal(arrays["action"], np.arange(3))
    assert there == ["action", "other"]


def test_what_unpacks_to_more_than_the_bound_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", action=np.zeros(1 << 20, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 13
    with pytest.raises(
        ValueError, match=r"no readable \.npz \(its arrays have 10\d+ bytes, more than 8192; split it\)"
    ):
        read_arrays(tmp_path / "bomb.npz", {"action"}, max_bytes=1 << 13)


def test_what_is_none_or_holds_python_objects_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", action=np.array([{}], object))
    (tmp_path / "text.npz").write_bytes(b"PK no archive")
    for name in ("objects", "text"):
        with pytest.raises(ValueError, match=r"no readable \.npz"):
            read_arrays(tmp_path / f"{name}.npz", {"action"}, max_bytes=1 << 13)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "missing.npz", {"action"}, max_bytes=1)
