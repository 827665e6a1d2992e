"""Video encoding: H.264 mp4, GIF, and grids of clips."""

import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from dit_video.video.pictures import VideoError, interpolation
from dit_video.video.times import bounded

_LOG = logging.getLogger(__name__)
# The same matrix as swscale and as FFmpeg's stream header number it (AVCOL_SPC_BT709, AVCOL_SPC_SMPTE170M).
_MATRIX_TAG = {Colorspace.ITU709: 1, Colorspace.ITU601: 6}
# A GIF counts hundredths of a second; players show a delay of less than two of them as ten.
_GIF_TICKS, MAX_GIF_FPS = 100, 50


def encode_frames(
    file: io.BytesIO | str | os.PathLike,
    frames: Iterable[VideoFrame],
    fps: float | int | Fraction,
    *,
    size: tuple[int, int],
    crf: int,
    preset: str,
    key_frame_every: int = 32,
    comment: str = "",
) -> int:
    """Writes frames as H.264 (yuv420p) mp4, streamed; one FFmpeg build writes the same bytes every time.

    Args:
        size: height and width of the result, both even; frames of another size are scaled.
        comment: kept in the file, as its tag of that name.

    Returns:
        The number of frames.

    Raises:
        VideoError: there are no frames.
    """
    reformatter = VideoReformatter()
    rate = exact_rate(fps)
    num_frames = 0
    # With its macroblock tree x264 has written other bytes for the same frames.
    options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
    with av.open(file if isinstance(file, io.BytesIO) else os.fspath(file), "w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options=options)
        context = stream.codec_context
        context.thread_count = 1
        context.pix_fmt = "yuv420p"
        context.gop_size = key_frame_every
        context.time_base = 1 / rate
        for frame in frames:
            # Broadcast range and one of two matrices, both written into the file,
            # so that every player agrees on colours.
            matrix = Colorspace.ITU709 if frame.colorspace == Colorspace.ITU709 else Colorspace.ITU601
            if num_frames == 0:
                context.height, context.width = size
                context.color_range = ColorRange.MPEG
                context.colorspace = _MATRIX_TAG[matrix]
            yuv = reformatter.reformat(
                frame,
                height=size[0],
                width=size[1],
                format="yuv420p",
                dst_colorspace=matrix,
                dst_color_range=ColorRange.MPEG,
                interpolation=interpolation(frame, size),
                threads=1,
            )
            yuv.pts, yuv.time_base = num_frames, context.time_base
            # The encoder chooses its own key frames, not the source's.
            yuv.pict_type = PictureType.NONE
            container.mux(stream.encode(yuv))
            num_frames += 1
        if num_frames == 0:
            raise VideoError("holds no frame")
        container.mux(stream.encode(None))
    return num_frames


def exact_rate(fps: float | int | Fraction) -> Fraction:
    """A frame rate as a fraction: as it is, or for floats the simplest that is it but for rounding, as 24000/1001."""
    rate = Fraction(fps)
    simple = rate.limit_denominator(1001)
    # Of 32 bits, as records keep rates.
    if isinstance(fps, float) and simple and abs(simple - rate) <= rate * Fraction(1, 1 << 23):
        rate = simple
    return bounded(rate)


def encode_mp4(
    video: UInt8[np.ndarray, "T H W 3"],
    fps: float | int | Fraction,
    *,
    crf: int = 14,
    preset: str = "medium",
    comment: str = "",
) -> bytes:
    """H.264 mp4 of decoded frames; `comment` as of `encode_frames`.

    Odd sizes gain a row or column, a copy of the last: yuv420p holds even sizes only.
    """
    height, width = video.shape[1:3]
    padded = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frames = (VideoFrame.from_ndarray(frame, format="rgb24") for frame in padded)
    buffer = io.BytesIO()
    encode_frames(buffer, frames, fps, size=padded.shape[1:3], crf=crf, preset=preset, comment=comment)
    return buffer.getvalue()


def stream_mp4(
    path: str | os.PathLike, chunks: Iterable[UInt8[np.ndarray, "_ H W 3"]], fps: float | int | Fraction
) -> int:
    """Writes an mp4 chunk by chunk, as `encode_mp4` would of all together; returns the number of frames."""
    chunks = iter(chunks)
    head = next(chunks)
    height, width = head.shape[1:3]
    size = height + height % 2, width + width % 2

    def frames() -> Iterator[VideoFrame]:
        for chunk in itertools.chain([head], chunks):
            padded = np.pad(chunk, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            yield from (VideoFrame.from_ndarray(frame, format="rgb24") for frame in padded)

    return encode_frames(path, frames(), fps, size=size, crf=14, preset="medium")


def write_mp4(path: str | os.PathLike, video: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> None:
    """Writes `encode_mp4(video, fps)` to a file."""
    with open(path, "wb") as file:
        file.write(encode_mp4(video, fps))


def write_gif(file: io.BytesIO | str | os.PathLike, video: UInt8[np.ndarray, "T H W 3"], fps: float | int) -> None:
    """Writes an endless GIF with one palette for all frames (a palette per frame flickers).

    Every frame becomes one, those that are equal too, and they play at `fps` on the average (`gif_delays`); above 50
    frames a second, which no player shows, they play at 50, and a warning says so.
    """
    if fps > MAX_GIF_FPS:
        _LOG.warning("a GIF plays %d frames a second at most, %g more slowly; the mp4 is right", MAX_GIF_FPS, fps)
    sampled = video[:: max(1, len(video) // 8)]
    palette = Image.fromarray(np.concatenate(sampled)).quantize(256, method=Image.Quantize.MEDIANCUT)
    colours = np.full((256, 4), 255, np.uint8)
    chosen = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
    # As FFmpeg orders them: alpha, red, green, blue.
    colours[: len(chosen), 1:] = chosen
    delays = gif_delays(len(video), fps)
    # FFmpeg's encoder, for Pillow's makes one frame of equal ones.
    options = {"final_delay": str(delays[-1])}
    with av.open(file if isinstance(file, io.BytesIO) else os.fspath(file), "w", "gif", options=options) as container:
        stream = container.add_stream("gif", rate=_GIF_TICKS, options={"gifflags": "0"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "pal8"
        for pixels, time in zip(video, np.cumsum([0, *delays]).tolist()):
            indices = np.asarray(Image.fromarray(pixels).quantize(palette=palette))
            frame = VideoFrame.from_ndarray((indices, colours), format="pal8")  # pyrefly: ignore[bad-argument-type]
            frame.pts, frame.time_base = time, Fraction(1, _GIF_TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def gif_delays(num_frames: int, fps: float | int) -> list[int]:
    """Hundredths of a second that each frame is shown for, right on the average: 3, 3, 4 at 30 frames a second.

    Above 50 frames a second they are 2, the least that players show.
    """
    ends = [round(number * _GIF_TICKS / min(fps, MAX_GIF_FPS)) for number in range(num_frames + 1)]
    return [after - before for before, after in itertools.pairwise(ends)]


def grid(
    videos: UInt8[np.ndarray, "N T H W 3"], columns: int, *, separator: int = 2
) -> UInt8[np.ndarray, "T gridH gridW 3"]:
    """Lays videos out row by row, thin white lines between them; missing cells are white."""
    num_videos, num_frames, height, width, _ = videos.shape
    if num_videos < 1 or columns < 1:
        raise ValueError(f"grid: {num_videos} videos in {columns} columns; both must be at least 1")
    columns = min(columns, num_videos)
    rows = -(-num_videos // columns)
    shape = (
        num_frames,
        rows * (height + separator) - separator,
        columns * (width + separator) - separator,
        3,
    )
    picture = np.full(shape, 255, dtype=np.uint8)
    for index, video in enumerate(videos):
        top, left = (index // columns) * (height + separator), (index % columns) * (width + separator)
        picture[:, top : top + height, left : left + width] = video
    return picture
