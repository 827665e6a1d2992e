"""Video decoding (mp4, GIF and others): whole files, and windows of them.

Frames are scaled while they are converted from YUV, so that only small pictures ever become RGB.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from jaxtyping import UInt8

from dit_video.video.files import bounded, counted, decoder_of, open_video, pixel_aspect
from dit_video.video.pictures import ToRGB, VideoError, deinterlaced
from dit_video.video.survey import survey

# Frames of one video in memory; stacking them takes as much again.
MAX_DECODED_BYTES = 2 << 30
READING = 2
"""Counts the ways in which this package has turned the same bytes into pixels: part of what kept features are of."""


def decode(data: bytes) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    """Decodes all frames of what `survey` finds to be the video, plain, and the frame rate.

    Plain is upright, in square pixels, SDR, deinterlaced, over black.

    Raises:
        VideoError: the bytes are not a video with at least one frame.
    """
    return _read(data)


def read_video(path: str | os.PathLike) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    """Reads all frames of a file, as `decode` does, and the frame rate.

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
    found = survey(source)
    with open_video(source) as (container, stream):
        frames = _collected(map(ToRGB(aspect=pixel_aspect(stream)), found.of(container, stream)))
    return np.stack(frames), float(found.rate)


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
    """Decodes frames start, start + stride, ... of a file, as `decode_frames` does.

    Equal to `decode(data)[0][start : start + num_frames * stride : stride]` where the video is the whole file and
    nothing is scaled.

    Raises:
        VideoError: the bytes are no video, or it ends before the window does.
    """
    return decode_frames(data, range(start, start + (num_frames - 1) * stride + 1, stride), cover=cover)


def decode_frames(
    data: bytes, numbers: Sequence[int], *, cover: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes frames of a file by their numbers, plain, each scaled to just cover `cover` (height, width).

    Decoding begins at the last key frame at or before the first of them, where packets have times and fields need
    none before, and ends with the last. Frames that are neither chosen nor referred to by others are not decoded
    (FFmpeg's `skip_frame`), and only chosen ones are converted.

    Args:
        numbers: ascending; one that is repeated gives its frame again. As in `Survey.frames`.

    Raises:
        VideoError: the bytes are no video, or it ends before the last of them does.
    """
    with open_video(data) as (container, stream):
        packets = [packet for packet in counted(container.demux(stream)) if packet.size]
        finder = _Finder(packets, numbers)
        decoder, aspect = decoder_of(stream), pixel_aspect(stream)
        frames = finder.found(decoder, packets[finder.first_packet :], ToRGB(cover, aspect), fields=False)
        if len(frames) < len(finder.wanted):
            decoder.flush_buffers()
            frames = finder.found(decoder, packets, ToRGB(cover, aspect), fields=True)
        if len(frames) == len(finder.wanted):
            at = {number: frame for number, frame in zip(sorted(finder.wanted), frames)}
            return np.stack([at[number] for number in numbers])
    decoded = sum(number in sorted(finder.wanted)[: len(frames)] for number in numbers)
    raise VideoError(f"ends before frame {numbers[-1]}: {decoded} of {len(numbers)} frames of the clip decode")


class _Finder:
    """Finds frames of a stream by their numbers.

    Attributes:
        wanted: the numbers.
        first_packet: where decoding may begin.
    """

    def __init__(self, packets: Sequence[av.Packet], numbers: Sequence[int]):
        self.wanted = set(numbers)
        self.first_packet = 0
        self._by_time: dict[int | None, int] | None = None
        times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
        # Without a distinct time on every packet, frames can only be counted from the beginning.
        if len(set(times)) == len(packets) and numbers[-1] < len(times):
            self._by_time = {times[number]: number for number in self.wanted}
            begin = times[numbers[0]]
            keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and (packet.pts or 0) <= begin]
            self.first_packet = keys[-1] if keys else 0

    def found(
        self, decoder: VideoCodecContext, packets: Sequence[av.Packet], to_rgb: ToRGB, *, fields: bool
    ) -> list[UInt8[np.ndarray, "H W 3"]]:
        """The chosen frames, as far as they are found.

        Args:
            fields: whether there may be interlaced frames, for which `packets` must begin with the first; else
                the search ends with the first such frame, or with a damaged one.
        """
        if fields:
            decoder.skip_frame = "DEFAULT"
            numbered = deinterlaced(self._numbered(_flushed(decoder, packets)))
        else:
            numbered = _until_unsure(self._numbered(_flushed(decoder, self._only_needed(decoder, packets))))
        return _collected(map(to_rgb, self._chosen(numbered)))

    def _only_needed(self, decoder: VideoCodecContext, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """Packets, while the decoder leaves out frames that are neither chosen nor referred to by others."""
        chosen: Mapping[int | None, int] = self._by_time or {}
        for packet in packets:
            decoder.skip_frame = "DEFAULT" if self._by_time is None or packet.pts in chosen else "NONREF"
            yield packet

    def _numbered(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their numbers, -1 for those whose time is no chosen one's."""
        if self._by_time is None:
            return enumerate(frames)
        number_at = self._by_time.get
        return ((number_at(frame.pts, -1), frame) for frame in frames)

    def _chosen(self, numbered: Iterable[tuple[int, VideoFrame]]) -> Iterator[VideoFrame]:
        """The chosen frames, without asking for one after the last."""
        num_left = len(self.wanted)
        for number, frame in numbered:
            if number not in self.wanted:
                continue
            if frame.is_corrupt:
                raise VideoError(f"frame {number} is damaged")
            yield frame
            num_left -= 1
            if not num_left:
                return


def _until_unsure(frames: Iterable[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
    for number, frame in frames:
        if frame.interlaced_frame or frame.is_corrupt:
            return
        yield number, frame


def _flushed(decoder: VideoCodecContext, packets: Iterable[av.Packet]) -> Iterator[VideoFrame]:
    """Decodes packets, but for those that are damaged, and flushes the decoder at the end."""
    return bounded(frame for packet in chain(packets, (None,)) for frame in _decoded(decoder, packet))


def _decoded(decoder: VideoCodecContext, packet: av.Packet | None) -> list[VideoFrame]:
    try:
        return decoder.decode(packet)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return []


def scale(video: UInt8[np.ndarray, "T H W 3"], cover: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    """Scales decoded frames so that they just cover `cover` (height, width): by area down, bicubic up."""
    if video.shape[1:3] == cover:
        return video
    to_rgb = ToRGB(cover)
    return np.stack([to_rgb(VideoFrame.from_ndarray(frame, format="rgb24")) for frame in video])
