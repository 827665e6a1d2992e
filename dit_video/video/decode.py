"""Video decoding (mp4, GIF and others) with FFmpeg through PyAV, safe for untrusted files.

FFmpeg through PyAV, one thread per video (parallelism is across videos) and one VideoReformatter per call,
which keeps its swscale context. Frames are scaled while they are converted from YUV, so that only small
pictures ever become RGB.

swscale converts exactly only when asked to: without FULL_CHR_H_INT it computes one chroma value per pixel
pair and rounds down, which darkens a picture by 1-2 grey levels. All conversions here ask for it.

A file may be a stranger's: FFmpeg reads from it alone and never follows it to another file or address, and what
it decodes to is bounded by the constants below, whatever its header claims.
"""

import errno
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_SHRINK = Interpolation.AREA | _EXACT
_ENLARGE = Interpolation.BICUBIC | _EXACT
# The largest frame of H.264 and of 8K cinema, 106 MB in RGB; a decoder may hold 17 frames of half that.
MAX_FRAME_PIXELS = 8192 * 4320
# 4.8 hours at 30 frames a second. What is kept per packet is then some 100 MB at most.
MAX_FRAMES = 1 << 19
# All frames of a file together: 73 minutes of 1080p at 30 frames a second. A bomb of 8K frames ends within minutes.
MAX_VIDEO_PIXELS = 1 << 38
# Frames of one video in memory; stacking them takes as much again.
MAX_DECODED_BYTES = 2 << 30
# Slower rates would round to 0 in a re-encoded file; the clock of MPEG, which streams without a rate claim, is 90 kHz.
MIN_FPS, MAX_FPS = Fraction(1, 1000), 90_000
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Playlists (HLS, DASH, concat) name files and addresses to go on with; with no protocol allowed, none is opened.
_READ_OPTIONS = {"protocol_whitelist": "none", "max_pixels": str(MAX_FRAME_PIXELS)}
# The same matrix as swscale and as FFmpeg's stream header number it (AVCOL_SPC_BT709, AVCOL_SPC_SMPTE170M).
_MATRIX_TAG = {Colorspace.ITU709: 1, Colorspace.ITU601: 6}


class VideoError(ValueError):
    """A video cannot be read; the message is for the owner of the file."""


@contextmanager
def open_video(source: bytes | str | os.PathLike) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the first video stream in a file or its bytes.

    Raises:
        VideoError: not a media file, a still picture, sound only, or frames larger than MAX_FRAME_PIXELS; also
            wraps any decoding error raised inside the block.
    """
    with _opened(source) as file:
        try:
            with av.open(file, "r", metadata_errors="replace", options=_READ_OPTIONS) as container:
                stream = _moving_picture(container)
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": _READ_OPTIONS["max_pixels"]}
                _check_size(stream.codec_context.height, stream.codec_context.width, "its header says")
                yield container, stream
        except av.FFmpegError as error:
            # Of a file written within the block: no fault of the one that is read.
            if error.errno in NO_SPACE:
                raise OSError(error.errno, error.strerror) from error
            raise VideoError(f"not a readable video: {error.strerror}") from error


def _opened(source: bytes | str | os.PathLike) -> io.BytesIO | io.BufferedReader:
    """A file that FFmpeg reads through Python: it never sees a name, which could be that of a device or address."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not os.path.isfile(source):
        raise VideoError("not a regular file" if os.path.exists(source) else "no such file")
    try:
        return open(source, "rb")
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}") from error


def _check_size(height: int, width: int, why: str) -> None:
    if height * width > MAX_FRAME_PIXELS:
        raise VideoError(f"{why} {width} x {height} pixels a frame, more than {MAX_FRAME_PIXELS}; scale it down")


def _moving_picture(container: InputContainer) -> VideoStream:
    format_name = container.format.name
    if format_name.startswith("image2") or format_name.endswith("_pipe"):
        raise VideoError("a picture, not a video")
    if format_name == "tty":
        raise VideoError("text, not a video")
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise VideoError("sound only" if container.streams.audio else "no video stream")
    if streams[0].codec_context is None:
        raise VideoError("a codec that this FFmpeg cannot decode")
    return streams[0]


def frame_rate(stream: VideoStream) -> Fraction:
    """Frame rate in frames per second, as the container states it.

    Raises:
        VideoError: it states none, or one outside MIN_FPS to MAX_FPS.
    """
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError("states no frame rate")
    if not MIN_FPS <= rate <= MAX_FPS:
        raise VideoError(f"states {float(rate):.3g} frames a second, not {float(MIN_FPS)} to {MAX_FPS}; re-encode it")
    return rate


def decoded_frames(
    container: InputContainer, stream: VideoStream, packet_times: list[int | None]
) -> Iterator[VideoFrame]:
    """Decodes every frame; `packet_times` receives the presentation times of the packets they came from.

    Raises:
        VideoError: decoding fails, says after how many frames; or MAX_FRAMES or MAX_VIDEO_PIXELS is passed.
    """
    num_frames = 0
    try:
        for frame in _bounded(_frames(container.demux(stream), packet_times)):
            num_frames += 1
            yield frame
    except av.FFmpegError as error:
        raise VideoError(f"breaks off after frame {num_frames}: {error.strerror}") from error


def _frames(packets: Iterable[av.Packet], packet_times: list[int | None]) -> Iterator[VideoFrame]:
    for packet in counted(packets):
        if packet.size and not packet.is_discard:
            packet_times.append(packet.pts)
        yield from packet.decode()


def counted(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Passes packets on; raises after MAX_FRAMES of them."""
    for number, packet in enumerate(packets):
        if number > MAX_FRAMES:
            raise VideoError(f"has more than {MAX_FRAMES} packets; cut it")
        yield packet


def _bounded(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Passes frames on; raises where a file decodes to more than the limits."""
    num_pixels = 0
    for number, frame in enumerate(frames, 1):
        num_pixels += frame.height * frame.width
        if number > MAX_FRAMES:
            raise VideoError(f"has more than {MAX_FRAMES} frames; cut it")
        if num_pixels > MAX_VIDEO_PIXELS:
            raise VideoError(f"decodes to more than {MAX_VIDEO_PIXELS} pixels within {number} frames; cut it")
        yield frame


class _ToRGB:
    """Turns decoded frames of one video into RGB arrays, scaled to just cover `cover`, upright."""

    def __init__(self, cover: tuple[int, int] | None = None):
        self._cover = cover
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        turns = quarter_turns(frame)
        height, width = frame.height, frame.width
        if self._cover is not None:
            cover = self._cover if turns % 2 == 0 else self._cover[::-1]
            height, width = covering_size((height, width), cover)
            _check_size(height, width, f"to cover {cover[1]} x {cover[0]}, {frame.width} x {frame.height} becomes")
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=_interpolation(frame, (height, width)),
            threads=1,
        ).to_ndarray()
        return np.rot90(rgb, turns) if turns else rgb


def quarter_turns(frame: VideoFrame) -> int:
    """Rotation in counter-clockwise quarter turns that makes a frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


def _interpolation(frame: VideoFrame, size: tuple[int, int]) -> Interpolation:
    return _SHRINK if size[0] <= frame.height and size[1] <= frame.width else _ENLARGE


def covering_size(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) with the aspect of `size` that covers `cover`, rounded to pixels."""
    scale = max(cover[0] / size[0], cover[1] / size[1])
    return max(cover[0], round(size[0] * scale)), max(cover[1], round(size[1] * scale))


def decode(data: bytes) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    """Decodes all frames, upright, and the frame rate.

    Raises:
        VideoError: the bytes are not a video with at least one frame.
    """
    return _read(data)


def read_video(path: str | os.PathLike) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    """Reads all frames of a file, upright, and the frame rate.

    Raises:
        VideoError: the file is not a video with at least one frame; names the file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such video")
    try:
        return _read(path)
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error


def _read(source: bytes | str | os.PathLike) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    with open_video(source) as (container, stream):
        frames = _collected(map(_ToRGB(), decoded_frames(container, stream, [])))
        fps = float(frame_rate(stream))
    if not frames:
        raise VideoError("holds no frame")
    return np.stack(frames), fps


def _collected(decoded: Iterable[UInt8[np.ndarray, "H W 3"]]) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Collects frames, which must have one size and fit into memory together."""
    frames: list[np.ndarray] = []
    for frame in decoded:
        if frames and frame.shape != frames[0].shape:
            sizes = " x ".join(map(str, frames[0].shape[1::-1])), " x ".join(map(str, frame.shape[1::-1]))
            raise VideoError(f"its size changes from {sizes[0]} to {sizes[1]} at frame {len(frames)}; re-encode it")
        frames.append(frame)
        if len(frames) * frame.nbytes > MAX_DECODED_BYTES:
            raise VideoError(f"{len(frames)} frames take more than {MAX_DECODED_BYTES} bytes; cut it or scale it down")
    return frames


def count_frames(data: bytes) -> int:
    """Counts frames by packets, without decoding (exact for one frame per packet, as in mp4)."""
    with open_video(data) as (container, stream):
        packets = counted(container.demux(stream))
        return sum(1 for packet in packets if packet.size and not packet.is_discard)


def decode_window(
    data: bytes, *, start: int, num_frames: int, stride: int = 1, cover: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes frames start, start + stride, ... of a video, each scaled to just cover `cover` (height, width).

    Decoding begins at the last key frame at or before `start` and ends with the last chosen frame; only
    chosen frames are converted. Equal to `decode(data)[start : start + num_frames * stride : stride]` where
    nothing is scaled.

    Raises:
        VideoError: the bytes are no video, or it ends before the window does.
    """
    with open_video(data) as (container, stream):
        packets = [packet for packet in counted(container.demux(stream)) if packet.size]
        times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
        last = start + (num_frames - 1) * stride
        # Without a distinct time on every packet, frames can only be counted from the beginning.
        if len(set(times)) == len(packets) and last < len(times):
            chosen_times = set(times[start : last + 1 : stride])
            before = [i for i, packet in enumerate(packets) if packet.is_keyframe and (packet.pts or 0) <= times[start]]
            decoded = _flushed(stream, packets[before[-1] :] if before else packets)
            chosen = (frame for frame in decoded if frame.pts in chosen_times)
        else:
            indices = set(range(start, last + 1, stride))
            chosen = (frame for i, frame in enumerate(_flushed(stream, packets)) if i in indices)
        frames = _collected(map(_ToRGB(cover), itertools.islice(chosen, num_frames)))
        if len(frames) == num_frames:
            return np.stack(frames)
    raise VideoError(f"ends before frame {last}: {len(frames)} of {num_frames} frames of the clip decode")


def _flushed(stream: VideoStream, packets: Iterable[av.Packet]) -> Iterator[VideoFrame]:
    """Decodes packets and flushes the decoder at the end."""
    return _bounded(frame for packet in (*packets, None) for frame in stream.decode(packet))


def scale(video: UInt8[np.ndarray, "T H W 3"], cover: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    """Scales decoded frames so that they just cover `cover` (height, width): by area down, bicubic up."""
    if video.shape[1:3] == cover:
        return video
    to_rgb = _ToRGB(cover)
    return np.stack([to_rgb(VideoFrame.from_ndarray(frame, format="rgb24")) for frame in video])
