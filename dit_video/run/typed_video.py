"""Videos and masks that are named on the command line, at the frame rate and size of a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from dit_video.video.decode import read_video, scale
from dit_video.video.pictures import VideoError
from dit_video.video.still import read_still
from dit_video.video.times import at_rate

Frames = UInt8[np.ndarray, "T H W 3"]
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_at(
    option: str, path: Path, fps: float, size: tuple[int, int], say: Callable[[str], None]
) -> tuple[Frames, tuple[int, int]]:
    """A video resampled to `fps` (nearest frames), scaled and cropped to `size` as training clips are; its own size.

    Raises:
        ValueError: it is no video.
    """
    frames, own_fps = _read(option, path)
    video, own_size = _at_rate(frames, own_fps, fps), frames.shape[1:3]
    if len(video) != len(frames) or own_size != size:
        say(
            f"{option}={path}: {len(frames)} frames of {own_size} at {own_fps:.4g} a second, taken as {len(video)} of "
            f"{size} at {fps:.4g}"
        )
    return _cut(video, size), own_size


def read_mask(
    path: Path, fps: float, num_frames: int, own_size: tuple[int, int], size: tuple[int, int]
) -> Bool[np.ndarray, "T H W"]:
    """True where a mask, a picture or a video, is white: what is to be made anew, cut as the video is.

    Args:
        own_size: height and width of the video that it is of.

    Raises:
        ValueError: it is neither, of another size, or shorter than the video.
    """
    if path.suffix.lower() in _PICTURES:
        try:
            frames = read_still(path)[None].repeat(num_frames, axis=0)
        except VideoError as error:
            raise ValueError(f"--mask={path}: {error}") from error
    else:
        frames, own_fps = _read("--mask", path)
        frames = _at_rate(frames, own_fps, fps)
    if frames.shape[1:3] != own_size:
        raise ValueError(f"--mask={path}: is of {frames.shape[1:3]} pixels, the video of {own_size}; make it as large")
    if len(frames) < num_frames:
        raise ValueError(f"--mask={path}: has {len(frames)} frames, the video {num_frames}; make it as long")
    return _cut(frames[:num_frames], size).mean(axis=-1) > 127.5


def _read(option: str, path: Path) -> tuple[Frames, float]:
    try:
        return read_video(path)
    except (VideoError, FileNotFoundError) as error:
        raise ValueError(f"{option}={error}") from error


def _at_rate(frames: Frames, own_fps: float, fps: float) -> UInt8[np.ndarray, "t H W 3"]:
    seconds = (len(frames) - 1) / own_fps
    places = at_rate(own_fps, fps, 1 + int(seconds * fps + 1e-6))
    return frames[np.minimum(places, len(frames) - 1)]


def _cut(frames: Frames, size: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    scaled = scale(frames, size)
    top, left = (scaled.shape[1] - size[0]) // 2, (scaled.shape[2] - size[1]) // 2
    return scaled[:, top : top + size[0], left : left + size[1]]
