"""Evaluation of stored videos, made by any program, without a training run."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dit_video.data.record import Split
from dit_video.data.transforms import ClipTransform, usable
from dit_video.evaluation.fvd import numbered
from dit_video.ingest.video_folder import OpenedVideos
from dit_video.tasks.evaluator import EvaluationData

Size = tuple[int, int]
"""(height, width)"""


def clip_transform(
    videos: OpenedVideos, *, num_frames: int, stride: int, size: Size | None, fps: float | None = None
) -> ClipTransform:
    """Transform that cuts clips from these videos: whole frames, or scaled to cover `size` and cropped to it.

    Raises:
        ValueError: no size is given and the videos have several.
    """
    sizes, counts = np.unique(videos.sizes, axis=0, return_counts=True)
    if size is None and len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({n})" for (h, w), n in zip(sizes.tolist()[:4], counts.tolist()))
        raise ValueError(f"{videos.description['name']}: its videos have {len(sizes)} sizes ({shown}): give --size=H,W")
    height, width = sizes[0].tolist() if size is None else size
    return ClipTransform(num_frames=num_frames, stride=stride, fps=fps, size=(height, width))


def num_videos(videos: OpenedVideos, transform: ClipTransform) -> int:
    """Number of videos that are long enough for a clip."""
    return len(usable(videos.examples, transform))


def described(videos: OpenedVideos, transform: ClipTransform) -> dict[str, Any]:
    """Description of the videos for a card, where those too short for a clip are among what was left out."""
    frames = videos.examples.num_frames
    counts = [] if frames is None else zip(videos.names, frames, transform.num_starts(frames, videos.examples.fps))
    short = {name: f"too short: {n} frames, a clip takes {transform.reach}" for name, n, starts in counts if not starts}
    return videos.description | {"skipped": videos.description["skipped"] | short}


class StoredSamples:
    """Stored samples of any program, as a `fvd.SampleSource`."""

    paired = False
    # Through what codec they came, if any, is not known.
    reconstruct = None

    def __init__(self, videos: OpenedVideos, transform: ClipTransform, environment: Mapping[str, Any], *, seed: int):
        """`environment` describes software and hardware for the card."""
        self._environment = environment
        self._data = EvaluationData.of(
            {Split.HELD_OUT: videos.examples},
            {Split.HELD_OUT: transform},
            seed=seed,
            references=described(videos, transform),
        )

    def batches(self, num_clips: int, batch_size: int) -> Iterator[UInt8[np.ndarray, "n T H W 3"]]:
        for batch, valid in self._data.batches(Split.HELD_OUT, num_clips, batch_size):
            yield np.asarray(batch.require_video())[:valid]

    def numbered(self, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> UInt8[np.ndarray, "n T H W 3"]:
        return np.asarray(numbered(self._data, Split.HELD_OUT, clips, num_clips, batch_size).require_video())

    def describe(self, num_clips: int) -> dict[str, Any]:
        return {
            **self._data.references,
            **self._data.protocol,
            "content": self._data.digest(Split.HELD_OUT, num_clips),
            "fps": self._data.said_fps,
            "environment": dict(self._environment),
        }

    def notes(self, data: EvaluationData) -> list[str]:
        ours, theirs = self._data, data
        differing = {
            "frames per second": (_shown(ours.said_fps), _shown(theirs.said_fps)),
            "height and width": (ours.shape[1:], theirs.shape[1:]),
        }
        notes = [
            f"the clips judged have {a} {what}, the real ones {b}: part of the value may be just that"
            for what, (a, b) in differing.items()
            if a != b
        ]
        return notes + [f"judged: {note}" for note in ours.notes]


def _shown(rate: float | list[float]) -> str:
    return " to ".join(f"{fps:.4g}" for fps in (rate if isinstance(rate, list) else [rate]))
