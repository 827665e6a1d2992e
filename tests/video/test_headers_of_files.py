"""Laws of opened files: what their headers say is within limits, and what is known of packets."""

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from sample_videos import waves, write_frames, yuv

from dit_video.video import files
from dit_video.video.encode import encode_mp4
from dit_video.video.pictures import MAX_FRAME_PIXELS, VideoError, check_size


def test_limits_are_what_they_are_said_to_be():
    hours, minutes = files.MAX_FRAMES / 30 / 3600, files.MAX_VIDEO_PIXELS / (1920 * 1080 * 30 * 60)
    assert (hours, minutes) == (pytest.approx(4.85, abs=0.01), pytest.approx(73.6, abs=0.1))
    slowest, fastest = files.MIN_FPS, files.MAX_FPS
    assert (slowest, fastest) == (Fraction(1, 1000), 90_000)
    assert MAX_FRAME_PIXELS == 8192 * 4320
    check_size(4320, 8192, "it has")
    with pytest.raises(VideoError, match="it has 8193 x 4320 pixels a frame, more than 35389440"):
        check_size(4320, 8193, "it has")


@pytest.mark.parametrize("rate", [files.MIN_FPS, Fraction(90_000)])
def test_a_rate_at_a_limit_is_one(rate):
    assert files.checked_rate(rate, "states") == rate
    beyond = rate / 2 if rate < 1 else rate * 2
    with pytest.raises(VideoError, match=r"states .* frames a second, not 0\.001 to 90000; re-encode it"):
        files.checked_rate(beyond, "states")


def stated(fps: Fraction | int) -> list[Fraction]:
    with files.open_video(encode_mp4(waves(0, num_frames=3), fps)) as (_, video):
        return files.stated_rates(video)


def test_stated_rates_are_those_within_the_limits_each_once():
    for fps in (25, files.MIN_FPS, 90_000):
        assert stated(fps) == [fps]
    assert stated(files.MIN_FPS / 2) == stated(90_001) == []
    with (
        files.open_video(encode_mp4(waves(0, num_frames=3), Fraction(1, 2000))) as (_, video),
        pytest.raises(VideoError, match=r"states 0\.0005 frames a second"),
    ):
        files.frame_rate(video)


def test_pixels_of_no_aspect_are_square(tmp_path):
    for name, aspect in {"a.mp4": {}, "b.mp4": {"sample_aspect_ratio": Fraction(4, 3)}}.items():
        write_frames(tmp_path / name, yuv(waves(0, num_frames=2)), codec="libx264", times=[0, 40], **aspect)
        with files.open_video(tmp_path / name) as (_, video):
            assert files.pixel_aspect(video) == Fraction(*(4, 3) if aspect else (1, 1))


def test_packets_have_times_of_their_own_or_are_counted():
    log = files.PacketLog(times=[3, 1, 2])
    assert log.timed
    assert not files.PacketLog(times=[3, 1, 1]).timed
    assert not files.PacketLog(times=[3, None]).timed
    assert not files.PacketLog(times=[3, 1], num_discarded=1).timed
    data = encode_mp4(waves(0, num_frames=40), 10.0)
    log = files.PacketLog()
    with files.open_video(data) as (container, video):
        frames = list(files.decoded_frames(container, video, log))
    assert len(frames) == len(log.times) == 40
    assert sorted(log.times) == [frame.pts for frame in frames]
    # A key frame at the beginning, and one every 32.
    assert (sum(log.keys), log.keys[0], log.keys[1]) == (2, True, False)
    assert not any(log.corrupt + log.failed + log.noticed)
    assert (log.broken, log.num_discarded) == ("", 0)


def test_bytes_that_say_nothing_are_no_video():
    with pytest.raises(VideoError, match="not a readable video"), files.open_video(bytes(100)):
        pass
    for word in (b"RIFF", b"RIFX"):
        head = word + bytes(4) + b"WEBPVP8X" + bytes(4)
        for flags, animated in ((2, True), (3, True), (1, False), (0, False)):
            expected = "animated WebP" if animated and word == b"RIFF" else "not a readable video|a picture"
            with pytest.raises(VideoError, match=expected), files.open_video(head + bytes([flags]) + bytes(40)):
                pass


def test_one_thread_decodes_and_a_name_is_not_opened(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode_mp4(waves(0, num_frames=2), 10.0))
    with files.open_video(tmp_path / "a.mp4") as (container, video):
        assert video.codec_context.thread_count == 1
        assert not files.is_picture_format(container)
    with pytest.raises(VideoError, match="no such file"), files.open_video(tmp_path / "b.mp4"):
        pass
    with pytest.raises(VideoError, match="not a regular file"), files.open_video(tmp_path):
        pass


def test_a_full_disk_within_the_block_is_no_fault_of_the_video():
    data = encode_mp4(waves(0, num_frames=2), 10.0)
    for number in files.NO_SPACE:
        with pytest.raises(OSError, match="no room") as caught, files.open_video(data):
            raise av.error.FFmpegError(number, "no room")
        assert (caught.value.errno, isinstance(caught.value, VideoError)) == (number, False)
    with pytest.raises(VideoError, match="not a readable video: other"), files.open_video(data):
        raise av.error.FFmpegError(1, "other")


def test_a_file_that_breaks_off_ends_and_a_full_memory_does_not():
    def breaking(error: Exception) -> Iterator[av.Packet]:
        yield av.Packet(bytes(1))
        raise error

    log = files.PacketLog()
    assert len(list(files._until_broken(breaking(av.error.FFmpegError(5, "the disk is gone")), log))) == 1
    assert log.broken == "the disk is gone"
    memory = next(kind for kind in vars(av.error).values() if isinstance(kind, type) and issubclass(kind, MemoryError))
    with pytest.raises(MemoryError):
        list(files._until_broken(breaking(memory(12, "full")), log))


def test_packets_and_frames_end_at_the_limit_and_not_before(monkeypatch):
    monkeypatch.setattr(files, "MAX_FRAMES", 5)
    packets = [av.Packet(bytes(1)) for _ in range(7)]
    assert len(list(files.counted(packets[:6]))) == 6
    with pytest.raises(VideoError, match="more than 5 packets"):
        list(files.counted(packets))
    assert len(list(files.bounded([av.VideoFrame(4, 3)] * 5, 60))) == 5
    with pytest.raises(VideoError, match="more than 5 frames"):
        list(files.bounded([av.VideoFrame(4, 3)] * 6))
    with pytest.raises(VideoError, match="more than 60 pixels within 3 frames"):
        list(files.bounded([av.VideoFrame(7, 3)] * 3, 60))


def test_a_file_of_alpha_and_a_cover_decode_what_moves(tmp_path):
    """Of the streams of a file the one that moves is read, and VP9 with alpha by a decoder that reads it."""
    write_frames(tmp_path / "a.webm", yuv(waves(0, num_frames=3), "yuva420p"), codec="libvpx-vp9", times=[0, 40, 80])
    with files.open_video(tmp_path / "a.webm") as (_, video):
        decoder = files.decoder_of(video)
        assert (decoder.name, decoder.thread_count) == ("libvpx-vp9", 1)
    with files.open_video(encode_mp4(waves(0, num_frames=2), 10.0)) as (_, video):
        assert files.decoder_of(video) is video.codec_context
    picture = io.BytesIO()
    with av.open(picture, "w", format="mp4") as container:
        moving = container.add_stream("libx264", rate=10)
        cover = container.add_stream("mjpeg", rate=1)
        moving.height, moving.width, moving.pix_fmt = 32, 48, "yuv420p"
        cover.height, cover.width, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(image.reformat(format="yuvj420p")))
        for frame in yuv(waves(0, num_frames=3)):
            container.mux(moving.encode(frame))
        container.mux(cover.encode(None))
        container.mux(moving.encode(None))
    with files.open_video(picture.getvalue()) as (_, video):
        assert (video.codec_context.height, video.codec_context.width) == (32, 48)
