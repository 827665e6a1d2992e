"""Probing and transcoding of a video file: frames, rate and size found by decoding, and a copy fit to be stored.

Imports nothing but decoding, so that a process that does only this starts at once (decoding_process.py).
"""

from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypedDict

import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dit_video.video.decode import (
    MAX_FRAME_PIXELS,
    VideoError,
    counted,
    decoded_frames,
    frame_rate,
    open_video,
    quarter_turns,
)
from dit_video.video.encode import encode_frames

# Re-encoding is close to visually lossless, and several times faster than with the encoder's own preset.
CRF, PRESET = 16, "veryfast"
# Larger files are re-encoded rather than copied;
# larger results do not fit into one record (protobuf ends at 2 GiB).
_LARGEST_COPY = 64 << 20
_LARGEST_RECORD = 1 << 30
# Where a packet is a frame, so that packets can be counted in place of frames. Not so in MPEG program streams
# (packets may lack a time), AVI (none has one) or VP8 (hidden frames have packets of their own).
_FRAME_PER_PACKET = {"h264", "hevc", "vp9", "av1"}
_TIMED_CONTAINERS = {"mp4", "matroska"}


class Facts(TypedDict):
    """Facts of a whole video, upright: frames, frame rate, size."""

    frames: int
    fps: float
    width: int
    height: int


def storable(path: Path, target: Path, max_size: int | None) -> Facts:
    """Decodes a file whole; where it is not fit to be stored as it is, encodes it to `target`.

    Args:
        max_size: longest short side in pixels; a larger video is scaled down.

    Returns:
        The facts of what is to be stored: `target` where it was written, else the file itself.

    Raises:
        VideoError: it cannot be decoded to its end, is beyond the limits of video.py, or too large for a record.
    """
    if (facts := _facts_if_storable(path, max_size)) is not None:
        return facts
    facts = _encode(path, target, max_size)
    if (size := target.stat().st_size) > _LARGEST_RECORD:
        raise VideoError(f"too long for one record ({size >> 20} MiB as mp4); cut it, or use --max_size")
    return facts


def probe(path: Path) -> Facts:
    """Decodes the first frame of a file, and all where packets do not tell their number.

    Raises:
        VideoError: it cannot be decoded, or its frames cannot be found by number.
    """
    times: list[int | None] = []
    with open_video(path) as (container, stream):
        fps = float(frame_rate(stream))
        first = next(decoded_frames(container, stream, times), None)
        if first is None:
            raise VideoError("holds no frame")
        rest = (packet for packet in counted(container.demux(stream)) if packet.size and not packet.is_discard)
        # A packet cut short tells nothing.
        times += [None if packet.is_corrupt else packet.pts for packet in rest]
        timed = not _TIMED_CONTAINERS.isdisjoint(container.format.name.split(","))
        trusted = timed and stream.codec_context.name in _FRAME_PER_PACKET
    height, width = (first.width, first.height) if quarter_turns(first) % 2 else (first.height, first.width)
    num_frames = len(times)
    distinct = {time for time in times if time is not None}
    # A stream cut between key frames begins with packets that give no frame.
    if not (trusted and len(distinct) == num_frames > 0 and first.pts == min(distinct)):
        with open_video(path) as (container, stream):
            num_frames = sum(1 for _ in decoded_frames(container, stream, []))
        # decode_window finds frames by the times of packets where each has its own.
        if len(distinct) == len(times) != num_frames:
            raise VideoError(f"only {num_frames} of its {len(times)} packets give a frame; re-encode it")
    return {"frames": num_frames, "fps": fps, "width": width, "height": height}


def _facts_if_storable(path: Path, max_size: int | None) -> Facts | None:
    """Frames, fps, width and height of a file that can be stored as it is; None for others.

    That is H.264 mp4, upright, with square pixels and one packet per frame (so that frames can be found
    without decoding), within the limits of size.
    """
    with open_video(path) as (container, stream):
        context = stream.codec_context
        height, width = context.height, context.width
        if not (
            "mp4" in container.format.name.split(",")
            and context.name == "h264"
            and context.pix_fmt == "yuv420p"
            and _pixel_aspect(stream) == 1
            and path.stat().st_size <= _LARGEST_COPY
            and (max_size is None or min(height, width) <= max_size)
        ):
            return None
        packet_times: list[int | None] = []
        num_frames = 0
        for frame in decoded_frames(container, stream, packet_times):
            if frame.rotation or (frame.height, frame.width) != (height, width):
                return None
            num_frames += 1
        if None in packet_times or not len(set(packet_times)) == len(packet_times) == num_frames:
            return None
        if num_frames == 0:
            raise VideoError("holds no frame")
        return {"frames": num_frames, "fps": float(frame_rate(stream)), "width": width, "height": height}


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return aspect if aspect > 0 else Fraction(1)


def _encode(path: Path, target: Path, max_size: int | None) -> Facts:
    """Re-encodes a file upright, with square pixels and even sides.

    Returns:
        Frames, fps, width and height of the result.
    """
    with open_video(path) as (container, stream):
        fps = frame_rate(stream)
        frames = decoded_frames(container, stream, [])
        first = next(frames, None)
        if first is None:
            raise VideoError("holds no frame")
        aspect = float(_pixel_aspect(stream))
        height, width = float(first.height), first.width * aspect
        if quarter_turns(first) % 2:
            height, width = width, height
        shrink = 1.0 if max_size is None else min(1.0, max_size / min(height, width))
        height, width = (max(2, 2 * round(side * shrink / 2)) for side in (height, width))
        if height * width > MAX_FRAME_PIXELS:
            raise VideoError(f"its pixels have the aspect {aspect:.4g}, square it is {width} x {height}; re-encode it")
        upright = map(_upright, chain([first], frames))
        num_frames = encode_frames(target, upright, fps, size=(height, width), crf=CRF, preset=PRESET)
    return {"frames": num_frames, "fps": float(fps), "width": width, "height": height}


def _upright(frame: VideoFrame) -> VideoFrame:
    turns = quarter_turns(frame)
    if turns == 0:
        return frame
    turned = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    return VideoFrame.from_ndarray(np.ascontiguousarray(turned, dtype=np.uint8), format="rgb24")
