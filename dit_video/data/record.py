"""Records of a set as a source returns them, the clips cut from them, and the splits they stand on."""

import enum
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8

# The label of a record that has none.
NO_LABEL = -1


class Split(enum.StrEnum):
    """Which side of the fence a record stands on; decided once, per source file, when a set is made."""

    TRAIN = "train"
    HELD_OUT = "held_out"


Actions = Int32[np.ndarray, "F"] | Float32[np.ndarray, "F A"]
Poses = Float32[np.ndarray, "F P"]


class TokenRow(NamedTuple):
    """Tokens of text, of a record or of a batch of such, with the documents that they are of.

    Attributes:
        tokens: numbers from 0; -1 where a prompt leaves them open.
        documents: the number of each token's document, from 1; 0 is padding.
    """

    tokens: Int[Array | np.ndarray, "*B L"]
    documents: Int[Array | np.ndarray, "*B L"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored example, as a source returns it.

    At most one of `video` (encoded bytes of any container, or decoded frames) and `moments` (the cached output of the
    VAE's encoder) is set; a record of text alone has neither.

    Attributes:
        key: name of the record, unique within its set.
        label: index into the source's class names, or NO_LABEL.
        num_frames: of `video`; None where there is none.
        frames: of encoded bytes, the numbers of the frames that are the video, as `decode_frames` takes them; None
            where they are all of the file's.
        fps: frames per second of the video, or of the clip that was encoded into `moments`.
        start: for `moments`, the frame of the source video where the encoded clip begins.
        tokens: of a text that is learnt; None elsewhere.
        actions: what was pressed before each frame (video/actions.py), of all frames of `video`, or of the clip that
            was encoded into `moments`; None where there are none.
        poses: of the camera in each of these frames, where the world gives it.
    """

    key: str
    video: bytes | UInt8[np.ndarray, "T H W 3"] | None = None
    moments: Float[np.ndarray, "t h w m"] | None = None
    label: int = NO_LABEL
    caption: str = ""
    num_frames: int | None = None
    frames: Int[np.ndarray, "T"] | None = None
    fps: float
    start: int = 0
    tokens: TokenRow | None = None
    actions: Actions | None = None
    poses: Poses | None = None

    def __post_init__(self):
        if self.video is not None and self.moments is not None:
            raise ValueError(f"Record {self.key!r}: give one of video and moments, or neither")
        if (self.video is None) != (self.num_frames is None):
            raise ValueError(f"Record {self.key!r}: num_frames belongs to a video")
        for name in ("actions", "poses"):
            rows = getattr(self, name)
            if rows is not None and self.num_frames is not None and len(rows) != self.num_frames:
                raise ValueError(f"Record {self.key!r}: {len(rows)} {name} of {self.num_frames} frames: one of each")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A window of a record in the shape training wants.

    Attributes:
        start: frame of the source video where the clip begins.
        fps: frames per second of the clip, after its stride.
        actions, poses: of every frame of the record from the clip's first to its last, those among them that a stride
            leaves out: an action that a clip does not show is kept, and whoever cannot use it refuses it.
    """

    key: str
    start: int
    video: UInt8[np.ndarray, "T H W 3"] | None = None
    moments: Float[np.ndarray, "t h w m"] | None = None
    label: int = NO_LABEL
    caption: str = ""
    fps: float
    tokens: TokenRow | None = None
    actions: Actions | None = None
    poses: Poses | None = None


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

    # Whether `num_frames` reads every record where it is first asked for.
    reads_to_count: ClassVar[bool] = False

    @property
    @abstractmethod
    def num_frames(self) -> Int[np.ndarray, "num_records"] | None:
        """Frames of each record, known without decoding; None for cached moments, used whole."""

    @property
    def fps(self) -> Float[np.ndarray, "num_records"] | None:
        """Frames per second of each record; None where only reading the records would tell."""
        return None

    @property
    def sizes(self) -> Int[np.ndarray, "num_records 2"] | None:
        """Height and width of the frames of each record; None where only reading the records would tell."""
        return None

    @property
    def cut_to(self) -> Int[np.ndarray, "num_records 3"] | None:
        """(T, H, W) of the clip that each record of moments is of; None of videos, and where all are of one shape."""
        return None

    @property
    def labels(self) -> Int[np.ndarray, "num_records"] | None:
        """Class of each record, NO_LABEL where it has none; None where only reading the records would tell."""
        return None

    @property
    def captions(self) -> Sequence[str] | None:
        """Caption of each record, empty where it has none; None where only reading the records would tell."""
        return None


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
            if record.frames is not None:
                sha256.update(np.ascontiguousarray(record.frames, np.int64).data)
        if record.tokens is not None:
            sha256.update(f"{record.key}\n".encode())
            sha256.update(np.stack(record.tokens).astype("<i8").tobytes())
        for rows in (record.actions, record.poses):
            if rows is not None:
                sha256.update(f"{record.key}\n{rows.dtype.str} {rows.shape}\n".encode(errors="surrogateescape"))
                sha256.update(np.ascontiguousarray(rows).data)
    return sha256.hexdigest()
