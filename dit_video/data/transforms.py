"""Clip transforms: temporal window, stride, resize, crop and flip of a stored record, still uint8."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit_video.config.bounds import above, at_least, between
from dit_video.data.record import Clip, Examples, Record
from dit_video.video.decode import decode_frames, scale
from dit_video.video.pictures import VideoError
from dit_video.video.times import at_rate


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """Cuts a clip: `num_frames` frames, `stride` apart or at `fps`,
    scaled to cover `size` with its aspect kept, then cropped to it.

    Scaling is by area downwards and bicubic upwards. Cached moments pass through whole: what is cut was
    decided when they were encoded.

    Attributes:
        stride: frames of the record from one of the clip to the next.
        fps: frames per second of the clip, in place of a stride: of each record those frames are taken that are
            nearest in time, of a slower one some of them twice. None takes frames as they are.
        size: height and width.
        random_crop: crop at a random place instead of the centre.
        flip_rate: share of clips mirrored left to right; 0 where left and right differ in meaning, as in
            text.
    """

    num_frames: int = 17
    stride: int = 1
    fps: float | None = None
    size: tuple[int, int] = (64, 64)
    random_crop: bool = False
    flip_rate: float = 0.0

    def __post_init__(self):
        if len(self.size) != 2:
            raise ValueError(f"ClipTransform.size={self.size}: must be (height, width)")
        at_least(self, 1, "num_frames", "stride", "size")
        between(self, 0, 1, "flip_rate")
        above(self, 0, "fps")
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"ClipTransform.fps={self.fps} and stride={self.stride}: give one of them")

    @property
    def protocol(self) -> dict[str, Any]:
        """How clips are cut, for an evaluation card, without their number of frames."""
        crop = "random" if self.random_crop else "centre"
        cut = {"stride": self.stride, "size": list(self.size), "crop": crop, "flip_rate": self.flip_rate}
        return cut if self.fps is None else {**cut, "resampled": f"to {self.fps:g} fps, nearest frame"}

    @property
    def draws(self) -> bool:
        """Whether anything besides the start of a clip is random (crop, flip)."""
        return self.random_crop or self.flip_rate > 0

    @property
    def reach(self) -> str:
        """How much of a record a clip takes, in words."""
        if self.fps is None:
            return f"{self.span()} frames"
        return f"{(self.num_frames - 1) / self.fps:.3g} seconds"

    def offsets(self, fps: float) -> Int[np.ndarray, "num_frames"]:
        """Frames of a record of this rate that make a clip, counted from the first."""
        if self.fps is None:
            return np.arange(self.num_frames) * self.stride
        return at_rate(fps, self.fps, self.num_frames)

    def span(self, fps: float = 0.0) -> int:
        """Number of frames of a record from the first to the last of a clip; `fps` is the record's."""
        return int(self.offsets(fps)[-1]) + 1

    def clip_fps(self, fps: float) -> float:
        """Frames per second of a clip of a record of this rate."""
        return fps / self.stride if self.fps is None else self.fps

    def num_starts(
        self, num_frames: Int[np.ndarray, "n"], fps: Float[np.ndarray, "n"] | None = None
    ) -> Int[np.ndarray, "n"]:
        """Number of possible start frames in videos of `num_frames` frames; 0 where they are too short.

        Args:
            fps: of the videos, where the transform has a rate of its own.
        """
        if self.fps is None:
            return np.maximum(num_frames - self.span() + 1, 0)
        if fps is None:
            raise ValueError(
                f"ClipTransform.fps={self.fps}: the source does not say the rates of its videos; use stride"
            )
        spans = {rate: self.span(rate) for rate in np.unique(fps).tolist()}
        return np.maximum(num_frames - np.array([spans[rate] for rate in fps.tolist()], int) + 1, 0)

    def resampled(self, fps: float) -> tuple[int, int]:
        """How many frames of a clip repeat the one before, and how many of the record between them are left out."""
        steps = np.diff(self.offsets(fps))
        return int((steps == 0).sum()), int(np.maximum(steps - 1, 0).sum())

    def __call__(self, record: Record, rng: np.random.Generator) -> Clip:
        """Cuts a clip at a random place of the record.

        Raises:
            ValueError: the record is too short, or does not decode; names the record.
        """
        if record.num_frames is None:
            return self.at(record, record.start, rng)
        span = self.span(record.fps)
        starts = record.num_frames - span + 1
        if starts < 1:
            raise ValueError(f"record {record.key!r}: {record.num_frames} frames, but a clip reaches over {span}")
        return self.at(record, int(rng.integers(starts)), rng)

    def at(self, record: Record, start: int, rng: np.random.Generator) -> Clip:
        """Cuts the clip that begins at frame `start`; `rng` decides crop and flip.

        Raises:
            ValueError: the video does not decode that far; names the record.
        """
        fields = {"key": record.key, "start": start, "label": record.label, "caption": record.caption}
        if record.video is None:
            of_clip = {"tokens": record.tokens, "actions": record.actions, "poses": record.poses}
            return Clip(moments=record.moments, fps=record.fps, **of_clip, **fields)
        try:
            video = self._cut(record, record.video, start)
        except VideoError as error:
            raise ValueError(f"record {record.key!r}: {error}") from error
        crop = [
            int(rng.integers(room + 1)) if self.random_crop else room // 2
            for room in (video.shape[1] - self.size[0], video.shape[2] - self.size[1])
        ]
        video = video[:, crop[0] : crop[0] + self.size[0], crop[1] : crop[1] + self.size[1]]
        if self.flip_rate and rng.random() < self.flip_rate:
            video = video[:, :, ::-1]
        reached = slice(start, start + self.span(record.fps))
        return Clip(
            video=np.ascontiguousarray(video),
            fps=self.clip_fps(record.fps),
            actions=None if record.actions is None else record.actions[reached],
            poses=None if record.poses is None else record.poses[reached],
            **fields,
        )

    def _cut(
        self, record: Record, video: bytes | UInt8[np.ndarray, "T H W 3"], start: int
    ) -> UInt8[np.ndarray, "t h w 3"]:
        places = start + self.offsets(record.fps)
        if isinstance(video, bytes):
            if record.frames is not None:
                if places[-1] >= len(record.frames):
                    raise VideoError(f"ends before frame {places[-1]}")
                places = record.frames[places]
            return decode_frames(video, places.tolist(), cover=self.size)
        if places[-1] >= len(video):
            raise VideoError(f"ends after {len(video)} frames")
        return scale(video[places], self.size)


def clip_rates(examples: Examples, transform: ClipTransform) -> tuple[float, ...]:
    """Frames per second of the clips that records give, the most frequent first.

    Where only reading the records would tell, it is that of the first.
    """
    rates, num_frames = examples.fps, examples.num_frames
    if rates is None:
        rates = np.array([examples[0].fps])
    elif num_frames is not None and (long := transform.num_starts(num_frames, rates) > 0).any():
        rates = rates[long]
    # A clip of moments has the rate with which it was encoded.
    if num_frames is not None:
        rates = np.array([transform.clip_fps(rate) for rate in rates.tolist()])
    distinct, counts = np.unique(rates, return_counts=True)
    return tuple(distinct[np.argsort(-counts, kind="stable")].tolist())


def said_rate(rates: Sequence[float]) -> float | list[float]:
    """Frames per second that are true of all clips: the rate, or the lowest and the highest."""
    return rates[0] if len(rates) == 1 else [min(rates), max(rates)]


def pace_note(examples: Examples, transform: ClipTransform) -> str:
    """What happens to the rates of records, where they differ or clips have one of their own; empty elsewhere."""
    rates = examples.fps
    if rates is None or examples.num_frames is None:
        return ""
    if transform.fps is None:
        of_clips = clip_rates(examples, transform)
        low, high = min(of_clips), max(of_clips)
        if len(of_clips) == 1:
            return ""
        return (
            f"clips have {low:.4g} to {high:.4g} frames a second, each its own; ClipTransform(fps=...), or --clip_fps "
            "of evaluate fvd, makes them equal"
        )
    doubled, left_out = np.mean([transform.resampled(rate) for rate in rates.tolist()], axis=0)
    return (
        f"clips are resampled to {transform.fps:g} frames a second: of the {transform.num_frames} of a clip "
        f"{doubled:.3g} repeat the one before, and {left_out:.3g} between them are left out, on the average"
    )


def length_note(examples: Examples, transform: ClipTransform) -> str:
    """How many records are too short for a clip, and so are never seen; empty where none is."""
    num_frames = examples.num_frames
    if num_frames is None:
        return ""
    short = int((transform.num_starts(num_frames, examples.fps) == 0).sum())
    return f"{short} of {len(examples)} videos are left out: shorter than the {transform.reach} of a clip" * bool(short)


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

    @property
    def fps(self) -> Float[np.ndarray, "n"] | None:
        of_all = self._examples.fps
        return None if of_all is None else of_all[self._positions]

    @property
    def sizes(self) -> Int[np.ndarray, "n 2"] | None:
        of_all = self._examples.sizes
        return None if of_all is None else of_all[self._positions]


def usable(examples: Examples, transform: ClipTransform) -> Usable:
    """Filters out records too short for a clip, by their stored frame counts: nothing is decoded.

    Raises:
        ValueError: none is long enough.
    """
    num_frames = examples.num_frames
    if num_frames is None:
        return Usable(examples, np.arange(len(examples)))
    fps = None if transform.fps is None else examples.fps
    positions = np.flatnonzero(transform.num_starts(num_frames, fps))
    if len(positions) == 0:
        longest = int(num_frames.max(initial=0))
        pace = f"stride={transform.stride}" if transform.fps is None else f"fps={transform.fps:g}"
        remedy = "lower num_frames or stride" if transform.fps is None else "lower num_frames or raise fps"
        raise ValueError(
            f"ClipTransform.num_frames={transform.num_frames}, {pace}: a clip takes "
            f"{transform.reach}, but the longest of {len(num_frames)} videos has {longest}"
            f"{'' if transform.fps is None else ' frames'}; {remedy}"
        )
    return Usable(examples, positions)
