"""Stored videos as clips to judge: no training run is needed, and any program may have made them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dit_video.data.batch import Batch, Split
from dit_video.data.loader import held_out_batches, held_out_digest
from dit_video.data.transforms import ClipTransform, usable
from dit_video.data.video_folder import OpenedVideos
from dit_video.evaluation.fvd import Others, pick
from dit_video.tasks.task import EvaluationData

Size = tuple[int, int]
"""(height, width)"""


def clip_transform(videos: OpenedVideos, *, num_frames: int, stride: int, size: Size | None) -> ClipTransform:
    """How clips are cut from these videos: whole frames, or scaled to cover `size` and cropped to it.

    Raises:
        ValueError: no size is given and the videos have several.
    """
    sizes, counts = np.unique(videos.sizes, axis=0, return_counts=True)
    if size is None and len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({n})" for (h, w), n in zip(sizes.tolist()[:4], counts.tolist()))
        raise ValueError(f"{videos.description['name']}: its videos have {len(sizes)} sizes ({shown}): give --size=H,W")
    height, width = sizes[0].tolist() if size is None else size
    return ClipTransform(num_frames=num_frames, stride=stride, size=(height, width))


def num_videos(videos: OpenedVideos, transform: ClipTransform) -> int:
    """Videos that are long enough for a clip."""
    return len(usable(videos.examples, transform))


def clips_of(
    sets: Mapping[Split, OpenedVideos], transforms: Mapping[Split, ClipTransform], *, whole_frames: bool, seed: int
) -> EvaluationData:
    """Real clips to judge by, held out and (where there are any) trained on. `seed` decides the windows."""

    def batches(split: Split, num_clips: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
        return held_out_batches(
            sets[split].examples, transforms[split], num_clips=num_clips, batch_size=batch_size, seed=seed
        )

    def digest(split: Split, num_clips: int) -> str:
        return held_out_digest(sets[split].examples, transforms[split], num_clips=num_clips, seed=seed)

    cut = transforms[Split.HELD_OUT]
    return EvaluationData(
        batches=batches,
        digest=digest,
        splits=tuple(sets),
        shape=(cut.num_frames, *cut.size),
        fps=sets[Split.HELD_OUT].examples[0].fps / cut.stride,
        protocol={
            "stride": cut.stride,
            "size": list(cut.size),
            "crop": "none" if whole_frames else "centre",
            "windows": seed,
        },
    )


class Stored:
    """Samples that another program has written, as `evaluation.fvd.Judged`."""

    def __init__(
        self,
        videos: OpenedVideos,
        transform: ClipTransform,
        environment: Mapping[str, Any],
        *,
        whole_frames: bool,
        seed: int,
    ):
        """`environment` is what the card says of software and hardware."""
        self._videos, self._transform, self._environment = videos, transform, environment
        cut = {Split.HELD_OUT: transform}
        self._data = clips_of({Split.HELD_OUT: videos}, cut, whole_frames=whole_frames, seed=seed)

    @property
    def num_videos(self) -> int:
        return num_videos(self._videos, self._transform)

    def batches(self, num_clips: int, batch_size: int) -> Iterator[tuple[UInt8[np.ndarray, "n T H W 3"], Others]]:
        for batch, valid in self._data.batches(Split.HELD_OUT, num_clips, batch_size):
            yield np.asarray(batch.require_video())[:valid], dict

    def pick(self, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> UInt8[np.ndarray, "n T H W 3"]:
        return np.asarray(pick(self._data, Split.HELD_OUT, clips, num_clips, batch_size).require_video())

    def describe(self, num_clips: int) -> dict[str, Any]:
        return {
            **self._videos.description,
            "content": self._data.digest(Split.HELD_OUT, num_clips),
            "size": self._data.protocol["size"],
            "stride": self._data.protocol["stride"],
            "fps": self._data.fps,
            "environment": dict(self._environment),
        }
