"""What `sample --image` makes of a picture, and mistakes that it explains."""

import dataclasses

import numpy as np
import pytest
from dit_video.cli.first_frame import continuing, read_frame
from dit_video.dit.first_frame import FirstFrame
from PIL import Image

from dit_video.data.batch import Batch
from dit_video.dit.condition import TextCondition

WORDS = TextCondition(hidden_size=16, depth=1, num_heads=2)
ROWS = [Batch(signals={"caption": np.full((1, 4), n, np.uint8)}) for n in range(2)]


@pytest.fixture
def picture(tmp_path):
    """Twice as wide as high, each half of one colour."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0], pixels[:, 20:, 2] = 200, 100
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


def test_every_row_begins_with_the_picture(denoise, picture):
    task = dataclasses.replace(denoise, condition=FirstFrame(text=WORDS))
    for told in (task, dataclasses.replace(denoise, hold_first_frame=True)):
        rows = continuing(picture, told, ROWS, (16, 16))
        for row, before in zip(rows, ROWS):
            np.testing.assert_array_equal(row.video, read_frame(picture, (16, 16)))
            assert row.caption is before.caption


def test_it_is_scaled_to_cover_the_clip_and_cropped_at_its_centre(picture):
    frame = read_frame(picture, (10, 10))
    assert (frame.shape, frame.dtype) == ((1, 1, 10, 10, 3), np.uint8)
    np.testing.assert_allclose(frame[0, 0, :, 0], [[200, 0, 0]] * 10, atol=2)
    np.testing.assert_allclose(frame[0, 0, :, -1], [[0, 0, 100]] * 10, atol=2)


def test_grey_and_transparent_pictures_are_pictures_too(tmp_path):
    for mode in ("L", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (8, 8), 1).save(path)
        assert read_frame(path, (4, 4)).shape == (1, 1, 4, 4, 3)


def test_a_run_that_is_told_no_first_frame_takes_no_picture(denoise, picture):
    assert continuing(None, denoise, ROWS, (16, 16)) == ROWS
    with pytest.raises(ValueError, match=r"--image=.*halves.png: this run is not told a first frame; leave it out"):
        continuing(picture, denoise, ROWS, (16, 16))


def test_a_run_that_continues_a_picture_asks_for_one(denoise):
    with pytest.raises(ValueError, match="--image=None: this run makes clips that continue a first frame"):
        continuing(None, dataclasses.replace(denoise, condition=FirstFrame(text=WORDS)), ROWS, (16, 16))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "words.png"
    path.write_text("no picture")
    for wrong in (path, tmp_path):
        with pytest.raises(ValueError, match=f"--image={wrong}: not a picture that can be read"):
            read_frame(wrong, (4, 4))
