"""Laws of time: rates are those of the frames' times, and what is even is nearest to them."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence
from sample_videos import waves, write, write_frames, yuv

from dit_video.video.decode import decode, decode_frames, read_video
from dit_video.video.encode import encode_mp4, exact_rate, gif_delays, write_gif
from dit_video.video.survey import paced, survey
from dit_video.video.times import HOLE, at_rate, bounded, holes, nearest, pace, seconds

RATES = [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001), *map(Fraction, (1, 8, 24, 25, 30, 60))]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("clock", [100, 1000, 16000, 90000])
def test_a_rate_is_found_from_times_that_a_clock_rounds(rate, clock):
    tick = Fraction(1, clock)
    times = np.array([float(round(i / rate / tick) * tick) for i in range(40)])
    for stated in ([], [rate], [rate * 2]):
        found = pace(times, tick, stated)
        assert found.frames is None
        # A hundredth of a second over 40 frames of 60 does not tell 60 from 60 / 1.001.
        assert abs(found.rate / rate - 1) <= (Fraction(1, 990) if clock <= 1000 else 0)
    assert pace(times, tick, [rate]).rate == rate


@pytest.mark.parametrize("seed", range(6))
def test_uneven_times_become_the_nearest_frames_at_their_mean_rate(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.01, 0.05, size=50))
    times -= times[0]
    found = pace(times, Fraction(1, 90000), [])
    assert float(found.rate) == pytest.approx(49 / times[-1], rel=1e-4)
    grid = np.arange(50) / float(found.rate)
    np.testing.assert_array_equal(found.frames, np.abs(times[None] - grid[:, None]).argmin(axis=1))


def test_times_that_jitter_less_than_a_quarter_of_a_frame_are_even():
    jitter = np.random.default_rng(0).uniform(-0.006, 0.006, size=90)
    jitter[[0, -1]] = 0
    found = pace(np.arange(90) / 30 + jitter, Fraction(1, 90000), [])
    assert (found.rate, found.frames) == (30, None)


def test_of_two_frames_as_near_the_earlier_is_taken():
    assert nearest(np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.5, 1.6])).tolist() == [0, 1, 2]
    assert at_rate(60.0, 24.0, 5).tolist() == [0, 2, 5, 7, 10]
    assert at_rate(24.0, 60.0, 6).tolist() == [0, 0, 1, 1, 2, 2]
    # By a hair more than a rounding, or less: the nearer one.
    assert nearest(np.array([0.0, 1.0]), np.array([0.5 + 1e-8, 0.5 - 1e-8])).tolist() == [1, 0]
    assert at_rate(2.002, 1.0, 2).tolist() == [0, 2]
    assert at_rate(1.501, 1.0, 2).tolist() == [0, 2]
    assert at_rate(1.499, 1.0, 2).tolist() == [0, 1]
    assert at_rate(float(np.float32(24000 / 1001)), 24000 / 1001, 2000).tolist() == list(range(2000))


def test_a_hole_is_a_difference_of_more_than_ten_medians():
    times = np.cumsum([0, 1, 1, HOLE, 1, HOLE + 0.1, 1, 1])
    assert HOLE == 10
    assert holes(times).tolist() == [5]
    # Frames that share a time are no step.
    assert holes(np.array([0.0, 0, 0, 1, 1, 1, 2, 13])).tolist() == [7]
    assert holes(np.zeros(4)).tolist() == holes(np.zeros(1)).tolist() == []


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001)])
def test_a_rate_is_found_from_milliseconds_in_a_finer_clock(rate):
    """So are the times of what was once a WebM."""
    times = np.array([round(1000 * i / rate) / 1000 for i in range(300)])
    for stated in ([], [rate]):
        found = pace(times, Fraction(1, 90000), stated)
        assert (found.rate, found.frames) == (rate, None)


def test_where_times_begin_decides_nothing():
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.05, size=50))
    one, other = (pace(times + start, Fraction(1, 90000), []) for start in (0, 100))
    assert one.rate == other.rate
    np.testing.assert_array_equal(one.frames, other.frames)
    steady = np.arange(100) / 30
    assert pace(steady + 50, Fraction(1, 90000), []).rate == pace(steady, Fraction(1, 90000), []).rate == 30


def test_a_pace_has_its_slowest_and_fastest_step():
    found = pace(np.array([0, 0.1, 0.15, 0.4]), Fraction(1, 1000), [])
    assert (found.slowest, found.fastest) == (pytest.approx(4), pytest.approx(20))
    assert found.rate == Fraction(3000, 400)
    # A clock tells no step shorter than its tick.
    assert pace(np.array([0, 0, 0.5, 1.0]), Fraction(1, 1000), []).fastest == pytest.approx(1000)


def test_more_than_a_quarter_of_a_step_is_uneven():
    """The furthest of 101 frames at 10 a second is that share of a step away."""
    for share, even in ((0.24, True), (0.26, False)):
        times = np.arange(101) / 10
        times[50] += share / 10
        found = pace(times, Fraction(1, 90000), [])
        assert found.rate == 10
        assert (found.frames is None) == even


def test_seconds_are_those_since_the_first_frame_or_none():
    assert seconds([5, 5, 7, 15], Fraction(1, 10)).tolist() == [0, 0, 0.2, 1]
    assert seconds([2**62, 2**62 + 3], Fraction(1, 3)).tolist() == [0, 1]
    for times in ([], [4], [4, None], [4, 5, 4], [4, 4], [None, None]):
        assert seconds(times, Fraction(1, 10)) is None


@pytest.mark.parametrize(
    "rate", [Fraction(2**40 + 1, 2**36 + 3), Fraction(2**36 + 3, 2**40 + 1), Fraction(2**33 + 1, 9)]
)
def test_rates_of_many_digits_become_ones_of_thirty_bits(rate):
    near = bounded(rate)
    assert max(near.numerator, near.denominator) <= 1 << 30
    assert abs(near / rate - 1) < 1e-9
    for kept in (Fraction(24000, 1001), Fraction((1 << 30) - 1, 1 << 30), Fraction(1, 1 << 30)):
        assert bounded(kept) == kept
    # The denominators that fit are tried up to the last.
    assert bounded(Fraction(3 * 10**9 + 1, 10**9)) == Fraction(3 * 10**9 + 1, 10**9).limit_denominator((1 << 30) // 4)
    # Times that are one tick apart, of a clock of 2^31: refused as a rate, not as a fraction.
    assert bounded(Fraction(2**32 + 1, 2)) == 2**31


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_any_sequence_of_frame_times_comes_back_as_even_frames(tmp_path, name):
    rng = np.random.default_rng(len(name))
    video = np.arange(20, 240, 10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    times = np.cumsum(rng.integers(10, 80, size=len(video))).tolist()
    codec = "libvpx" if name.endswith("webm") else "libx264"
    write_frames(tmp_path / name, yuv(video), codec=codec, times=times)
    found = survey(tmp_path / name)
    shown = (np.array(times) - times[0]) / 1000
    rate = 21 / shown[-1]
    expected = np.abs(shown[None] - (np.arange(22) / rate)[:, None]).argmin(axis=1)
    assert float(found.rate) == pytest.approx(rate, rel=1e-3)
    data = (tmp_path / name).read_bytes()
    decoded, fps = decode(data)
    assert fps == float(found.rate)
    np.testing.assert_array_equal(np.rint((decoded.mean(axis=(1, 2, 3)) - 20) / 10).astype(int), expected)
    np.testing.assert_array_equal(decode_frames(data, found.frames.tolist()), decoded)
    num_frames, by_packets, frames = paced(data)
    assert (num_frames, by_packets) == (22, fps)
    np.testing.assert_array_equal(frames, found.frames)
    assert found.doubled == 22 - len(set(expected.tolist()))
    assert found.left_out == found.doubled
    assert found.notes[0].startswith("variable rate")


def test_of_a_file_with_a_hole_the_longest_stretch_is_the_video(tmp_path):
    times = [40 * i for i in range(6)] + [3000 + 40 * i for i in range(8)]
    write_frames(tmp_path / "a.mkv", yuv(waves(0, num_frames=14)), codec="ffv1", times=times)
    found = survey(tmp_path / "a.mkv")
    assert (found.rate, found.positions.tolist()) == (25, list(range(6, 14)))
    assert found.notes == ("6 frames left out: beyond a hole in time",)
    assert paced((tmp_path / "a.mkv").read_bytes())[0] == 8


@pytest.mark.parametrize("fps", [24000 / 1001, 29.97, 12.5, 1 / 7, 25, 60, Fraction(59000, 1999)])
def test_an_mp4_plays_at_the_rate_that_is_asked_for(fps, tmp_path):
    data = encode_mp4(waves(0, num_frames=5), fps)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        times = [packet.pts * stream.time_base for packet in container.demux(stream) if packet.size]
    assert sorted(times) == [i / exact_rate(fps) for i in range(5)]
    (tmp_path / "a.mp4").write_bytes(data)
    assert read_video(tmp_path / "a.mp4")[1] == pytest.approx(float(fps), rel=1e-7)


def test_equal_frames_are_encoded_to_equal_bytes():
    video = waves(1, num_frames=40, height=64, width=64)
    assert len({encode_mp4(video, 25) for _ in range(3)}) == 1


@pytest.mark.parametrize("fps", [2.5, 8, 15, 24000 / 1001, 24, 30, 33, 40, 50])
def test_a_gif_plays_at_its_rate_on_the_average_and_has_every_frame(fps):
    delays = gif_delays(100, fps)
    assert abs(sum(delays) - 10000 / fps) <= 0.5
    assert max(delays) - min(delays) <= 1
    assert min(delays) >= 2
    still = np.repeat(waves(2, num_frames=2), 5, axis=0)
    buffer = io.BytesIO()
    write_gif(buffer, still, fps)
    with Image.open(io.BytesIO(buffer.getvalue())) as gif:
        shown = [(frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(gif)]
    assert [duration for duration, _ in shown] == [10 * delay for delay in gif_delays(10, fps)]
    assert np.abs(np.stack([frame for _, frame in shown]).astype(float) - still).mean() < 12


def test_thirty_frames_a_second_are_three_three_and_four_hundredths():
    assert gif_delays(6, 30) == [3, 4, 3, 3, 4, 3]


def test_a_gif_of_more_than_fifty_frames_a_second_says_that_it_is_slower(caplog):
    assert gif_delays(4, 120) == [2] * 4
    write_gif(io.BytesIO(), waves(0, num_frames=2), 60)
    assert "a GIF plays 50 frames a second at most, 60 more slowly" in caplog.text


def test_a_container_without_times_has_the_rate_that_it_states(tmp_path):
    write(tmp_path / "a.avi", waves(2), codec="mpeg4", pixels="yuv420p", fps=12)
    assert read_video(tmp_path / "a.avi")[1] == 12.0
