"""Laws of still pictures: they are read as frames of a video are."""

import numpy as np
import pytest
from PIL import Image
from sample_videos import waves

from dit_video.video.pictures import VideoError
from dit_video.video.still import read_still


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_still(tmp_path / "a.png"), np.repeat((levels >> 8)[..., None], 3, axis=-1))


def test_pictures_are_upright_and_over_black(tmp_path):
    pixels = waves(0, 1, 8, 12)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_still(tmp_path / "a.png"), np.rot90(pixels, -1))
    alpha = np.full((8, 12, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=-1)).save(tmp_path / "b.png")
    assert np.abs(read_still(tmp_path / "b.png") - pixels * (128 / 255)).max() <= 1
    Image.fromarray(pixels[..., 0]).save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_still(tmp_path / "c.png"), np.repeat(pixels[..., :1], 3, axis=-1))


def test_what_is_no_picture_or_too_large_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="not a picture that can be read"):
        read_still(tmp_path / "a.png")
    Image.new("1", (8193, 4320)).save(tmp_path / "b.png")
    with pytest.raises(VideoError, match="it has 8193 x 4320 pixels a frame, more than"):
        read_still(tmp_path / "b.png")
