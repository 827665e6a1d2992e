"""Evaluators that run during training: held-out loss, sample grids, reconstruction PSNR and SSIM."""

import dataclasses
from collections import defaultdict

import numpy as np

from dit_video.data.record import Split
from dit_video.evaluation.reconstruction import psnr, ssim
from dit_video.tasks.evaluator import EvaluationData, Report
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.video.encode import grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutError:
    """Validation loss: the task's errors on held-out clips, with the same clips and the same noise every time."""

    every: int
    num_clips: int = 64
    batch_size: int = 16

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        errors, size = defaultdict(list), subject.batch_size(self.batch_size)
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size), "held-out error")
            for name, values in subject.validate(batch, keys).items():
                errors[name].append(values[:valid])
        return Report(scalars={name: float(np.concatenate(values).mean()) for name, values in errors.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Sample grid: held-out clips above, and below each a sample of the same label or caption.

    The noise is the same every time.
    """

    every: int
    num_clips: int = 8

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        size = subject.batch_size(self.num_clips)
        batch, valid = next(data.batches(Split.HELD_OUT, self.num_clips, size))
        made = subject.generate(batch, clip_keys(seed, range(size)), data.shape)
        return Report(media={"samples": rows(np.asarray(batch.require_video())[:valid], made[:valid])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Reconstruction quality of the codec: PSNR in dB and SSIM of held-out clips, with a grid of some.

    A clip without any error counts as if one value of it were off by one. `psnr_mean_frame` is the PSNR of each clip's
    own mean frame: what a codec that ignores motion could reach.
    """

    every: int
    num_clips: int = 64
    batch_size: int = 16
    num_shown: int = 8

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        errors, shown = defaultdict(list), []
        size = subject.batch_size(self.batch_size)
        for batch, valid in data.batches(Split.HELD_OUT, self.num_clips, size):
            video, rebuilt = np.asarray(batch.require_video())[:valid], subject.reconstruct(batch)[:valid]
            still = np.broadcast_to(video.mean(axis=1, keepdims=True).round().astype(np.uint8), video.shape)
            # Equal clips are infinitely alike; one of them must not make the mean infinite.
            most = 10 * np.log10(255.0**2 * video[0].size)
            errors["psnr"].append(np.minimum(psnr(video, rebuilt), most))
            errors["ssim"].append(ssim(video, rebuilt))
            errors["psnr_mean_frame"].append(np.minimum(psnr(video, still), most))
            if sum(len(above) for above, _ in shown) < self.num_shown:
                shown.append((video[: self.num_shown], rebuilt[: self.num_shown]))
        video, rebuilt = (np.concatenate(parts)[: self.num_shown] for parts in zip(*shown))
        return Report(
            scalars={name: float(np.concatenate(values).mean()) for name, values in errors.items()},
            media={"reconstruction": rows(video, rebuilt)},
        )


def rows(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Video grid of two rows of clips, [T H W 3]."""
    return grid(np.concatenate([above, below]), columns=len(above))
