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
from dit_video.video import files
from dit_video.video.decode import decode, decode_frames, decode_window
from dit_video.video.encode import encode_mp4
from dit_video.video.files import PacketLog
from dit_video.video.pictures import VideoError
from dit_video.video.survey import _damaged, _frames, _longest, _numbers, _Seen, paced, survey


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


def seen_frames(
    times: list[int | None], sizes: list[tuple[int, int]] | None = None, keys: tuple[int, ...] = ()
) -> _Seen:
    """What is kept of frames shown at these times, which none is known to be corrupt."""
    seen = _Seen(Fraction(1))
    for time, (height, width) in zip(times, sizes or [(32, 48)] * len(times)):
        frame = VideoFrame(width, height, "yuv420p")
        frame.pts = time
        seen.add(frame)
    seen.key = [number in keys for number in range(len(times))]
    return seen


def packets(times: list[int | None], keys: tuple[int, ...] = (), **found: tuple[int, ...]) -> PacketLog:
    """A log of packets in the order of decoding; of `failed` and `corrupt` the positions in it."""
    flags = {name: [i in places for i in range(len(times))] for name, places in found.items()}
    no = [False] * len(times)
    log = PacketLog(times=times, keys=[i in keys for i in range(len(times))], corrupt=no, failed=no, **{})
    for name, values in flags.items():
        setattr(log, name, values)
    log.noticed = [0] * sum(map(sum, flags.values()))
    return log


# Three groups of a key frame and two that are shown before it and refer to what is before, too.
OPEN_GROUPS = [2, 0, 1, 5, 3, 4, 8, 6, 7]


@pytest.mark.parametrize(
    ("found", "damaged"),
    [
        ({}, ()),
        # All of the group, and what of the next is shown before its key frame.
        ({"failed": (1,)}, (0, 1, 2, 3, 4)),
        ({"failed": (7,)}, (6, 7, 8)),
        # What the demuxer found incomplete harms what is decoded after it.
        ({"corrupt": (4,)}, (3, 4, 6, 7)),
        ({"corrupt": (4, 5)}, (3, 4, 6, 7)),
        ({"corrupt": (5,)}, (4, 6, 7)),
        # A decoder that stumbles before that is not believed.
        ({"corrupt": (5,), "failed": (3,)}, (3, 4, 5, 6, 7)),
        ({"corrupt": (5,), "failed": (5,)}, (4, 6, 7)),
    ],
)
def test_damage_reaches_as_far_as_frames_refer_to_each_other(found, damaged):
    log = packets(OPEN_GROUPS, keys=(0, 3, 6), **found)
    assert tuple(np.flatnonzero(_damaged(log, seen_frames(list(range(9)))))) == damaged


def test_a_frame_that_the_decoder_calls_corrupt_damages_its_group():
    seen = seen_frames(list(range(9)))
    seen.corrupt[7] = True
    assert np.flatnonzero(_damaged(packets(OPEN_GROUPS, keys=(0, 3, 6)), seen)).tolist() == [6, 7, 8]


@pytest.mark.parametrize(("shown", "groups"), [(7, (0, 1, 2)), (8, (1, 2, 3)), (0, (0, 1, 2)), (39, (4,)), (99, (4,))])
def test_without_times_a_packet_s_frame_is_among_the_sixteen_after_the_next(shown, groups):
    seen = seen_frames([None] * 40, keys=(0, 8, 16, 24, 32))
    log = packets([None] * 40)
    log.noticed = [shown]
    assert {int(i) // 8 for i in np.flatnonzero(_damaged(log, seen))} == set(groups)
    seen.corrupt[12] = True
    log.noticed = []
    assert np.flatnonzero(_damaged(log, seen)).tolist() == list(range(8, 16))


def test_the_longest_stretch_is_of_one_size_whole_and_without_a_hole():
    small, large = (32, 48), (64, 96)
    none = np.zeros(16, bool)
    seen = seen_frames(list(range(16)), [small] * 4 + [large] * 6 + [small] * 6)
    chosen, reasons = _longest(seen, none, Fraction(1, 25))
    assert chosen.tolist() == list(range(4, 10))  # the first of two as long
    assert reasons == {"damaged": 0, "of another size": 10, "beyond what is left out": 0}
    damaged = none.copy()
    damaged[5] = True
    chosen, reasons = _longest(seen, damaged, Fraction(1, 25))
    assert chosen.tolist() == list(range(10, 16))
    assert reasons == {"damaged": 1, "of another size": 5, "beyond what is left out": 4}
    # One side alone is another size too.
    wide = seen_frames(list(range(5)), [small, small, (32, 96), (32, 96), (32, 96)])
    assert _longest(wide, np.zeros(5, bool), Fraction(1, 25))[0].tolist() == [2, 3, 4]
    times = [*range(5), *range(100, 107), *range(300, 304)]
    chosen, reasons = _longest(seen_frames(times), none, Fraction(1, 25))
    assert chosen.tolist() == list(range(5, 12))
    assert reasons == {"damaged": 0, "of another size": 0, "beyond a hole in time": 9}
    with pytest.raises(VideoError, match="damaged: every group"):
        _longest(seen, ~none, Fraction(1, 25))


def test_frames_have_the_numbers_of_their_packets_times_or_of_their_order():
    seen = seen_frames([1, 2, 4])
    numbers, total = _numbers(packets([4, 0, 2, 1, 3]), seen)
    assert (numbers.tolist(), total) == ([1, 2, 4], 5)
    for log in (packets([4, 0, 2, 3]), packets([None, 0, 2, 1, 4]), packets([0, 0, 1, 2, 4])):
        numbers, total = _numbers(log, seen)
        assert (numbers.tolist(), total) == ([0, 1, 2], 3)
    for times in ([1, 1, 4], [1, None, 4]):
        assert _numbers(packets([4, 0, 2, 1, 3]), seen_frames(times))[0].tolist() == [0, 1, 2]


def test_one_frame_is_said_to_be_one():
    assert [_frames(count) for count in (1, 2)] == ["1 frame", "2 frames"]


def test_a_video_of_one_or_two_frames_is_one():
    for number in (1, 2):
        data = encode_mp4(waves(0, num_frames=number), 8)
        found = survey(data)
        assert (found.positions.tolist(), found.rate, found.frames) == (list(range(number)), 8, None)
        assert paced(data) == (number, 8.0, None)


def test_an_animation_has_fewer_pixels_than_a_video_may():
    frame = VideoFrame(8192, 4096, "gray")
    most = files.MAX_ANIMATION_PIXELS // (8192 * 4096)
    assert sum(1 for _ in files.bounded([frame] * most, files.MAX_ANIMATION_PIXELS)) == most
    with pytest.raises(VideoError, match="decodes to more than 8589934592 pixels within 257 frames"):
        list(files.bounded([frame] * (most + 1), files.MAX_ANIMATION_PIXELS))
    assert sum(1 for _ in files.bounded([frame] * (most + 1))) == most + 1
