"""Laws of encoding: what a player must know is in the file, and defaults are what they are said to be."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from PIL import Image
from sample_videos import waves

from dit_video.video import decode as decoding
from dit_video.video.encode import encode_frames, encode_mp4, exact_rate, grid, write_gif
from dit_video.video.pictures import VideoError


@pytest.mark.parametrize(("source", "tag"), [(Colorspace.ITU709, 1), (Colorspace.ITU601, 6)])
def test_matrix_and_range_are_written_into_the_file(source, tag):
    colour = np.full((32, 48, 3), (200, 60, 60), np.uint8)
    rgb = VideoFrame.from_ndarray(colour, format="rgb24")
    frame = rgb.reformat(format="yuv444p", dst_colorspace=source)
    frame.colorspace = tag
    file = io.BytesIO()
    assert encode_frames(file, [frame] * 3, 25, size=(32, 48), crf=10, preset="fast") == 3
    with av.open(io.BytesIO(file.getvalue())) as container:
        decoded = list(container.decode(video=0))
    assert {(int(frame.colorspace), int(frame.color_range)) for frame in decoded} == {(tag, 1)}
    assert np.abs(decoding.decode(file.getvalue())[0].astype(int) - colour).max() < 4


def test_nothing_is_no_video():
    with pytest.raises(VideoError, match="holds no frame"):
        encode_frames(io.BytesIO(), [], 25, size=(32, 48), crf=10, preset="fast")


def test_a_key_frame_comes_every_32_and_defaults_are_those_of_good_quality():
    video = waves(0, num_frames=70)
    data = encode_mp4(video, 25)
    assert data == encode_mp4(video, 25, crf=14, preset="medium")
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert sorted(int(packet.pts * packet.time_base * 25) for packet in packets if packet.is_keyframe) == [0, 32, 64]
    assert decoding.count_frames(data) == 70


def test_rates_that_were_rounded_are_those_that_were_meant():
    for rate in (Fraction(24000, 1001), Fraction(25), Fraction(59000, 1999)):
        assert exact_rate(rate) == rate
    assert exact_rate(float(np.float32(24000 / 1001))) == exact_rate(24000 / 1001) == Fraction(24000, 1001)
    assert exact_rate(0.5) == Fraction(1, 2)
    # Further from any simple rate than 32 bits round: kept.
    assert exact_rate(25 * (1 + 3e-7)) == pytest.approx(25 * (1 + 3e-7), rel=1e-12)
    assert exact_rate(1e-4) == pytest.approx(1e-4, rel=1e-9)


def test_a_gif_of_few_colours_is_exact_and_of_one_palette():
    """Colours of the first frame and of the last are in it, however many frames there are."""
    colours = np.random.default_rng(0).integers(0, 256, (20, 3), np.uint8)
    video = np.stack([np.repeat(colour[None, None], 8, axis=0).repeat(8, axis=1) for colour in colours[:16]])
    file = io.BytesIO()
    write_gif(file, video, 10)
    with Image.open(io.BytesIO(file.getvalue())) as gif:
        assert (gif.n_frames, gif.info["loop"]) == (16, 0)
    assert np.abs(decoding.decode(file.getvalue())[0][::2].astype(int) - video[::2]).max() <= 4


@pytest.mark.parametrize(("count", "columns"), [(0, 1), (1, 0)])
def test_a_grid_of_nothing_is_refused(count, columns):
    with pytest.raises(ValueError, match="both must be at least 1"):
        grid(np.zeros((count, 1, 2, 2, 3), np.uint8), columns)


def test_a_grid_has_lines_of_two_pixels_and_no_more_columns_than_videos():
    videos = np.zeros((2, 1, 4, 6, 3), np.uint8)
    assert grid(videos, 5).shape == (1, 4, 14, 3)
    assert grid(videos, 1).shape == (1, 10, 6, 3)
    assert grid(videos, 1)[0, :, 0, 0].tolist() == [0] * 4 + [255] * 2 + [0] * 4


def test_limits_of_decoding_are_what_records_and_memory_were_made_for():
    assert decoding.MAX_DECODED_BYTES == 2 * 1024**3
    assert decoding.READING == 2  # kept features are of this reading; another number makes them anew
