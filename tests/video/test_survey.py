"""Laws of what of a file is a video: whole, of one size, and counted."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from sample_videos import waves, write_frames, yuv

from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding
from dit_video.ingest.video_folder import open_videos
from dit_video.video.decode import decode, decode_frames, decode_window
from dit_video.video.pictures import VideoError
from dit_video.video.survey import survey


def longest(shapes: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
    return max(shapes, key=lambda shape: shape[0])


def changing(path, *shapes: tuple[int, int, int]) -> np.ndarray:
    """A WebM whose frames change size; returns the longest part as it was before."""
    with av.open(path, "w") as container:
        stream, time = container.add_stream("libvpx", rate=25), 0
        stream.height, stream.width, stream.pix_fmt = *shapes[0][1:], "yuv420p"
        encoders = [stream.codec_context]
        for _, height, width in shapes[1:]:
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), 25
            encoders.append(encoder)
        for (count, height, width), encoder in zip(shapes, encoders):
            for frame in [*yuv(waves(count, num_frames=count, height=height, width=width)), None]:
                if frame is not None:
                    frame.pts, frame.time_base = time, Fraction(1, 25)
                    time += 1
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    count, height, width = longest(shapes)
    return waves(count, num_frames=count, height=height, width=width)


@pytest.mark.parametrize("shapes", [[(12, 64, 96), (12, 96, 64)], [(3, 32, 48), (9, 64, 96), (4, 32, 48)]])
def test_a_change_of_size_ends_the_video_and_squeezes_nothing(tmp_path, shapes):
    expected = changing(tmp_path / "a.webm", *shapes)
    data = (tmp_path / "a.webm").read_bytes()
    video, fps = decode(data)
    assert fps == 25.0
    assert video.shape == expected.shape
    assert np.abs(video.astype(int) - expected).mean() < 12
    found = survey(tmp_path / "a.webm")
    assert found.left_out == sum(shape[0] for shape in shapes) - len(video)
    assert "of another size" in found.notes[0]
    np.testing.assert_array_equal(decode_frames(data, found.frames[1:3].tolist()), video[1:3])
    record = open_videos(tmp_path).examples[0]
    np.testing.assert_array_equal(record.frames, found.frames)
    entry = ingest([tmp_path], tmp_path / "set", held_out_fraction=0.0, transcoding=Transcoding(num_workers=1)).entries[
        0
    ]
    assert (entry.frames, entry.left_out, entry.height, entry.width) == (len(video), found.left_out, *video.shape[1:3])


def groups(path, *, num_groups: int = 5) -> tuple[np.ndarray, list[av.Packet]]:
    """An mp4 of groups of 8 frames, as it decodes, and its packets."""
    frames = yuv(waves(3, num_frames=8 * num_groups, height=64, width=64))
    write_frames(
        *(path, frames),
        codec="libx264",
        times=[40 * i for i in range(len(frames))],
        options={"x264-params": "keyint=8:min-keyint=8:scenecut=0:mbtree=0:crf=10"},
    )
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    return decode(path.read_bytes())[0], packets


def spoil(data: bytearray, packet: av.Packet) -> None:
    """Zeroes what follows the header of a packet's first NAL unit."""
    data[packet.pos + 5 : packet.pos + packet.size] = bytes(packet.size - 5)


@pytest.mark.parametrize(("group", "kept"), [(0, range(8, 40)), (2, range(16)), (1, range(16, 40)), (4, range(32))])
def test_a_damaged_group_of_pictures_is_left_out_and_counted(tmp_path, group, kept):
    whole, packets = groups(tmp_path / "a.mp4")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    spoil(data, packets[8 * group + 3])
    (tmp_path / "a.mp4").write_bytes(data)
    found = survey(tmp_path / "a.mp4")
    assert found.frames.tolist() == list(kept)
    assert found.left_out == 40 - len(kept)
    assert any(note.endswith("left out: damaged") for note in found.notes)
    np.testing.assert_array_equal(decode(bytes(data))[0], whole[kept.start : kept.stop])
    window = found.frames[5:8].tolist()
    np.testing.assert_array_equal(decode_frames(bytes(data), window), whole[window])
    with pytest.raises(VideoError, match=r"is damaged|ends before frame"):
        decode_window(bytes(data), start=8 * group, num_frames=8)
    entry = ingest([tmp_path], tmp_path / "set", held_out_fraction=0.0, transcoding=Transcoding(num_workers=1)).entries[
        0
    ]
    assert (entry.frames, entry.left_out, entry.stored) == (len(kept), 40 - len(kept), "encoded")
    assert "damaged" in entry.notes


def test_a_file_with_nothing_whole_is_refused_as_damaged(tmp_path):
    _, packets = groups(tmp_path / "a.mp4", num_groups=2)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    for packet in (packets[1], packets[9]):
        spoil(data, packet)
    with pytest.raises(VideoError, match="damaged: every group of pictures"):
        decode(bytes(data))


def test_a_plain_whole_file_is_all_its_frames_without_a_note(tmp_path):
    groups(tmp_path / "a.mp4")
    found = survey(tmp_path / "a.mp4")
    assert (found.frames, found.left_out, found.doubled, found.notes) == (None, 0, 0, ())
    assert found.plain
    assert (
        ingest([tmp_path], tmp_path / "set", held_out_fraction=0.0, transcoding=Transcoding(num_workers=1))
        .entries[0]
        .stored
        == "copied"
    )


def test_colours_that_change_within_a_file_are_honoured_frame_by_frame(tmp_path):
    """Fields of mixed material: bwdif leaves progressive frames as they are."""
    frames = [VideoFrame.from_ndarray(frame, format="rgb24") for frame in waves(1, num_frames=4)]
    write_frames(tmp_path / "a.mkv", [f.reformat(format="bgra") for f in frames], codec="ffv1", times=[0, 40, 80, 120])
    np.testing.assert_array_equal(decode((tmp_path / "a.mkv").read_bytes())[0], waves(1, num_frames=4))
