"""What travels through the data pipeline: a stored Record, the Clip cut from it,
the Batch that goes to the device.

Pixels stay uint8 until the device: a quarter of the bytes of float32, and one place (vae/codec.py) that says
what a pixel value means.
"""

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from dit_video.arrays import Text
from dit_video.data.captions import encode_captions
from dit_video.data.text_cache import Embeddings

# The label of a record that has none.
NO_LABEL = -1


class Split(enum.StrEnum):
    """Which side of the fence a record stands on; decided once, per source file, when a set is made."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored example, as a source returns it.

    Exactly one of `video` (encoded bytes of any container, or decoded frames) and `moments` (the cached
    output of the VAE's encoder) is set.

    Attributes:
        key: name of the record, unique within its set.
        label: index into the source's class names, or NO_LABEL.
        num_frames: of `video`; None for moments.
        fps: frames per second of the video, or of the clip that was encoded into `moments`.
        start: for `moments`, the frame of the source video where the encoded clip begins.
    """

    key: str
    video: bytes | UInt8[np.ndarray, "T H W 3"] | None = None
    moments: Float[np.ndarray, "t h w m"] | None = None
    label: int = NO_LABEL
    caption: str = ""
    num_frames: int | None = None
    fps: float
    start: int = 0

    def __post_init__(self):
        if (self.video is None) == (self.moments is None):
            raise ValueError(f"Record {self.key!r}: give exactly one of video and moments")
        if (self.video is None) != (self.num_frames is None):
            raise ValueError(f"Record {self.key!r}: num_frames belongs to a video")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A window of a record in the shape training wants.

    Attributes:
        start: frame of the source video where the clip begins.
        fps: frames per second of the clip, after its stride.
    """

    key: str
    start: int
    video: UInt8[np.ndarray, "T H W 3"] | None = None
    moments: Float[np.ndarray, "t h w m"] | None = None
    label: int = NO_LABEL
    caption: str = ""
    fps: float


class Batch(NamedTuple):
    """What a training step receives; a pytree. Absent fields are None."""

    video: UInt8[Array | np.ndarray, "B T H W 3"] | None = None
    moments: Float[Array | np.ndarray, "B t h w m"] | None = None
    label: Int32[Array | np.ndarray, "B"] | None = None
    caption: UInt8[Array | np.ndarray, "B L"] | None = None
    text: Text | None = None

    def require_video(self) -> UInt8[Array | np.ndarray, "B T H W 3"]:
        """`video`, for those who cannot do without.

        Raises:
            ValueError: there is none.
        """
        if self.video is None:
            raise ValueError("Batch.video=None: this needs clips; read them from a source of video, not a latent cache")
        return self.video

    def require_label(self) -> Int32[Array | np.ndarray, "B"]:
        """`label`, for those who cannot do without.

        Raises:
            ValueError: there is none.
        """
        if self.label is None:
            raise ValueError(f"Batch.label=None: this needs labels; {NO_LABEL} means no label")
        return self.label


class Examples(ABC):
    """The records of one split, by position; safe to read from many threads."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """The record at a position.

        Raises:
            ValueError: its bytes are damaged; names it.
        """

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @property
    @abstractmethod
    def num_frames(self) -> Int[np.ndarray, "num_records"] | None:
        """Frames of each record, known without decoding; None for cached moments, used whole."""


def content_digest(examples: Examples, positions: Sequence[int]) -> str:
    """sha256 over key and stored content of the records at `positions`, in that order; nothing is decoded.

    A manifest's digest says what a set was made of; this one also changes with any byte changed since then.
    """
    sha256 = hashlib.sha256()
    for position in positions:
        record = examples[position]
        content = record.video if record.video is not None else record.moments
        # File names, and so keys, need not be valid UTF-8.
        if isinstance(content, np.ndarray):
            sha256.update(f"{record.key}\n{content.dtype.str} {content.shape}\n".encode(errors="surrogateescape"))
            sha256.update(np.ascontiguousarray(content).data)
        elif content is not None:
            sha256.update(f"{record.key}\n{len(content)}\n".encode(errors="surrogateescape"))
            sha256.update(content)
    return sha256.hexdigest()


def collate(clips: Sequence[Clip], caption_bytes: int | None = None, texts: Embeddings | None = None) -> Batch:
    """Stacks clips of one shape into a batch.

    Args:
        caption_bytes: how long captions are; None for a batch without.
        texts: what has the embeddings of captions; None for a batch without.

    Raises:
        ValueError: no clips, clips that differ in shape or in kind (video against moments), or a caption without
            embedding.
    """
    if not clips:
        raise ValueError("collate: no clips")

    def stack(field: str) -> np.ndarray | None:
        arrays = [getattr(clip, field) for clip in clips]
        if all(array is None for array in arrays):
            return None
        shapes = [None if array is None else array.shape for array in arrays]
        for clip, shape in zip(clips, shapes):
            if shape != shapes[0]:
                raise ValueError(
                    f"collate: clips of one batch differ in the shape of {field}: {clips[0].key} has {shapes[0]}, "
                    f"{clip.key} has {shape}"
                )
        return np.stack(arrays)

    label = np.array([clip.label for clip in clips], dtype=np.int32)
    caption = None if caption_bytes is None else encode_captions([clip.caption for clip in clips], caption_bytes)
    text = None if texts is None else texts([clip.caption for clip in clips])
    return Batch(video=stack("video"), moments=stack("moments"), label=label, caption=caption, text=text)
