"""Laws of cutting clips, on frames whose pixels name their row, column and number."""

import numpy as np
import pytest

from dit_video.data.record import Clip, Examples, Record
from dit_video.data.transforms import ClipTransform, clip_rates, pace_note, said_rate, usable
from dit_video.video.encode import encode_mp4


def marked(num_frames: int, height: int, width: int) -> np.ndarray:
    """Channels are row, column and frame."""
    frame, row, column = np.mgrid[:num_frames, :height, :width]
    return np.stack([row, column, frame], axis=-1).astype(np.uint8)


def record(num_frames: int, height: int = 8, width: int = 8, **fields) -> Record:
    video = marked(num_frames, height, width)
    return Record(**{"key": "a", "video": video, "num_frames": num_frames, "fps": 12.0} | fields)


def drawn(transform: ClipTransform, of: Record, num: int) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [transform(of, rng) for _ in range(num)]


class Lengths(Examples):
    """Videos of so many frames each; of None, moments."""

    def __init__(self, *lengths: int, moments: bool = False):
        self._lengths, self._moments = lengths, moments

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Record:
        return record(self._lengths[index], key=str(index))

    @property
    def num_frames(self) -> np.ndarray | None:
        return None if self._moments else np.array(self._lengths, int)


@pytest.mark.parametrize(("num_frames", "stride", "span"), [(1, 1, 1), (1, 5, 1), (4, 1, 4), (4, 2, 7), (2, 3, 4)])
def test_a_clip_reaches_over_its_first_frame_and_a_stride_for_each_other(num_frames, stride, span):
    transform = ClipTransform(num_frames=num_frames, stride=stride, size=(8, 8))
    assert transform.span() == span
    lengths = np.array([0, span - 1, span, span + 1, span + 7])
    np.testing.assert_array_equal(transform.num_starts(lengths), [0, 0, 1, 2, 8])
    clip = transform.at(record(span + 3), 2, np.random.default_rng(0))
    np.testing.assert_array_equal(clip.video[:, 0, 0, 2], 2 + stride * np.arange(num_frames))


def test_a_clip_begins_at_every_frame_that_leaves_room_for_it():
    transform = ClipTransform(num_frames=3, stride=2, size=(8, 8))
    clips = drawn(transform, record(8), 60)
    assert {clip.start for clip in clips} == {0, 1, 2, 3}
    assert all(clip.video[0, 0, 0, 2] == clip.start for clip in clips)
    assert drawn(transform, record(5), 1)[0].start == 0
    with pytest.raises(ValueError, match="record 'a': 4 frames, but a clip reaches over 5"):
        drawn(transform, record(4), 1)


def test_a_clip_carries_what_its_record_says():
    clip = ClipTransform(num_frames=2, stride=3, size=(8, 8)).at(
        record(9, label=4, caption="up"), 5, np.random.default_rng(0)
    )
    assert (clip.key, clip.start, clip.label, clip.caption, clip.fps) == ("a", 5, 4, "up", 4.0)
    assert clip.video.flags.c_contiguous


def test_moments_pass_through_whole_with_their_start_and_rate():
    moments = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    stored = Record(key="m", moments=moments, fps=6.0, start=3, label=1)
    clip = ClipTransform(num_frames=5, stride=2)(stored, np.random.default_rng(0))
    assert clip.moments is moments
    assert (clip.video, clip.start, clip.fps, clip.label) == (None, 3, 6.0, 1)


@pytest.mark.parametrize(
    ("height", "width", "size", "row", "column"),
    [(8, 20, (8, 8), 0, 6), (20, 8, (8, 8), 6, 0), (8, 13, (8, 8), 0, 2), (9, 6, (4, 6), 2, 0), (8, 8, (8, 8), 0, 0)],
)
def test_the_centre_is_cropped(height, width, size, row, column):
    clip = ClipTransform(num_frames=2, size=size).at(record(2, height, width), 0, np.random.default_rng(0))
    np.testing.assert_array_equal(
        clip.video, marked(2, height, width)[:, row : row + size[0], column : column + size[1]]
    )


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(8, 11, {0}, {0, 1, 2, 3}), (10, 8, {0, 1, 2}, {0})])
def test_random_crops_reach_every_place(height, width, rows, columns):
    transform = ClipTransform(num_frames=1, size=(8, 8), random_crop=True)
    clips = drawn(transform, record(1, height, width), 60)
    assert {int(clip.video[0, 0, 0, 0]) for clip in clips} == rows
    assert {int(clip.video[0, 0, 0, 1]) for clip in clips} == columns
    assert all(clip.video.shape == (1, 8, 8, 3) for clip in clips)


@pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 0, 0), (0.25, 70, 130), (1.0, 400, 400)])
def test_a_share_of_clips_is_mirrored_left_to_right(rate, least, most):
    """Within five standard errors. Frames and rows stay in order."""
    transform = ClipTransform(num_frames=2, size=(8, 8), flip_rate=rate)
    as_stored, num_mirrored = marked(2, 8, 8), 0
    for clip in drawn(transform, record(2), 400):
        mirrored = clip.video[0, 0, 0, 1] == 7
        num_mirrored += mirrored
        np.testing.assert_array_equal(clip.video, as_stored[:, :, ::-1] if mirrored else as_stored)
    assert least <= num_mirrored <= most


def test_a_video_is_scaled_to_cover_the_size_encoded_or_decoded():
    flat = np.broadcast_to(np.array([200, 100, 50], np.uint8), (6, 32, 64, 3))
    for video in (flat, encode_mp4(flat, 12.0)):
        of = Record(key="a", video=video, num_frames=6, fps=12.0)
        clip = ClipTransform(num_frames=2, stride=4, size=(16, 16)).at(of, 1, np.random.default_rng(0))
        assert clip.video.shape == (2, 16, 16, 3)
        assert np.abs(clip.video.astype(int) - flat[0, 0, 0]).max() <= 4


def test_a_video_that_ends_early_names_its_record():
    """Whoever counted its frames was wrong; or it begins too late."""
    transform = ClipTransform(num_frames=3, stride=2, size=(8, 8))
    rng = np.random.default_rng(0)
    assert transform.at(record(7), 2, rng).video.shape[0] == 3
    for start in (3, 6, 7):
        with pytest.raises(ValueError, match="record 'a': ends after 7 frames"):
            transform.at(record(7), start, rng)
    encoded = Record(key="e", video=encode_mp4(marked(7, 16, 16), 12.0), num_frames=7, fps=12.0)
    with pytest.raises(ValueError, match="record 'e': ends before frame 7"):
        transform.at(encoded, 3, rng)


def test_records_that_are_long_enough_keep_their_order():
    transform = ClipTransform(num_frames=3, stride=2, size=(8, 8))
    left = usable(Lengths(5, 4, 9, 0, 5), transform)
    assert (len(left), left.num_too_short) == (3, 2)
    assert [of.key for of in left] == ["0", "2", "4"]
    np.testing.assert_array_equal(left.num_frames, [5, 9, 5])
    with pytest.raises(ValueError, match="takes 5 frames, but the longest of 2 videos has 4"):
        usable(Lengths(4, 3), transform)
    with pytest.raises(ValueError, match="the longest of 0 videos has 0"):
        usable(Lengths(), transform)
    moments = usable(Lengths(1, 1, moments=True), transform)
    assert (len(moments), moments.num_too_short, moments.num_frames) == (2, 0, None)


def test_a_card_says_how_clips_are_cut():
    assert ClipTransform().protocol == {"stride": 1, "size": [64, 64], "crop": "centre", "flip_rate": 0.0}
    cut = ClipTransform(num_frames=3, stride=2, size=(4, 6), random_crop=True, flip_rate=0.5)
    assert cut.protocol == {"stride": 2, "size": [4, 6], "crop": "random", "flip_rate": 0.5}
    assert ClipTransform().num_frames == 17


def test_crop_and_mirroring_are_drawn_where_they_can_differ():
    assert not ClipTransform().draws
    assert ClipTransform(random_crop=True).draws
    assert ClipTransform(flip_rate=0.01).draws


def test_least_and_largest_values_are_taken_and_those_beyond_refused():
    ClipTransform(num_frames=1, stride=1, size=(1, 1), flip_rate=0.0)
    ClipTransform(flip_rate=1.0)
    for field, value in (
        ("num_frames", 0),
        ("stride", 0),
        ("size", (0, 4)),
        ("size", (4, 0)),
        ("flip_rate", -0.01),
        ("flip_rate", 1.01),
    ):
        with pytest.raises(ValueError, match=f"ClipTransform.{field}="):
            ClipTransform(**{field: value})


def test_a_clip_has_the_rate_that_is_asked_for_from_frames_nearest_in_time():
    for fps, wanted, num_frames in ((60.0, 24.0, 5), (24.0, 60.0, 7), (25.0, 25.0, 4), (29.97, 10.0, 3)):
        transform = ClipTransform(num_frames=num_frames, fps=wanted, size=(8, 8))
        of = record(40, fps=fps)
        clip = transform.at(of, 2, np.random.default_rng(0))
        places = (clip.video[:, 0, 0, 2] - 2) / fps
        assert np.abs(places - np.arange(num_frames) / wanted).max() <= 0.5 / fps + 1e-5
        assert clip.fps == wanted
        span = transform.span(fps)
        assert span == int(clip.video[-1, 0, 0, 2]) - 2 + 1
        lengths = np.array([span - 1, span, span + 3])
        np.testing.assert_array_equal(transform.num_starts(lengths, np.full(3, fps)), [0, 1, 4])


def test_what_is_doubled_and_left_out_is_counted():
    assert ClipTransform(num_frames=5, fps=24.0).resampled(60.0) == (0, 6)
    assert ClipTransform(num_frames=6, fps=60.0).resampled(24.0) == (3, 0)
    assert ClipTransform(num_frames=6, fps=24.0).resampled(24.0) == (0, 0)


class Rates(Lengths):
    """Videos of 40 frames at these rates."""

    def __init__(self, *rates: float):
        super().__init__(*[40] * len(rates))
        self._rates = rates

    def __getitem__(self, index: int) -> Record:
        return record(40, key=str(index), fps=self._rates[index])

    @property
    def fps(self) -> np.ndarray:
        return np.array(self._rates)


def test_the_rates_of_clips_are_those_of_all():
    mixed = Rates(24.0, 60.0, 60.0)
    assert clip_rates(mixed, ClipTransform(num_frames=2)) == (60.0, 24.0)
    assert clip_rates(mixed, ClipTransform(num_frames=2, stride=2)) == (30.0, 12.0)
    assert clip_rates(mixed, ClipTransform(num_frames=2, fps=12.0)) == (12.0,)
    assert (said_rate((60.0, 24.0)), said_rate((12.0,))) == ([24.0, 60.0], 12.0)
    # Of 0.7 seconds only slow ones are long enough.
    assert len(usable(mixed, ClipTransform(num_frames=9, fps=8.0, size=(8, 8)))) == 1
    assert "24 to 60 frames a second" in pace_note(mixed, ClipTransform(num_frames=2))
    assert "resampled to 12" in pace_note(mixed, ClipTransform(num_frames=2, fps=12.0))
    assert pace_note(Rates(24.0, 24.0), ClipTransform(num_frames=2)) == ""


def test_a_rate_and_a_stride_exclude_each_other():
    with pytest.raises(ValueError, match=r"ClipTransform\.fps=8\.0 and stride=2: give one of them"):
        ClipTransform(fps=8.0, stride=2)
    with pytest.raises(ValueError, match=r"ClipTransform\.fps=0\.0: must be positive"):
        ClipTransform(fps=0.0)
    with pytest.raises(ValueError, match="the source does not say the rates"):
        usable(Lengths(40), ClipTransform(num_frames=2, fps=8.0))


def test_how_much_a_clip_takes_is_said_in_frames_or_seconds():
    assert ClipTransform(num_frames=3, stride=4).reach == "9 frames"
    assert ClipTransform(num_frames=17, fps=8.0).reach == "2 seconds"
    with pytest.raises(ValueError, match="takes 4 seconds, but the longest of 1 videos has 40 frames"):
        usable(Rates(60.0), ClipTransform(num_frames=9, fps=2.0, size=(8, 8)))


def test_a_card_says_that_clips_were_resampled():
    assert ClipTransform(fps=8.0).protocol["resampled"] == "to 8 fps, nearest frame"
    assert "resampled" not in ClipTransform().protocol


def test_chosen_frames_of_a_file_are_its_video():
    video = np.broadcast_to(np.arange(0, 250, 10, dtype=np.uint8)[:, None, None, None], (25, 16, 16, 3))
    data = encode_mp4(video, 10.0)
    of = Record(key="a", video=data, num_frames=5, fps=10.0, frames=np.array([3, 3, 7, 8, 20]))
    clip = ClipTransform(num_frames=3, stride=2, size=(16, 16)).at(of, 0, np.random.default_rng(0))
    assert np.rint(clip.video.mean(axis=(1, 2, 3)) / 10).tolist() == [3, 7, 20]
    with pytest.raises(ValueError, match="record 'a': ends before frame 6"):
        ClipTransform(num_frames=3, stride=2, size=(16, 16)).at(of, 2, np.random.default_rng(0))
