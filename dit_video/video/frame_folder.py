"""A clip as a folder of pictures, one a frame, in the order of the numbers in their names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dit_video.video.pictures import MAX_FRAME_PIXELS, VideoError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Folders say no rate; that of most film, and of what `evaluate fvd` takes arrays for.
FPS = 25


def is_frame(name: str) -> bool:
    """Whether a file's name is that of a numbered picture."""
    return name.lower().endswith(SUFFIXES) and re.search(r"\d", name) is not None


def in_order(names: Sequence[str]) -> list[str]:
    """Names in the order of the numbers in them: frame2 before frame10."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def frames(folder: Path) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Reads the pictures of a folder, upright, over black where they are transparent.

    Raises:
        VideoError: one cannot be read, or is of another size than the first; names it.
    """
    size = None
    for name in in_order([path.name for path in folder.iterdir() if is_frame(path.name)]):
        try:
            with Image.open(folder / name) as image:
                if image.width * image.height > MAX_FRAME_PIXELS:
                    raise VideoError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_FRAME_PIXELS}")
                frame = ImageOps.exif_transpose(image)
                if "A" in frame.getbands() or "transparency" in frame.info:
                    frame = frame.convert("RGBA")
                    frame = Image.alpha_composite(Image.new("RGBA", frame.size, (0, 0, 0, 255)), frame)
                pixels = np.asarray(frame.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{name} is no picture that can be read ({error})") from None
        size = size or pixels.shape
        if pixels.shape != size:
            raise VideoError(
                f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the first {size[1]} x {size[0]}"
            )
        yield pixels


def as_video(folder: Path) -> Iterator[VideoFrame]:
    """The pictures of a folder as frames to encode."""
    return (VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames(folder))
