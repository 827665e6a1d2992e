"""Laws of decoding and encoding."""

import struct

import numpy as np
import pytest
from PIL import Image
from sample_videos import waves, write, write_frames, write_sound, yuv

from dit_video.video import decode as videos
from dit_video.video.encode import encode_mp4, grid, write_gif, write_mp4
from dit_video.video.pictures import VideoError


def test_mp4_keeps_frames_rate_and_colours(tmp_path):
    video = waves(0)
    write_mp4(tmp_path / "a.mp4", video, 12.5)
    decoded, fps = videos.read_video(tmp_path / "a.mp4")
    error = decoded.astype(float) - video
    assert decoded.shape == video.shape
    assert fps == 12.5
    assert np.sqrt((error**2).mean()) < 6
    # The usual fast conversion of swscale darkens by more than a grey level.
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 0.6


def test_odd_sizes_gain_a_copy_of_the_last_row_and_column():
    video = waves(1, height=31, width=47)
    decoded, _ = videos.decode(encode_mp4(video, 10.0))
    assert decoded.shape[1:3] == (32, 48)
    assert np.abs(decoded[:, :31, :47].astype(float) - video).mean() < 6


@pytest.mark.parametrize("start", [0, 5, 31, 32, 33, 60])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_window_equals_a_slice_of_the_whole(start, stride):
    data = encode_mp4(waves(2, num_frames=80), 10.0)
    whole, _ = videos.decode(data)
    window = videos.decode_window(data, start=start, num_frames=6, stride=stride)
    np.testing.assert_array_equal(window, whole[start : start + 6 * stride : stride])


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"bf": "3", "b-pyramid": "none"}),
        ("libx264", {"bf": "5", "b-pyramid": "normal", "x264-params": "open-gop=1:keyint=12"}),
        ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:bframes=3"}),
        ("mpeg4", {"bf": "2"}),
        ("mpeg2video", {"bf": "2"}),
        ("libvpx-vp9", {"lag-in-frames": "8", "auto-alt-ref": "1", "cpu-used": "8"}),
    ],
)
def test_what_no_frame_refers_to_may_be_left_out_of_decoding(codec, options, tmp_path):
    frames = yuv(waves(3, num_frames=26, height=64, width=96))
    write_frames(tmp_path / "a.mkv", frames, codec=codec, times=list(range(26)), clock=25, options=options)
    data = (tmp_path / "a.mkv").read_bytes()
    whole, _ = videos.decode(data)
    assert len(whole) == 26
    for start, stride in ((1, 3), (10, 1), (7, 4), (19, 2)):
        window = videos.decode_window(data, start=start, num_frames=3, stride=stride)
        np.testing.assert_array_equal(window, whole[start : start + 3 * stride : stride])


def test_a_window_of_a_container_without_times_equals_a_slice_too(tmp_path):
    write(tmp_path / "a.avi", waves(2), codec="mpeg4", pixels="yuv420p")
    data = (tmp_path / "a.avi").read_bytes()
    whole, _ = videos.decode(data)
    np.testing.assert_array_equal(videos.decode_window(data, start=4, num_frames=3, stride=2), whole[4:9:2])


def test_a_window_beyond_the_end_is_an_error():
    data = encode_mp4(waves(3, num_frames=10), 10.0)
    with pytest.raises(VideoError, match="ends before frame 12: 2 of 5 frames of the clip"):
        videos.decode_window(data, start=8, num_frames=5)


def test_scaling_covers_the_size_and_keeps_the_aspect():
    data = encode_mp4(waves(4, height=32, width=48), 10.0)
    small = videos.decode_window(data, start=0, num_frames=2, cover=(16, 16))
    assert small.shape == (2, 16, 24, 3)
    whole, _ = videos.decode(data)
    means = whole[:2].reshape(2, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - means).mean() < 2
    assert videos.scale(whole[:1], (64, 64)).shape == (1, 64, 96, 3)


def test_rotation_in_the_container_is_respected():
    data = encode_mp4(waves(5), 10.0)
    upright, _ = videos.decode(data)
    # The display matrix of a phone held upright: a quarter turn clockwise.
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    place = data.index(matrix, data.index(b"tkhd"))
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 1 << 30)
    decoded, _ = videos.decode(data[:place] + turned + data[place + len(matrix) :])
    np.testing.assert_array_equal(decoded, np.rot90(upright, -1, axes=(1, 2)))


def test_what_is_no_video_says_what_it_is(tmp_path):
    Image.fromarray(waves(6)[0]).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("hello\n" * 100)
    write_sound(tmp_path / "a.m4a")
    with pytest.raises(VideoError, match=r"a\.png: a picture, not a video"):
        videos.read_video(tmp_path / "a.png")
    with pytest.raises(VideoError, match=r"a\.txt"):
        videos.read_video(tmp_path / "a.txt")
    with pytest.raises(VideoError, match=r"a\.m4a: sound only"):
        videos.read_video(tmp_path / "a.m4a")
    with pytest.raises(FileNotFoundError, match="nothing"):
        videos.read_video(tmp_path / "nothing.mp4")


def test_gif_keeps_frames_and_rate(tmp_path):
    video = waves(7, num_frames=5)
    write_gif(tmp_path / "a.gif", video, 10.0)
    decoded, fps = videos.read_video(tmp_path / "a.gif")
    assert decoded.shape == video.shape
    assert fps == 10.0
    assert np.abs(decoded.astype(float) - video).mean() < 12


def test_grid_places_every_video():
    clips = np.stack([np.full((2, 4, 6, 3), value, np.uint8) for value in range(5)])
    picture = grid(clips, 3, separator=1)
    assert picture.shape == (2, 2 * 4 + 1, 3 * 6 + 2, 3)
    assert [picture[0, row * 5, column * 7, 0] for row in (0, 1) for column in (0, 1, 2)] == [0, 1, 2, 3, 4, 255]


def test_a_window_beyond_the_end_is_an_error_wherever_it_begins():
    data = encode_mp4(waves(3, num_frames=10), 10.0)
    for start, num_frames, message in ((10, 1, "frame 10: 0 of 1"), (9, 2, "frame 10: 1 of 2"), (20, 2, "frame 21: 0")):
        with pytest.raises(VideoError, match=f"ends before {message}"):
            videos.decode_window(data, start=start, num_frames=num_frames)
    assert len(videos.decode_window(data, start=9, num_frames=1)) == 1


def test_a_window_of_frames_that_share_their_times_equals_a_slice_too(tmp_path):
    """Matroska counts milliseconds: at 2000 frames a second two of them have one time."""
    write(tmp_path / "a.mkv", waves(2), codec="mpeg4", pixels="yuv420p", fps=2000)
    data = (tmp_path / "a.mkv").read_bytes()
    whole, _ = videos.decode(data)
    assert len(whole) == 12
    np.testing.assert_array_equal(videos.decode_window(data, start=4, num_frames=3, stride=2), whole[4:9:2])


def test_a_window_needs_no_frame_before_the_key_frame_at_its_start():
    """What comes earlier is not decoded: it may as well be damaged."""
    data = encode_mp4(waves(2, num_frames=80), 10.0)
    with videos.open_video(data) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert len(keys) > 1
    spoilt = bytearray(data)
    for packet in packets[: keys[1]]:
        spoilt[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    start = keys[1]
    window = videos.decode_window(bytes(spoilt), start=start, num_frames=4)
    np.testing.assert_array_equal(window, videos.decode_window(data, start=start, num_frames=4))
