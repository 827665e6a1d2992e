"""Media: videos, pictures and texts that tasks generate, written as mp4, GIF, PNG or JSONL."""

import abc
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dit_video.config.atomic import new_file, write_file
from dit_video.video.encode import encode_mp4, grid, write_gif


class Media(abc.ABC):
    """Video, picture or text that can be written to files.

    Attributes:
        suffixes: endings of the files that it can be written to; `encode` writes the first.
    """

    suffixes: ClassVar[tuple[str, ...]]

    @classmethod
    @abc.abstractmethod
    def of_rows(cls, rows: Any, columns: int, fps: float) -> "Media":
        """Rows of what a function of a task made, on the host, as one thing to look at.

        Args:
            columns: of the grid, where there is one.
            fps: frames per second, where there are frames.
        """

    @abc.abstractmethod
    def encode(self, suffix: str) -> bytes:
        """The content of a file that ends in one of `suffixes`."""

    def lines(self) -> Sequence[str]:
        """Lines to print on a console."""
        return ()

    def write(self, path: Path) -> None:
        """Writes a file whole or not at all, in folders that are made where they are not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, self.encode(path.suffix.lower()))

    def write_each(self, stem: Path) -> None:
        """Writes STEM with each of `suffixes`: a video as mp4 and as GIF."""
        for suffix in self.suffixes:
            self.write(stem.with_name(f"{stem.name}{suffix}"))


@dataclasses.dataclass(frozen=True)
class Video(Media):
    """A clip, or a grid of clips.

    Attributes:
        fps: frames per second.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float

    suffixes = (".mp4", ".gif")

    @classmethod
    def of_rows(cls, rows: UInt8[np.ndarray, "N T H W 3"], columns: int, fps: float) -> "Video":
        """Clips as a grid."""
        return cls(grid(rows, columns=columns), fps)

    def encode(self, suffix: str) -> bytes:
        return encode_mp4(self.frames, self.fps)

    def write(self, path: Path) -> None:
        if path.suffix.lower() != ".gif":
            return super().write(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            return write_gif(temporary, self.frames, self.fps)


@dataclasses.dataclass(frozen=True)
class Picture(Media):
    """A still image."""

    pixels: UInt8[np.ndarray, "H W 3"]

    suffixes = (".png",)

    @classmethod
    def of_rows(cls, rows: UInt8[np.ndarray, "N H W 3"], columns: int, fps: float) -> "Picture":
        """Images as a grid."""
        return cls(grid(rows[:, None], columns=columns)[0])

    def encode(self, suffix: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, format="PNG")
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Text(Media):
    """Texts, one after the other; a file has a JSON object with the field "text" in each line.

    A task that makes tokens has a subclass whose `of_rows` says what they spell.
    """

    texts: tuple[str, ...]

    suffixes = (".jsonl", ".txt")

    @classmethod
    def of_rows(cls, rows: Sequence[str], columns: int, fps: float) -> "Text":
        return cls(tuple(rows))

    def encode(self, suffix: str) -> bytes:
        lines = self.texts if suffix == ".txt" else [json.dumps({"text": text}) for text in self.texts]
        return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")

    def lines(self) -> Sequence[str]:
        return self.texts
