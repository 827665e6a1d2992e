"""Laws of moving digits: each clip is a pure function of its number, and what is stored is that clip."""

import hashlib

import numpy as np
import pytest

from dit_video.data.builders import DigitSettings as Settings
from dit_video.data.builders import _bounce, _resampling, _scans, _scans_of, moving_digit, prepared_digits
from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.video.encode import encode_mp4

KNOWN = [(352, 8, "an eight moving to the left"), (599, 3, "a three moving up")]
MEANS = [56.733, 47.973]
SETTINGS = Settings(num_train=2, num_held_out=1, size=24, num_frames=5, digit_size=16, seed=0)


def test_a_clip_is_as_it_has_always_been():
    """Scans, captions and grey levels of these clips, by the code of version 0.2."""
    made = [moving_digit(SETTINGS, split, clip) for split, clip in ((Split.TRAIN, 8), (Split.HELD_OUT, 13))]
    assert [clip[:3] for clip in made] == KNOWN
    for (*_, video), mean in zip(made, MEANS):
        assert (video.shape, video.dtype) == ((5, 24, 24, 3), np.uint8)
        assert video.mean() == pytest.approx(mean, abs=0.02)
        assert (video == video[..., :1]).all()
        assert video.min() == 16
        assert video.max() > 240


def test_a_flight_is_reflected_at_both_ends():
    positions = np.array([0.0, 3, 8, 9, 16, 17, -1, -8, -9])[:, None]
    assert _bounce(np.repeat(positions, 2, axis=1), 8)[:, 0].tolist() == [0, 3, 8, 7, 0, 1, 1, 8, 7]


def test_digits_move_one_to_three_pixels_a_frame():
    wide = Settings(num_train=1, num_held_out=1, size=200, num_frames=2, digit_size=16, seed=1)
    rows, columns = np.mgrid[:200, :200]
    speeds = []
    for clip in range(40):
        ink = moving_digit(wide, Split.TRAIN, clip)[3][..., 0].astype(float) - 16
        centres = [(ink * axis).sum((1, 2)) / ink.sum((1, 2)) for axis in (rows, columns)]
        if all(12 < centre[0] < 188 for centre in centres):
            speeds.append(np.hypot(*(np.diff(centre)[0] for centre in centres)))
    assert 0.95 < min(speeds) < 1.4
    assert 2.6 < max(speeds) < 3.05


def test_scans_are_drawn_by_the_cubic_convolution_of_keys():
    same = Settings(num_train=1, num_held_out=1, size=20, num_frames=1, digit_size=8, seed=0)
    [matrix] = _resampling(np.array([4.0]), same)
    np.testing.assert_allclose(matrix, np.eye(20, 8, -4), atol=1e-12)
    [half] = _resampling(np.array([4.5]), same)
    # Half-way between two pixels: -1/16, 9/16, 9/16, -1/16.
    np.testing.assert_allclose(half[7, 1:5], np.array([-1, 9, 9, -1]) / 16, atol=1e-12)
    [double] = _resampling(np.array([2.0]), Settings(**{**vars(same), "digit_size": 16}))
    np.testing.assert_allclose(double[6:14].sum(axis=1), 1, atol=1e-12)
    # A quarter beyond: (-9, 111, 29, -3) / 128.
    np.testing.assert_allclose(sorted(double[9][double[9] != 0] * 128), [-9, -3, 29, 111], atol=1e-9)


def test_a_fifth_of_the_scans_of_each_digit_is_held_out():
    images, digits = _scans()
    assert (images.min(), images.max()) == (0, 1)
    for digit in range(10):
        train, held_out = (_scans_of(split)[digit] for split in Split)
        assert {*train, *held_out} == set(np.flatnonzero(digits == digit).tolist())
        assert len(held_out) == round((len(train) + len(held_out)) * 0.2)
        hashes = [[hashlib.sha256(str(scan).encode()).digest() for scan in part] for part in (held_out, train)]
        assert max(hashes[0]) < min(hashes[1])


def test_what_is_stored_is_the_clip_at_eight_frames_a_second(tmp_path):
    manifest = prepared_digits(tmp_path / "digits", SETTINGS)
    assert prepared_digits(tmp_path / "digits", SETTINGS) == manifest
    clips = {entry.file: entry for entry in manifest.entries}
    assert list(clips) == sorted(clips, key=lambda name: not name.startswith("train"))
    for record in VideoSet(directory=str(tmp_path / "digits")).open(Split.TRAIN):
        scan, digit, caption, video = moving_digit(SETTINGS, Split.TRAIN, int(record.key[6:12]))
        assert record.key.endswith(f"-scan{scan:04d}")
        assert (record.label, record.caption, record.fps, record.num_frames) == (digit, caption, 8.0, 5)
        assert record.video == encode_mp4(video, 8.0, crf=8, preset="veryfast")
        entry = clips[record.key]
        assert (entry.width, entry.height, entry.num_bytes) == (24, 24, len(record.video))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size=0: must be even"),
        ({"size": 31}, "size=31: must be even"),
        ({"digit_size": 7}, "digit_size=7: must be from 8 to below size=24"),
        ({"digit_size": 24}, "digit_size=24: must be from 8 to below size=24"),
        ({"num_train": 0}, "num_train=0: must be at least 1"),
        ({"num_frames": 0}, "num_frames=0: must be at least 1"),
    ],
)
def test_settings_that_make_no_clip_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{**vars(SETTINGS), **change})
    assert Settings(**{**vars(SETTINGS), "digit_size": 8}).num_clips(Split.TRAIN) == 2
    assert SETTINGS.num_clips(Split.HELD_OUT) == 1
