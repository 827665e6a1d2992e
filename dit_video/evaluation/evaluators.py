"""Evaluators that run during training: held-out loss, sample grids, reconstruction PSNR and SSIM."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from dit_video.config.bounds import at_least
from dit_video.data.record import Split
from dit_video.evaluation.reconstruction import finite_psnr, mean_frames, ssim
from dit_video.tasks.evaluator import EvaluationData, Evaluator, Report
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, RECONSTRUCT, VALIDATE


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutError(Evaluator):
    """The task's own errors on held-out clips, with the same clips and the same noise every time."""

    needs = (VALIDATE,)

    num_clips: int = 64
    batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_clips", "batch_size")

    def num_judged(self) -> Mapping[Split, int]:
        return {Split.HELD_OUT: self.num_clips}

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        errors, size = defaultdict(list), subject.batch_size(self.batch_size)
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size), "held-out error")
            for name, values in subject(VALIDATE, batch, keys).items():
                errors[name].append(values[:valid])
        return Report(scalars={name: float(np.concatenate(values).mean()) for name, values in errors.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples(Evaluator):
    """Samples to look at, with the same noise every time: of videos a grid, with held-out clips above, and below each a
    sample of the same label or caption.
    """

    needs = (GENERATE,)

    num_clips: int = 8

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_clips")

    def num_judged(self) -> Mapping[Split, int]:
        return {Split.HELD_OUT: self.num_clips}

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        size = subject.batch_size(self.num_clips)
        batch, valid = next(data.batches(Split.HELD_OUT, self.num_clips, size))
        made = subject(GENERATE, batch, clip_keys(seed, range(size)), data.shape)[:valid]
        if batch.video is not None and made.shape[1:] == batch.video.shape[1:]:
            made = np.concatenate([np.asarray(batch.video)[:valid], made])
        shown = subject.show(GENERATE, made, valid, data.fps)
        return Report(media={} if shown is None else {"samples": shown})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Evaluator):
    """PSNR in dB and SSIM of held-out clips through the codec, and some of them below their originals.

    A clip without any error counts as if one value of it were off by one. `psnr_mean_frame` is the PSNR of each clip's
    own mean frame: what a codec that ignores motion could reach.
    """

    needs = (RECONSTRUCT,)

    num_clips: int = 64
    batch_size: int = 16
    num_shown: int = 8

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_clips", "batch_size", "num_shown")

    def num_judged(self) -> Mapping[Split, int]:
        return {Split.HELD_OUT: self.num_clips}

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        errors, shown = defaultdict(list), []
        size = subject.batch_size(self.batch_size)
        for batch, valid in data.batches(Split.HELD_OUT, self.num_clips, size):
            video, rebuilt = np.asarray(batch.require_video())[:valid], subject(RECONSTRUCT, batch)[:valid]
            # Equal clips are infinitely alike; one of them must not make the mean infinite.
            errors["psnr"].append(finite_psnr(video, rebuilt))
            errors["ssim"].append(ssim(video, rebuilt))
            errors["psnr_mean_frame"].append(finite_psnr(video, mean_frames(video)))
            if sum(len(above) for above, _ in shown) < self.num_shown:
                shown.append((video[: self.num_shown], rebuilt[: self.num_shown]))
        video, rebuilt = (np.concatenate(parts)[: self.num_shown] for parts in zip(*shown))
        return Report(
            scalars={name: float(np.concatenate(values).mean()) for name, values in errors.items()},
            media={"reconstruction": pairs(video, rebuilt, data.fps)},
        )


def pairs(above: np.ndarray, below: np.ndarray, fps: float) -> Video:
    """One grid of two rows of clips."""
    return Video.of_rows(np.concatenate([above, below]), len(above), fps)
