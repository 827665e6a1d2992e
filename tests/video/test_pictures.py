"""Laws of pictures: what a file says of them is honoured as FFmpeg's own filters do, by every reader alike."""

import io
import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation
from PIL import Image
from sample_videos import filtered, waves, write_frames, yuv

from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding
from dit_video.ingest.video_folder import open_videos
from dit_video.video import tone
from dit_video.video.decode import decode, decode_window, read_video
from dit_video.video.encode import encode_mp4
from dit_video.video.pictures import Orientation, VideoError, covering_size, pictures_of
from dit_video.video.survey import survey
from dit_video.video.tone import Gamut, Transfer

EXACT = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Signed permutations: all there are.
MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if {abs(a), abs(b)} == {0, 1} and (abs(c), abs(d)) == (abs(b), abs(a))
]


# In steps of 1/50000 of the diagram and of 1/10000 cd/m2.
MASTERED = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L({},1)"


def with_matrix(data: bytes, matrix: tuple[float, ...]) -> bytes:
    """An mp4 with another display matrix [[a b 0] [c d 0] [0 0 1]]."""
    place = data.index(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = (round(value * 65536) for value in matrix)
    return data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]


def autorotate(matrix: tuple[int, ...], rotation: int) -> list[tuple[str, str]]:
    """The filters that FFmpeg's program inserts (fftools/ffmpeg_filter.c)."""
    a, _, c, d = matrix
    match -rotation % 360:
        case 90:
            return [("transpose", "cclock_flip" if c > 0 else "clock")]
        case 270:
            return [("transpose", "clock_flip" if c < 0 else "cclock")]
        case 180:
            return [(name, "") for name, flips in (("hflip", a < 0), ("vflip", d < 0)) if flips]
    return [("vflip", "")] if d < 0 else []


def stored(folder: Path, out: Path) -> dict[str, np.ndarray]:
    """What an ingest stores of a folder, decoded."""
    ingest([folder], out, held_out_fraction=0.0, transcoding=Transcoding(num_workers=1))
    return {record.key: decode(record.video)[0] for record in VideoSet(directory=str(out)).open(Split.TRAIN)}


def test_all_eight_orientations_are_what_ffmpeg_makes_of_them(tmp_path):
    assert len(MATRICES) == 8
    data = encode_mp4(waves(0, num_frames=3), 10.0)
    plain = [VideoFrame.from_ndarray(frame, format="rgb24") for frame in decode(data)[0]]
    folder = tmp_path / "in"
    folder.mkdir()
    expected = {}
    for number, matrix in enumerate(MATRICES):
        turned = with_matrix(data, matrix)
        with av.open(io.BytesIO(turned)) as container:
            rotation = next(container.decode(video=0)).rotation
        by_filters = filtered(plain, *autorotate(matrix, rotation))
        expected[f"{number}.mp4"] = np.stack([frame.to_ndarray(format="rgb24") for frame in by_filters])
        np.testing.assert_array_equal(decode(turned)[0], expected[f"{number}.mp4"], err_msg=str(matrix))
        assert survey(turned).filtered == (matrix != (1, 0, 0, 1))
        (folder / f"{number}.mp4").write_bytes(turned)
    assert len({video.tobytes() for video in expected.values()}) == 8
    opened = open_videos(folder)
    for record, size in zip(opened.examples, opened.sizes.tolist()):
        window = decode_window(record.video, start=1, num_frames=2)
        np.testing.assert_array_equal(window, expected[record.key][1:])
        assert list(window.shape[1:3]) == size
    for key, video in stored(folder, tmp_path / "set").items():
        assert video.shape == expected[key].shape
        assert np.abs(video.astype(int) - expected[key]).mean() < 5


@pytest.mark.parametrize("matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (1, 0, 0, 2), (1, 1, 0, 1)])
def test_another_display_matrix_is_refused(matrix):
    with pytest.raises(VideoError, match="its display matrix turns, shears or scales"):
        decode(with_matrix(encode_mp4(waves(0, num_frames=2), 10.0), matrix))


PATCHES = np.array([[180, 180, 180], [235, 60, 50], [40, 90, 200], [20, 120, 60], [0, 0, 0]])


def hdr_file(path: Path, signal: np.ndarray, transfer: ColorTrc) -> None:
    """A file of 10 bits whose frames are patches of these BT.2020 signals, side by side."""
    wide = np.repeat(np.rint(signal * 65535).astype(np.uint16)[None, :, None], 16, axis=0).repeat(16, axis=2)
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(wide.reshape(16, -1, 3)), format="rgb48le")
    frames = []
    for _ in range(3):
        flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        frames.append(picture.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range=1, interpolation=flags))
        frames[-1].color_trc, frames[-1].color_primaries = transfer, ColorPrimaries.BT2020
    fields = {"color_trc": transfer, "color_primaries": ColorPrimaries.BT2020, "colorspace": 9, "color_range": 1}
    write_frames(path, frames, codec="ffv1", times=[0, 100, 200], **fields)


def test_hdr_is_shown_as_its_sdr_scene(tmp_path):
    """SDR white is at 203 cd/m2 (BT.2408), so that what is not brighter keeps its SDR values, but for highlights."""
    light = (PATCHES / 255) ** 2.4 * 203 @ np.linalg.inv(tone._between(Gamut.BT2020, Gamut.BT709)).T
    hdr_file(tmp_path / "pq.mkv", tone.pq_encoded(light), ColorTrc.SMPTE2084)
    # The inverse of BT.2100's HLG: OOTF, then OETF.
    scene = light / 1000 * np.maximum((light / 1000) @ [0.2627, 0.678, 0.0593], 1e-9)[:, None] ** (0.2 / -1.2)
    log = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    hlg = np.where(scene <= 1 / 12, np.sqrt(3 * np.maximum(scene, 0)), log)
    hdr_file(tmp_path / "hlg.mkv", hlg, ColorTrc.ARIB_STD_B67)
    for name in ("pq", "hlg"):
        video, _ = read_video(tmp_path / f"{name}.mkv")
        middles = video[1, 8, 8::16].astype(int)
        assert np.abs(middles - PATCHES).max() <= 6, (name, middles)
        assert f"tone-mapped from {name.upper()}" in survey(tmp_path / f"{name}.mkv").notes[0]
    data = (tmp_path / "pq.mkv").read_bytes()
    np.testing.assert_array_equal(decode_window(data, start=1, num_frames=2), decode(data)[0][1:])
    for video in stored(tmp_path, tmp_path / "set").values():
        assert np.abs(video[1, 8, 8::16].astype(int) - PATCHES).max() <= 7


@pytest.mark.parametrize(
    ("said", "curve", "peak"),
    [
        (":max-cll=4000,300", ColorTrc.SMPTE2084, 4000),
        (":max-cll=4000,300", ColorTrc.ARIB_STD_B67, 1000),
        (f":{MASTERED.format(2_500_000)}", ColorTrc.SMPTE2084, 250),
        (f":{MASTERED.format(2_500_000)}:max-cll=600,300", ColorTrc.SMPTE2084, 600),
        (":max-cll=20000,300", ColorTrc.SMPTE2084, 10_000),
        (":max-cll=1,1", ColorTrc.SMPTE2084, 1),
    ],
)
def test_the_peak_of_pq_is_that_of_its_brightest_pixel_or_of_its_display(tmp_path, said, curve, peak):
    """As SMPTE 2086 and CTA-861.3 have them; HLG is shown at 1000 cd/m2 whatever it says."""
    frames = yuv(waves(0, num_frames=2, height=64, width=64), "yuv420p10le")
    options = {"x265-params": f"log-level=none{said}", "preset": "ultrafast"}
    fields = {"color_trc": curve, "color_primaries": ColorPrimaries.BT2020, "colorspace": 9, "color_range": 1}
    write_frames(tmp_path / "a.hevc", frames, codec="libx265", times=[0, 40], options=options, **fields)
    [kind] = survey(tmp_path / "a.hevc").kinds
    assert kind.peak == peak


def test_the_roll_off_rises_from_black_to_white():
    nits = np.geomspace(0.01, 4000, 200)
    rolled = tone.rolled_off(nits, 4000)
    assert (np.diff(rolled) > 0).all()
    assert rolled[-1] == pytest.approx(tone.SDR_WHITE, rel=1e-6)
    np.testing.assert_allclose(rolled[nits < 20], nits[nits < 20], rtol=1e-9)
    np.testing.assert_allclose(tone.pq_decoded(tone.pq_encoded(nits)), nits, rtol=1e-9)


def test_the_table_is_the_formula():
    signals = np.random.default_rng(0).random((64, 3))
    for transfer, gamut in (
        (Transfer.PQ, Gamut.BT2020),
        (Transfer.HLG, Gamut.BT2020),
        (Transfer.SDR, Gamut.DISPLAY_P3),
    ):
        linear = tone.to_linear(signals, transfer, gamut, 1000)
        np.testing.assert_allclose(tone.decoded(tone.coded(linear)), np.clip(linear, -3, 3), atol=1.5)
        white = tone.to_linear(np.full((1, 3), tone.pq_encoded(100.0)), Transfer.PQ, gamut, 1000)
        np.testing.assert_allclose(white, 100 / 203, rtol=0.05)
    assert tone.grey_levels()[[0, -1]].tolist() == [0, 255]


def test_wide_colours_become_those_of_bt709(tmp_path):
    frames = yuv(np.full((2, 16, 32, 3), (200, 60, 60), np.uint8), "yuv444p")
    write_frames(tmp_path / "p3.mkv", frames, codec="ffv1", times=[0, 40], color_primaries=ColorPrimaries.SMPTE432)
    # Of colour.py 0.4.4: Display P3 to BT.709, gamma 2.4.
    linear = (np.array([200, 60, 60]) / 255) ** 2.4 @ tone._between(Gamut.DISPLAY_P3, Gamut.BT709).T
    expected = 255 * np.clip(linear, 0, 1) ** (1 / 2.4)
    assert np.abs(read_video(tmp_path / "p3.mkv")[0][0, 8, 16] - expected).max() < 3
    assert survey(tmp_path / "p3.mkv").notes == ("mapped from Display P3 to BT.709",)
    assert survey(tmp_path / "p3.mkv").filtered
    assert not survey(tmp_path / "p3.mkv").plain


def test_full_range_is_the_same_picture(tmp_path):
    video = waves(3, num_frames=2)
    limited, full = yuv(video, "yuv444p"), []
    for frame in video:
        picture = VideoFrame.from_ndarray(frame, format="rgb24")
        full.append(picture.reformat(format="yuv444p", dst_color_range=ColorRange.JPEG))
    write_frames(tmp_path / "a.mkv", limited, codec="ffv1", times=[0, 40], color_range=ColorRange.MPEG)
    write_frames(tmp_path / "b.mkv", full, codec="ffv1", times=[0, 40], color_range=ColorRange.JPEG)
    a, b = (read_video(tmp_path / name)[0].astype(int) for name in ("a.mkv", "b.mkv"))
    assert np.abs(a - b).max() <= 4
    assert np.abs(b - video).max() <= 3


def test_alpha_is_over_black_whatever_is_hidden(tmp_path):
    video = waves(4, num_frames=3)
    alpha = np.zeros((*video.shape[:3], 1), np.uint8)
    alpha[:, :, 8:24], alpha[:, :, 24:] = 128, 255
    with_alpha = np.concatenate([video, alpha], axis=-1)
    frames = [VideoFrame.from_ndarray(frame, format="rgba").reformat(format="bgra") for frame in with_alpha]
    write_frames(tmp_path / "a.mkv", frames, codec="ffv1", times=[0, 40, 80])
    shown, _ = read_video(tmp_path / "a.mkv")
    assert np.abs(shown - video * (alpha / 255.0)).max() <= 1
    assert survey(tmp_path / "a.mkv").notes == ("composited over black",)
    opaque = [VideoFrame.from_ndarray(np.concatenate([f, f[..., :1] * 0 + 255], -1), format="rgba") for f in video]
    write_frames(tmp_path / "b.mkv", [f.reformat(format="bgra") for f in opaque], codec="ffv1", times=[0, 40, 80])
    np.testing.assert_array_equal(read_video(tmp_path / "b.mkv")[0], video)
    assert survey(tmp_path / "b.mkv").notes == ()


def test_alpha_of_vp9_is_seen(tmp_path):
    hidden = np.zeros((2, 32, 48, 4), np.uint8)
    hidden[..., 1] = 255
    hidden[:, :, 24:] = (200, 30, 30, 255)
    frames = [VideoFrame.from_ndarray(frame, format="rgba").reformat(format="yuva420p") for frame in hidden]
    write_frames(tmp_path / "a.webm", frames, codec="libvpx-vp9", times=[0, 40])
    data = (tmp_path / "a.webm").read_bytes()
    video, _ = decode(data)
    assert video[:, :, :20].max() < 12
    assert np.abs(video[0, 16, 40].astype(int) - (200, 30, 30)).max() < 12
    np.testing.assert_array_equal(decode_window(data, start=1, num_frames=1), video[1:])


def interlaced_file(path: Path, num_frames: int = 14) -> list[VideoFrame]:
    """Fields of a moving pattern, woven; returns the frames as they decode."""
    fields = waves(5, num_frames=2 * num_frames, width=64)
    woven = fields[::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    write_frames(
        *(path, yuv(woven)),
        codec="libx264",
        times=[40 * i for i in range(num_frames)],
        options={"x264-params": "tff=1:keyint=6:mbtree=0"},
    )
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    return frames


def test_fields_are_deinterlaced_as_ffmpeg_does_in_windows_too(tmp_path):
    frames = interlaced_file(tmp_path / "a.mp4")
    expected = filtered(frames, ("bwdif", "mode=send_frame:parity=auto:deint=interlaced"))
    data = (tmp_path / "a.mp4").read_bytes()
    video, fps = decode(data)
    assert (len(video), fps) == (14, 25.0)
    for frame, made in zip(expected, video):
        rgb = frame.reformat(format="rgb24", interpolation=EXACT).to_ndarray()
        assert np.abs(rgb.astype(int) - made).max() <= 1
    for start in (0, 5, 6, 7, 12):
        np.testing.assert_array_equal(decode_window(data, start=start, num_frames=2), video[start : start + 2])
    assert survey(tmp_path / "a.mp4").notes == ("deinterlaced",)
    assert not survey(tmp_path / "a.mp4").filtered
    assert not survey(tmp_path / "a.mp4").plain
    kept = stored(tmp_path, tmp_path / "set")["a.mp4"]
    assert np.abs(kept.astype(int) - video).mean() < 4


def test_pixels_become_square(tmp_path):
    write_frames(
        *(tmp_path / "a.mp4", yuv(waves(6, num_frames=2))),
        codec="libx264",
        times=[0, 40],
        sample_aspect_ratio=Fraction(4, 3),
    )
    assert read_video(tmp_path / "a.mp4")[0].shape == (2, 32, 64, 3)
    assert open_videos(tmp_path).sizes.tolist() == [[32, 64]]
    assert stored(tmp_path, tmp_path / "set")["a.mp4"].shape == (2, 32, 64, 3)


@pytest.mark.parametrize("suffix", ["gif", "avif"])
def test_a_still_is_a_picture_and_an_animation_a_video(tmp_path, suffix):
    pictures = [Image.fromarray(frame) for frame in waves(7, num_frames=4)]
    pictures[0].save(tmp_path / f"still.{suffix}")
    pictures[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=pictures[1:], duration=40)
    with pytest.raises(VideoError, match="a picture, not a video"):
        survey(tmp_path / f"still.{suffix}")
    video, fps = read_video(tmp_path / f"moving.{suffix}")
    assert (len(video), fps) == (4, 25.0)


def test_an_animated_webp_is_refused_by_name(tmp_path):
    pictures = [Image.fromarray(frame) for frame in waves(7, num_frames=3)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=40)
    with pytest.raises(VideoError, match="an animated WebP, which this FFmpeg cannot read; convert it"):
        survey(tmp_path / "a.webp")


def test_an_orientation_is_said_in_words_and_swaps_sizes():
    words = {
        (False, False, False): "upright",
        (False, True, False): "mirrored up-down",
        (False, False, True): "mirrored",
        (False, True, True): "turned upside down",
        (True, False, False): "turned left and mirrored",
        (True, True, False): "turned left",
        (True, False, True): "turned right",
        (True, True, True): "turned right and mirrored",
    }
    picture = waves(0, 1, 4, 6)[0]
    for flags, word in words.items():
        orientation = Orientation(*flags)
        assert str(orientation) == word
        assert orientation.swapped((4, 6)) == ((6, 4) if flags[0] else (4, 6))
        assert orientation.upright(picture).shape[:2] == orientation.swapped((4, 6))
    np.testing.assert_array_equal(Orientation(True, True, False).upright(picture), np.rot90(picture))
    np.testing.assert_array_equal(Orientation(True, False, True).upright(picture), np.rot90(picture, -1))


@pytest.mark.parametrize("matrix", range(18))
def test_matrices_that_swscale_would_take_for_another_are_refused(matrix):
    frame = VideoFrame(48, 32, "yuv420p")
    frame.colorspace = matrix
    if matrix in (8, *range(10, 18)):
        with pytest.raises(VideoError, match=r"its colours are .*, which this FFmpeg cannot turn into RGB"):
            pictures_of(frame)
    else:
        assert pictures_of(frame).plain


def test_curves_that_are_no_display_s_are_refused():
    frame = VideoFrame(48, 32, "yuv420p")
    for curve in (ColorTrc.LINEAR, ColorTrc.LOG, ColorTrc.LOG_SQRT, ColorTrc.SMPTE428):
        frame.color_trc = curve
        with pytest.raises(VideoError, match=r"its transfer function is .*; re-encode it as BT\.709"):
            pictures_of(frame)


def test_a_frame_says_its_bits_its_range_and_its_size():
    deep = pictures_of(VideoFrame(48, 32, "yuv420p10le"), Fraction(3, 2))
    assert (deep.bit_depth, deep.alpha, deep.full_range, deep.plain) == (10, False, False, False)
    assert (deep.size, deep.peak) == ((32, 72), 1000)
    assert pictures_of(VideoFrame(1, 32, "gray"), Fraction(1, 9)).size == (32, 1)
    clear = pictures_of(VideoFrame(48, 32, "rgba"))
    assert (clear.bit_depth, clear.alpha, clear.filtered, clear.plain) == (8, True, True, False)
    full = VideoFrame(48, 32, "yuv420p")
    full.color_range = ColorRange.JPEG
    assert pictures_of(full).full_range
    wide = VideoFrame(48, 32, "yuv420p")
    wide.color_primaries = ColorPrimaries.SMPTE431
    assert (pictures_of(wide).gamut, pictures_of(wide).filtered) == (Gamut.DCI_P3, True)


def test_the_covering_size_is_the_smallest_of_the_aspect():
    assert covering_size((32, 48), (16, 16)) == (16, 24)
    assert covering_size((48, 32), (16, 16)) == (24, 16)
    assert covering_size((32, 48), (64, 64)) == (64, 96)
    assert covering_size((32, 48), (8, 24)) == (16, 24)
    assert covering_size((1000, 3), (2, 2)) == (667, 2)
