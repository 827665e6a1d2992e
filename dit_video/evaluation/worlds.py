"""Evaluators of worlds: whether frames follow actions, how errors grow with the horizon, and what is left after long.

Roll-outs begin with known frames of held-out clips and go on by their actions, by those of other clips, or by none,
with the same noise each time.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit_video.config.bounds import at_least
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.record import Split
from dit_video.data.signals import ACTION
from dit_video.evaluation.evaluators import pairs
from dit_video.evaluation.reconstruction import finite_psnr
from dit_video.tasks.evaluator import EvaluationData, Evaluator, Report
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import ROLL_OUT, VALIDATE, Task

Clips = UInt8[np.ndarray, "B T H W 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollOutEvaluator(Evaluator):
    """Base of evaluators that roll held-out clips out from their first frames.

    Attributes:
        num_known: first frames that are known, 1 + s k for a codec of s frames in a latent frame.
    """

    needs = (ROLL_OUT,)

    num_clips: int
    batch_size: int
    num_known: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_clips", "batch_size", "num_known")

    def num_judged(self) -> Mapping[Split, int]:
        return {Split.HELD_OUT: self.num_clips}

    def check(self, task: Task, data: Data) -> None:
        super().check(task, data)
        if ACTION not in data.signals:
            raise ValueError(
                f"{type(self).__name__}: clips come without actions; add config.data.signals.{ACTION}=Actions(...)"
            )
        frames, last = data.clips.num_frames, self.num_known + self.last_horizon
        if last > frames:
            raise ValueError(
                f"{type(self).__name__}.num_known={self.num_known}: with {self.last_horizon} frames after them clips "
                f"must have {last}, config.data.clips.num_frames={frames}"
            )

    @property
    def last_horizon(self) -> int:
        """How many frames after the known ones the clips must have."""
        return 1

    def rolled_out(self, subject: Subject, data: EvaluationData, batch: Batch, actions: Any, keys: Any) -> Clips:
        """The known frames of a batch and what follows by `actions`, which are as many as frames."""
        known = batch.require_video()[:, : self.num_known]
        asked = batch._replace(video=known, signals={**batch.signals, ACTION: actions})
        return np.asarray(subject(ROLL_OUT, asked, keys, data.shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRollOutEvaluator(RollOutEvaluator):
    """Base of evaluators of what is left of a world after many frames.

    Attributes:
        num_frames: frames of a roll-out, 1 + s k; actions are those of the clips of a batch, one after the other.
        num_last: frames at its end that are judged.
    """

    num_frames: int = 501
    num_last: int = 100

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_last")
        if self.num_frames < self.num_known + self.num_last:
            raise ValueError(
                f"{type(self).__name__}.num_frames={self.num_frames}: must be at least num_known={self.num_known} and "
                f"num_last={self.num_last} together"
            )

    def actions_in_turn(self, batch: Batch) -> Int[np.ndarray, "B n"] | Float[np.ndarray, "B n A"]:
        """Actions of `num_frames` frames: of each clip its own, then those of the next of the batch, and so on."""
        actions = np.asarray(batch.require_signal(ACTION))
        rows = [np.concatenate(np.roll(actions[:, 1:], -row, axis=0)) for row in range(len(actions))]
        times = -(-self.num_frames // len(rows[0]))
        long = np.stack([np.concatenate([row] * times)[: self.num_frames - 1] for row in rows])
        return np.concatenate([actions[:, :1], long], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionResponse(RollOutEvaluator):
    """Whether and how well frames follow actions, at some horizons after the known frames.

    For each horizon h, means over clips in dB:

        psnr/h      of roll-outs by the true actions
        copy/h      of the last known frame, held still
        withheld/h  of roll-outs of which no action is known
        dpsnr/h     psnr less that of roll-outs by the actions of another clip (Genie, 2402.15391)

    and `loss_ratio`, the held-out error with the actions of another clip over that with the true ones, of the same
    noise at the same levels.

    Attributes:
        horizons: which frames after the known ones are judged.
        num_shown: roll-outs to look at, below the clips that they are of.
    """

    needs = (ROLL_OUT, VALIDATE)

    num_clips: int = 64
    batch_size: int = 16
    num_known: int = 4
    horizons: tuple[int, ...] = (1, 4, 16)
    num_shown: int = 8

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_shown")
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"ActionResponse.horizons={self.horizons}: must be numbers of frames, at least 1")

    @property
    def last_horizon(self) -> int:
        return max(self.horizons)

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        values, errors, shown = defaultdict(list), defaultdict(list), []
        size = subject.batch_size(self.batch_size)
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size), "action response")
            video, true = np.asarray(batch.require_video()), np.asarray(batch.require_signal(ACTION))
            by = {"psnr": true, "other": self._of_others(true), "withheld": self._withheld(true)}
            made = {name: self.rolled_out(subject, data, batch, actions, keys) for name, actions in by.items()}
            made["copy"] = np.repeat(video[:, self.num_known - 1 : self.num_known], video.shape[1], axis=1)
            for horizon in self.horizons:
                frame = slice(self.num_known + horizon - 1, self.num_known + horizon)
                for name, clips in made.items():
                    values[name, horizon].append(finite_psnr(video[:valid, frame], clips[:valid, frame]))
            for name, actions in (("true", true), ("other", np.roll(true, 1, axis=0))):
                judged = batch._replace(signals={**batch.signals, ACTION: actions})
                errors[name].append(_first(subject(VALIDATE, judged, keys))[:valid])
            if sum(len(above) for above, _ in shown) < self.num_shown:
                shown.append((video[:valid][: self.num_shown], made["psnr"][:valid][: self.num_shown]))
        psnr = {name: float(np.concatenate(parts).mean()) for name, parts in values.items()}
        scalars = {f"{name}/{h}": psnr[name, h] for name in ("psnr", "copy", "withheld") for h in self.horizons}
        scalars |= {f"dpsnr/{h}": psnr["psnr", h] - psnr["other", h] for h in self.horizons}
        other, true = (np.concatenate(errors[name]).mean() for name in ("other", "true"))
        above, below = (np.concatenate(parts)[: self.num_shown] for parts in zip(*shown))
        return Report(
            scalars=scalars | {"loss_ratio": float(other / true)}, media={"roll-outs": pairs(above, below, data.fps)}
        )

    def _of_others(self, actions: np.ndarray) -> np.ndarray:
        """True ones up to the last known frame, then those of the clip before in the batch."""
        return np.concatenate([actions[:, : self.num_known], np.roll(actions, 1, axis=0)[:, self.num_known :]], axis=1)

    def _withheld(self, actions: np.ndarray) -> np.ndarray:
        none = np.full_like(actions, -1 if np.issubdtype(actions.dtype, np.integer) else np.nan)
        return np.concatenate([actions[:, : self.num_known], none[:, self.num_known :]], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift(LongRollOutEvaluator):
    """What is left of a world after long roll-outs: statistics of the last frames over those of real clips.

    `mean`, `contrast` (deviation over pixels), `sharpness` (mean difference of neighbours) and `motion` (mean
    difference of frames): 1 each, where nothing drifts.
    """

    num_clips: int = 8
    batch_size: int = 8
    num_known: int = 4

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 2, "num_last")

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        real, last = defaultdict(list), defaultdict(list)
        shown, size = [], subject.batch_size(self.batch_size)
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size), "drift")
            video = np.asarray(batch.require_video())
            made = self.rolled_out(subject, data, batch, self.actions_in_turn(batch), keys)
            for into, clips in ((real, video), (last, made[:, -self.num_last :])):
                for name, values in statistics(clips[:valid]).items():
                    into[name].append(values)
            shown.append(made[:valid])
        means = {name: (np.concatenate(last[name]).mean(), np.concatenate(real[name]).mean()) for name in real}
        ratios = {name: float(ours / max(theirs, 1e-6)) for name, (ours, theirs) in means.items()}
        ends = np.concatenate(shown)[:, -self.num_last :]
        return Report(scalars=ratios, media={"end": Video.of_rows(ends, len(ends), data.fps)})


def statistics(clips: Clips) -> dict[str, Float[np.ndarray, "B"]]:
    """Of each clip mean, contrast, sharpness and motion, in grey levels."""
    x = clips.astype(np.float32)
    axes = (1, 2, 3, 4)
    sharp = (np.abs(np.diff(x, axis=axis)).mean(axis=axes) for axis in (2, 3))
    return {
        "mean": x.mean(axis=axes),
        "contrast": x.std(axis=(2, 3, 4)).mean(axis=1),
        "sharpness": np.mean(list(sharp), axis=0),
        "motion": np.abs(np.diff(x, axis=1)).mean(axis=axes),
    }


def _first(errors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The task's mean error, which is the first that it names."""
    return next(iter(errors.values()))
