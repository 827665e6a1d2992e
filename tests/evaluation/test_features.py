import numpy as np
import pytest
from toys import Brightness, small_mesh

from dit_video.evaluation.features import Extractor, FromFile, Pool, cache_folder, cached
from dit_video.evaluation.i3d import I3DLogits


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 10, 8, 8, 3), np.uint8)


def pooled(clips: np.ndarray, num_devices: int, batch_size: int, **axes: int) -> np.ndarray:
    mesh = small_mesh(num_devices, **axes)
    return Pool(Brightness(), mesh, num_frames=9, batch_size=batch_size).features(clips)


def test_extractors_have_the_members_of_the_protocol():
    for extractor in (Brightness(), I3DLogits()):
        assert isinstance(extractor, Extractor)
    assert not isinstance(small_mesh(), Extractor)


@pytest.mark.parametrize(("num_devices", "axes"), [(1, {}), (2, {}), (4, {"fsdp": 2}), (8, {"tensor": 2}), (8, {})])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_clip_has_one_row_however_clips_are_batched_and_spread(clips, num_devices, axes, batch_size):
    """Rows that only fill up a batch are never counted."""
    features = pooled(clips, num_devices, batch_size, **axes)
    assert features.shape == (7, 10)
    np.testing.assert_array_equal(features, pooled(clips, 1, 7))


def test_frames_beyond_those_judged_do_not_count(clips):
    changed = clips.copy()
    changed[:, 9:] = 0
    np.testing.assert_array_equal(pooled(changed, 1, 4), pooled(clips, 1, 4))


class Counted:
    """Says features and how often it was asked to."""

    def __init__(self):
        self.times = 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def test_features_are_extracted_once_for_each_key():
    extract = Counted()
    first = cached({"content": "a", "num_frames": 16}, extract)
    again = cached({"num_frames": 16, "content": "a"}, extract)
    assert extract.times == 1
    np.testing.assert_array_equal(first, again)
    cached({"content": "b", "num_frames": 16}, extract)
    assert extract.times == 2


def test_a_kept_file_that_was_changed_is_made_anew():
    extract = Counted()
    for damage in (lambda data: data[:-5], lambda data: data[:-5] + b"\x01" + data[-4:], lambda data: b""):
        first = cached({"content": "a"}, extract)
        (file,) = cache_folder().iterdir()
        file.write_bytes(damage(file.read_bytes()))
        before = extract.times
        np.testing.assert_array_equal(cached({"content": "a"}, extract), first)
        assert extract.times == before + 1, "what was damaged must not be used"


def test_nothing_is_left_behind_but_the_features():
    cached({"content": "a"}, Counted())
    assert [file.suffix for file in cache_folder().iterdir()] == [".safetensors"]


@pytest.mark.slow
def test_logits_do_not_depend_on_the_number_of_devices():
    """FVD of equal clips is the same to 1e-6 relative if every logit is much nearer than that to its size."""
    clips = np.random.default_rng(1).integers(0, 256, (8, 9, 16, 16, 3), np.uint8)
    one = Pool(I3DLogits(), small_mesh(), num_frames=9, batch_size=8).features(clips)
    many = Pool(I3DLogits(), small_mesh(8), num_frames=9, batch_size=8).features(clips)
    assert np.linalg.norm(many - one) <= 1e-6 * np.linalg.norm(one)


def test_a_cache_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="features are not kept"):
        assert cached({"content": "a"}, Counted()).shape == (3, 4)


def test_features_that_another_user_keeps_from_us_are_extracted_again():
    """As of a cache of two users; here a folder, which nobody can read as a file, not even who may read all."""
    extract = Counted()
    first = cached({"content": "a"}, extract)
    (file,) = cache_folder().iterdir()
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="features are not kept"):
        np.testing.assert_array_equal(cached({"content": "a"}, extract), first)
    assert extract.times == 2


def test_an_extractor_of_a_file_is_another_one_once_the_file_has_changed():
    one, other = (FromFile(Brightness(), digest).protocol() for digest in ("a", "b"))
    assert one != other
    assert one.items() >= Brightness().protocol().items()
