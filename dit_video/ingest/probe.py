"""Probing and transcoding of a video file: frames, rate and size found by decoding, and a copy fit to be stored.

Imports nothing but decoding, so that a process that does only this starts at once (decoding_process.py).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8

from dit_video.video import frame_folder
from dit_video.video.encode import encode_frames
from dit_video.video.files import open_video, pixel_aspect
from dit_video.video.pictures import MAX_FRAME_PIXELS, ToRGB, VideoError
from dit_video.video.still import read_still
from dit_video.video.survey import Survey, survey

# Re-encoding is close to visually lossless, and several times faster than with the encoder's own preset.
CRF, PRESET = 16, "veryfast"
# Larger files are re-encoded rather than copied;
# larger results do not fit into one record (protobuf ends at 2 GiB).
_LARGEST_COPY = 64 << 20
_LARGEST_RECORD = 1 << 30
_FOLDER = f"a folder of pictures, taken as {frame_folder.FPS} frames a second"


class Facts(TypedDict):
    """Facts of a whole video as it is stored or decodes, upright: frames, frame rate, size; and of its file.

    `left_out` of the file's frames are not in it, `doubled` stand twice; `notes` say what was done.
    """

    frames: int
    fps: float
    width: int
    height: int
    left_out: int
    doubled: int
    notes: str


class Probed(Facts):
    """Facts of a file that is read where it lies.

    `chosen` are its frames as numbers for `decode_frames`; None where they are all of the file's.
    """

    chosen: list[int] | None


def storable(path: Path, target: Path, max_size: int | None, images: bool = False) -> Facts:
    """Decodes a file whole; where it is not fit to be stored as it is, encodes it to `target`.

    Args:
        max_size: longest short side in pixels; a larger video is scaled down.
        images: a picture is a clip of one frame.

    Returns:
        The facts of what is to be stored: `target` where it was written, else the file itself.

    Raises:
        VideoError: it cannot be decoded to its end, is beyond the limits of video.py, or too large for a record.
    """
    if path.is_dir():
        return _encode_folder(path, target, max_size)
    if images and path.suffix.lower() in frame_folder.SUFFIXES:
        note = "a picture, taken as a clip of one frame"
        return _encode_pictures(iter([read_still(path)]), target, max_size, note)
    found = survey(path)
    if _is_storable(path, found, max_size):
        return _facts(found, found.size)
    facts = _facts(found, _encode(path, target, found, max_size))
    if (size := target.stat().st_size) > _LARGEST_RECORD:
        raise VideoError(f"too long for one record ({size >> 20} MiB as mp4); cut it, or use --max_size")
    return facts


def probe(path: Path) -> Probed:
    """Decodes a file whole and says what it is.

    Raises:
        VideoError: it cannot be decoded, or not as it says.
    """
    if path.is_dir():
        number, size = 0, (0, 0)
        for frame in frame_folder.frames(path):  # each is read: one that cannot be is the reason to leave it out
            number, size = number + 1, frame.shape[:2]
        return {**_picture_facts(number, size, _FOLDER), "chosen": None}
    found = survey(path)
    chosen = None if found.frames is None else found.frames.tolist()
    return {**_facts(found, found.size), "chosen": chosen}


def _facts(found: Survey, size: tuple[int, int]) -> Facts:
    return {
        "frames": len(found.positions),
        "fps": float(found.rate),
        "width": size[1],
        "height": size[0],
        "left_out": found.left_out,
        "doubled": found.doubled,
        "notes": "; ".join(found.notes),
    }


def _picture_facts(num_frames: int, size: tuple[int, int], note: str) -> Facts:
    """Facts of a clip of pictures."""
    rate, (height, width) = float(frame_folder.FPS), size
    return Facts(frames=num_frames, fps=rate, width=width, height=height, left_out=0, doubled=0, notes=note)


def _encode_folder(folder: Path, target: Path, max_size: int | None) -> Facts:
    """Encodes a folder of pictures; one without any is listed as none."""
    return _encode_pictures(frame_folder.frames(folder), target, max_size, _FOLDER)


def _encode_pictures(
    pictures: Iterator[UInt8[np.ndarray, "H W 3"]], target: Path, max_size: int | None, note: str
) -> Facts:
    """Encodes pictures, one at least, as frames."""
    first = next(pictures)
    size = _even(first.shape[:2], max_size)
    whole = map(np.ascontiguousarray, itertools.chain([first], pictures))
    frames = (VideoFrame.from_ndarray(picture, format="rgb24") for picture in whole)
    number = encode_frames(target, frames, frame_folder.FPS, size=size, crf=CRF, preset=PRESET)
    return _picture_facts(number, size, note)


def _even(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """Height and width that a video is encoded with: even, and no longer on the short side than `max_size`."""
    shrink = 1.0 if max_size is None else min(1.0, max_size / min(size))
    height, width = (max(2, 2 * round(side * shrink / 2)) for side in size)
    return height, width


def _is_storable(path: Path, found: Survey, max_size: int | None) -> bool:
    """Whether a file can be stored as it is, so that its plain frames can be found without decoding.

    That is H.264 mp4, plain, whole, even in time, with one packet per frame, within the limits of size.
    """
    container, codec, pixel_format = found.coding
    return (
        found.plain
        and found.frames is None
        and found.timed
        and "mp4" in container.split(",")
        and (codec, pixel_format) == ("h264", "yuv420p")
        and path.stat().st_size <= _LARGEST_COPY
        and (max_size is None or min(found.size) <= max_size)
    )


def _encode(path: Path, target: Path, found: Survey, max_size: int | None) -> tuple[int, int]:
    """Re-encodes a file plain, even in time and with even sides.

    Returns:
        Height and width of the result.
    """
    height, width = _even(found.size, max_size)
    if height * width > MAX_FRAME_PIXELS:
        raise VideoError(f"with square pixels it is {width} x {height}; re-encode it")
    with open_video(path) as (container, stream):
        to_rgb = ToRGB(aspect=pixel_aspect(stream))

        def plain(frame: VideoFrame) -> VideoFrame:
            return VideoFrame.from_ndarray(np.ascontiguousarray(to_rgb(frame)), format="rgb24")

        frames = found.of(container, stream)
        frames = map(plain, frames) if found.filtered else frames
        encode_frames(target, frames, found.rate, size=(height, width), crf=CRF, preset=PRESET)
    return height, width
