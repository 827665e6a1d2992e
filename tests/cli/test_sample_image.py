"""What `sample --image` makes of a picture, and mistakes that it explains."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dit_video.cli.picture import continuing, read_frame
from dit_video.data.batch import Batch
from dit_video.diffusion.objective import diffusion_forcing
from dit_video.dit.condition import TextCondition
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.wan import WanConfig
from dit_video.tasks.known_frames import FirstFrame, KnownFrames

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
    wan = WanConfig(hidden_size=16, depth=1, num_heads=1, mlp_width=16, patch_size=(1, 1, 1))
    shown = dataclasses.replace(denoise, network=wan, condition=WORDS, known=FirstFrame(shown=AsChannels()))
    for task in (shown, dataclasses.replace(denoise, known=FirstFrame())):
        continues, rows = continuing(picture, task, ROWS, (16, 16))
        assert continues == task
        for row, before in zip(rows, ROWS):
            np.testing.assert_array_equal(row.video, read_frame(picture, (16, 16)))
            assert row.signals is before.signals


def test_a_network_with_a_level_for_each_frame_continues_pictures_though_it_was_not_trained_to(denoise, picture):
    forcing = dataclasses.replace(denoise, objective=diffusion_forcing(denoise.objective))
    continues, _ = continuing(picture, forcing, ROWS, (16, 16))
    assert continues == dataclasses.replace(forcing, known=FirstFrame())
    assert continuing(None, forcing, ROWS, (16, 16)) == (forcing, ROWS)
    mixture = dataclasses.replace(denoise, known=KnownFrames())
    assert continuing(picture, mixture, ROWS, (16, 16))[0] == dataclasses.replace(mixture, known=FirstFrame())
    assert continuing(None, mixture, ROWS, (16, 16)) == (mixture, ROWS)


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


def test_a_run_that_continues_no_first_frame_takes_no_picture(denoise, picture):
    assert continuing(None, denoise, ROWS, (16, 16)) == (denoise, ROWS)
    with pytest.raises(ValueError, match=r"--image=.*halves.png: this run continues no first frame, .* leave it out"):
        continuing(picture, denoise, ROWS, (16, 16))


def test_a_run_that_continues_a_picture_asks_for_one(denoise):
    with pytest.raises(ValueError, match="--image=None: this run makes clips that continue a first frame"):
        continuing(None, dataclasses.replace(denoise, known=FirstFrame()), ROWS, (16, 16))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "words.png"
    path.write_text("no picture")
    for wrong in (path, tmp_path):
        with pytest.raises(ValueError, match=f"--image={wrong}: not a picture that can be read"):
            read_frame(wrong, (4, 4))


def test_a_picture_is_upright_over_black_and_of_eight_bits(tmp_path):
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., 1], hidden[:, 4:] = 255, (200, 30, 30, 255)
    Image.fromarray(hidden).save(tmp_path / "alpha.png")
    frame = read_frame(tmp_path / "alpha.png", (8, 8))[0, 0]
    np.testing.assert_array_equal(frame, hidden[..., :3] * (hidden[..., 3:] // 255))
    Image.fromarray(np.full((8, 8), 0x8040, np.uint16)).save(tmp_path / "deep.png")
    assert (read_frame(tmp_path / "deep.png", (8, 8)) == 0x80).all()
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        Image.fromarray(hidden[..., :3]).save(tmp_path / "turned.png", exif=exif)
        # As the EXIF standard numbers them: mirrored; upside down; both; transposed; right; across; left.
        views = [
            *(lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1, ::-1], lambda x: x[::-1]),
            *(lambda x: x.swapaxes(0, 1), lambda x: np.rot90(x, -1), lambda x: np.rot90(x, 2).swapaxes(0, 1), np.rot90),
        ]
        expected = views[orientation - 1](hidden[..., :3])
        np.testing.assert_array_equal(read_frame(tmp_path / "turned.png", (8, 8))[0, 0], expected)
