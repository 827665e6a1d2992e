"""A clip as a folder of pictures, one a frame, in the order of the numbers in their names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dit_video.video.pictures import VideoError
from dit_video.video.still import read_still

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
    """Reads the pictures of a folder, as `read_still` does.

    Raises:
        VideoError: one cannot be read, or is of another size than the first; names it.
    """
    size = None
    for name in in_order([path.name for path in folder.iterdir() if is_frame(path.name)]):
        try:
            pixels = read_still(folder / name)
        except VideoError as error:
            raise VideoError(f"{name}: {error}") from error
        size = size or pixels.shape
        if pixels.shape != size:
            raise VideoError(
                f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, the first {size[1]} x {size[0]}"
            )
        yield pixels
