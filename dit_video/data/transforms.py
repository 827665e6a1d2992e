"""Clip transforms: temporal window, stride, resize, crop and flip of a stored record, still uint8."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dit_video.config.bounds import at_least, between
from dit_video.data.record import Clip, Examples, Record
from dit_video.video.decode import VideoError, decode_window, scale


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """Cuts a clip: `num_frames` frames, `stride` apart,
    scaled to cover `size` with its aspect kept, then cropped to it.

    Scaling is by area downwards and bicubic upwards. Cached moments pass through whole: what is cut was
    decided when they were encoded.

    Attributes:
        size: height and width.
        random_crop: crop at a random place instead of the centre.
        flip_rate: share of clips mirrored left to right; 0 where left and right differ in meaning, as in
            text.
    """

    num_frames: int = 17
    stride: int = 1
    size: tuple[int, int] = (64, 64)
    random_crop: bool = False
    flip_rate: float = 0.0

    def __post_init__(self):
        if len(self.size) != 2:
            raise ValueError(f"ClipTransform.size={self.size}: must be (height, width)")
        at_least(self, 1, "num_frames", "stride", "size")
        between(self, 0, 1, "flip_rate")

    @property
    def protocol(self) -> dict[str, Any]:
        """How clips are cut, for an evaluation card, without their number of frames."""
        crop = "random" if self.random_crop else "centre"
        return {"stride": self.stride, "size": list(self.size), "crop": crop, "flip_rate": self.flip_rate}

    @property
    def draws(self) -> bool:
        """Whether anything besides the start of a clip is random (crop, flip)."""
        return self.random_crop or self.flip_rate > 0

    @property
    def span(self) -> int:
        """Number of source frames from the first to the last of a clip."""
        return (self.num_frames - 1) * self.stride + 1

    def num_starts(self, num_frames: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Number of possible start frames in videos of `num_frames` frames; 0 where they are too short."""
        return np.maximum(num_frames - self.span + 1, 0)

    def __call__(self, record: Record, rng: np.random.Generator) -> Clip:
        """Cuts a clip at a random place of the record.

        Raises:
            ValueError: the record is too short, or does not decode; names the record.
        """
        if record.num_frames is None:
            return self.at(record, record.start, rng)
        starts = record.num_frames - self.span + 1
        if starts < 1:
            raise ValueError(f"record {record.key!r}: {record.num_frames} frames, but a clip reaches over {self.span}")
        return self.at(record, int(rng.integers(starts)), rng)

    def at(self, record: Record, start: int, rng: np.random.Generator) -> Clip:
        """Cuts the clip that begins at frame `start`; `rng` decides crop and flip.

        Raises:
            ValueError: the video does not decode that far; names the record.
        """
        fields = {"key": record.key, "start": start, "label": record.label, "caption": record.caption}
        if record.video is None:
            return Clip(moments=record.moments, fps=record.fps, **fields)
        try:
            video = self._cut(record.video, start)
        except VideoError as error:
            raise ValueError(f"record {record.key!r}: {error}") from error
        crop = [
            int(rng.integers(room + 1)) if self.random_crop else room // 2
            for room in (video.shape[1] - self.size[0], video.shape[2] - self.size[1])
        ]
        video = video[:, crop[0] : crop[0] + self.size[0], crop[1] : crop[1] + self.size[1]]
        if self.flip_rate and rng.random() < self.flip_rate:
            video = video[:, :, ::-1]
        return Clip(video=np.ascontiguousarray(video), fps=record.fps / self.stride, **fields)

    def _cut(self, video: bytes | UInt8[np.ndarray, "T H W 3"], start: int) -> UInt8[np.ndarray, "t h w 3"]:
        if isinstance(video, bytes):
            window = {"start": start, "num_frames": self.num_frames, "stride": self.stride}
            return decode_window(video, cover=self.size, **window)
        frames = video[start : start + self.span : self.stride]
        if len(frames) < self.num_frames:
            raise VideoError(f"ends after {len(video)} frames")
        return scale(frames, self.size)


class Usable(Examples):
    """The records that are long enough for a transform.

    Attributes:
        num_too_short: records left out.
    """

    def __init__(self, examples: Examples, positions: Int[np.ndarray, "n"]):
        self._examples = examples
        self._positions = positions
        self.num_too_short = len(examples) - len(positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Record:
        return self._examples[int(self._positions[index])]

    @property
    def num_frames(self) -> Int[np.ndarray, "n"] | None:
        of_all = self._examples.num_frames
        return None if of_all is None else of_all[self._positions]


def usable(examples: Examples, transform: ClipTransform) -> Usable:
    """Filters out records too short for a clip, by their stored frame counts: nothing is decoded.

    Raises:
        ValueError: none is long enough.
    """
    num_frames = examples.num_frames
    if num_frames is None:
        return Usable(examples, np.arange(len(examples)))
    positions = np.flatnonzero(transform.num_starts(num_frames))
    if len(positions) == 0:
        longest = int(num_frames.max(initial=0))
        raise ValueError(
            f"ClipTransform.num_frames={transform.num_frames}, stride={transform.stride}: a clip takes "
            f"{transform.span} frames, but the longest of {len(num_frames)} videos has {longest}; "
            f"lower num_frames or stride"
        )
    return Usable(examples, positions)
