"""Ways of making a video, with a maker that continues what is known of a ramp: where frames go, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from toys import SMALL_VAE

from dit_video.run.typed_video import read_at, read_mask
from dit_video.run.video_modes import (
    Asked,
    Lengths,
    Window,
    connection,
    extension,
    extension_before,
    from_nothing,
    painted,
    pattern_of,
)
from dit_video.video.encode import encode_mp4, stream_mp4

# Clips of 13 frames are four latent frames: 1 + 4 + 4 + 4.
LENGTHS = Lengths(SMALL_VAE, 13)


def ramp(first: int, num_frames: int) -> np.ndarray:
    values = np.arange(first, first + num_frames, dtype=np.uint8)
    return np.broadcast_to(values[None, :, None, None, None], (2, num_frames, 8, 8, 3))


def numbers(clips: np.ndarray) -> list[int]:
    assert clips.shape[0] == 2
    np.testing.assert_array_equal(clips, np.broadcast_to(clips[:1, :, :1, :1, :1], clips.shape))
    return clips[0, :, 0, 0, 0].tolist()


class Ramps:
    """Continues the ramp that the known frames are part of; knows how it was called."""

    def __init__(self):
        self.windows: list[tuple[list[bool], int, int]] = []

    def __call__(self, window: Window, num_frames: int, piece: int) -> np.ndarray:
        if window.video is None or window.known is None:
            self.windows.append(([], num_frames, piece))
            return ramp(0, num_frames)
        assert window.video.shape[1] == num_frames == 1 + 4 * (len(window.known) - 1)
        self.windows.append((window.known.tolist(), num_frames, piece))
        known = np.concatenate([window.known[:1], window.known[1:].repeat(4)])
        at = np.flatnonzero(known)
        values = window.video[0, :, 0, 0, 0].astype(int)
        starts = values[at] - at
        assert len(set(starts)) == 1, "what is known is one ramp"
        return ramp(int(starts[0]), num_frames)


@pytest.mark.parametrize("num_new", [1, 4, 8, 11, 12, 32])
@pytest.mark.parametrize("available", [1, 6, 30])
def test_an_extension_goes_on_where_the_video_ends(num_new, available):
    make = Ramps()
    made = list(extension(LENGTHS, ramp(100, available), num_new, make, print))
    assert numbers(np.concatenate(made, axis=1)) == list(range(100 + available, 100 + available + num_new))
    assert all(num_frames <= 13 for _, num_frames, _ in make.windows)
    pieces = [piece for _, _, piece in make.windows]
    assert pieces == list(range(1, len(made) + 1)), "another noise in every window"
    # What fits into a window with one known frame is made in one.
    assert len(made) == 1 if num_new <= 12 else len(made) > 1


@pytest.mark.parametrize("num_new", [1, 5, 9, 10, 30])
@pytest.mark.parametrize("available", [4, 7, 30])
def test_an_extension_before_ends_where_the_video_begins(num_new, available):
    make = Ramps()
    made = extension_before(LENGTHS, ramp(100, available), num_new, make, print)
    assert numbers(made) == list(range(100 - num_new, 100))
    assert all(not known[0] and known[-1] and num_frames <= 13 for known, num_frames, _ in make.windows)


def test_a_video_of_any_length_is_a_clip_and_its_extension():
    said: list[str] = []
    parts = list(from_nothing(LENGTHS, 40, Ramps(), said.append))
    assert numbers(np.concatenate(parts, axis=1)) == list(range(40))
    assert said == [
        "--num_frames: the last 5 of 13 frames are known (1 + 4k); 4 windows of 13 frames, each from the last 5"
    ]


@pytest.mark.parametrize("between", [4, 8])
def test_a_connection_lies_between_two_clips(between):
    make = Ramps()
    made = connection(LENGTHS, ramp(20, 9), ramp(29 + between, 9), between, make, print)
    assert numbers(made) == list(range(29, 29 + between))
    ((known, _, _),) = make.windows
    assert known[0]
    assert known[-1]
    assert known.count(False) == between // 4


def test_numbers_that_cannot_be_are_named():
    clip, make = ramp(0, 9), Ramps()
    for between, message in (
        (6, "--between=6: must be a multiple of 4, the frames of a latent frame; nearest are 4 and 8"),
        (12, "--between=12: clips of this run have 13 frames, of which both ends are known, so that 8 at most lie"),
    ):
        with pytest.raises(ValueError, match=message):
            connection(LENGTHS, clip, clip, between, make, print)
    with pytest.raises(ValueError, match=r"--extend=-9: the video has 3 frames, but .* by groups of 4"):
        extension_before(LENGTHS, ramp(0, 3), 9, make, print)
    with pytest.raises(ValueError, match="--extend: clips of this run have 1 frames, one latent frame"):
        list(extension(Lengths(SMALL_VAE, 1), clip, 4, make, print))
    assert not make.windows, "before anything is made"


def test_options_that_do_not_go_together_are_named(tmp_path):
    video = tmp_path / "a.mp4"
    for asked, message in (
        (Asked(extend=4), "--extend=4: of which video"),
        (Asked(video=video), "say what is to be made of it: one of --extend, --to, --loop, --strength, --mask"),
        (Asked(video=video, extend=4, loop=True), "not --extend and --loop together"),
        (Asked(video=video, extend=0), "--extend=0: must be frames"),
        (Asked(video=video, to=video), "--to and --between: .* type both"),
        (Asked(video=video, to=video, between=-2), "--between=-2: two clips that are -2 frames apart overlap"),
        (Asked(video=video, strength=1.5), r"--strength=1\.5: must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            asked.check()
    Asked().check()
    Asked(loop=True).check()
    patterns = [pattern_of(asked) for asked in (Asked(extend=4), Asked(extend=-4), Asked(loop=True), Asked(mask=video))]
    assert patterns == ["first", "last", "ends", "region"]
    assert pattern_of(Asked(strength=0.5)) is None


def test_cells_outside_of_a_mask_are_known_as_far_as_patches_go():
    outside, seen = np.ones((5, 32, 32), bool), []
    outside[3, 3, 30] = False

    def make(window: Window, num_frames: int, piece: int) -> np.ndarray:
        seen.append(window.known)
        return window.video

    painted(Lengths(SMALL_VAE, 5), np.zeros((1, 5, 32, 32, 3), np.uint8), outside, (1, 2, 2), make)
    (known,) = seen
    assert known.shape == (2, 4, 4)
    # The one pixel is in the second latent frame and the last column of cells, whose patch is two by two.
    expected = np.ones((2, 4, 4), bool)
    expected[1, :2, 2:] = False
    np.testing.assert_array_equal(known, expected)


@pytest.fixture
def typed(tmp_path):
    video = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[:, None, None, None], (20, 24, 32, 3))
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.ascontiguousarray(video), 20.0))
    return tmp_path / "a.mp4"


def test_a_typed_video_has_the_rate_and_size_of_the_run_and_that_is_said(typed):
    said: list[str] = []
    video, own_size = read_at("--video", typed, 10.0, (16, 16), said.append)
    assert video.shape == (10, 16, 16, 3)
    assert own_size == (24, 32)
    np.testing.assert_allclose(video[:, 8, 8, 0], np.arange(0, 200, 20), atol=3)
    assert said == [f"--video={typed}: 20 frames of (24, 32) at 20 a second, taken as 10 of (16, 16) at 10"]
    with pytest.raises(ValueError, match=r"--to=.*none.mp4: no such video"):
        read_at("--to", typed.with_name("none.mp4"), 10.0, (16, 16), print)


def test_a_mask_is_as_large_and_as_long_as_its_video(typed, tmp_path):
    pixels = np.zeros((24, 32), np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 10.0, 10, (24, 32), (24, 32))
    assert mask.shape == (10, 24, 32)
    np.testing.assert_array_equal(mask, np.broadcast_to(pixels > 127, mask.shape))
    Image.fromarray(pixels[:20]).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"is of \(20, 32\) pixels, the video of \(24, 32\); make it as large"):
        read_mask(tmp_path / "small.png", 10.0, 10, (24, 32), (24, 32))
    with pytest.raises(ValueError, match="has 10 frames, the video 11; make it as long"):
        read_mask(typed, 10.0, 11, (24, 32), (24, 32))


def test_an_mp4_that_is_written_in_parts_is_that_of_the_whole(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (7, 15, 16, 3), np.uint8)
    assert stream_mp4(tmp_path / "parts.mp4", [video[:3], video[3:4], video[4:]], 8.0) == 7
    assert (tmp_path / "parts.mp4").read_bytes() == encode_mp4(video, 8.0)
