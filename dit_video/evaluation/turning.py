"""Whether a world turns the way that its actions say, after the known frames and at the end of a long roll-out."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from dit_video.config.bounds import at_least
from dit_video.data.dataset import Data
from dit_video.data.record import Split
from dit_video.data.signals import ACTION, Actions
from dit_video.evaluation.worlds import LongRollOutEvaluator
from dit_video.tasks.evaluator import EvaluationData, Report
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import Task

Frames = UInt8[np.ndarray, "*batch H W 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turning(LongRollOutEvaluator):
    """Share of turns in which the picture goes the way that the camera turns: left, and it moves to the right.

    The way of a picture is that of the shift of columns at which two frames differ least (`column_shift`); one that
    stands still is wrong. `near` is of the frames of clips after those that are known, `end` of the last frames of long
    roll-outs, `true` of the clips themselves; one of which no frame turns is absent.

    Attributes:
        left, right: numbers of the actions that turn the camera.
    """

    num_clips: int = 16
    batch_size: int = 16
    num_known: int = 4
    left: int
    right: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 0, "left", "right")

    def check(self, task: Task, data: Data) -> None:
        super().check(task, data)
        match data.signals[ACTION]:
            case Actions(names=names) if max(self.left, self.right) >= len(names):
                raise ValueError(
                    f"Turning.left={self.left}, right={self.right}: must be numbers of the {len(names)} actions "
                    f"({', '.join(names)})"
                )

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        agreed: dict[str, list[Bool[np.ndarray, "n"]]] = {"near": [], "end": [], "true": []}
        size = subject.batch_size(self.batch_size)
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size), "turning")
            video, length = np.asarray(batch.require_video()), batch.require_video().shape[1]
            own, first = np.asarray(batch.require_signal(ACTION)), self.num_known
            actions = self.actions_in_turn(batch)  # which begin with a clip's own
            made = self.rolled_out(subject, data, batch, actions, keys)
            for name, clips, done, span in (
                ("near", made, actions, slice(first, min(length, self.num_frames))),
                ("end", made, actions, slice(self.num_frames - self.num_last, self.num_frames)),
                ("true", video, own, slice(first, length)),
            ):
                agreed[name].append(self._agreed(clips[:valid], done[:valid], span))
        turns = {name: np.concatenate(parts) for name, parts in agreed.items()}
        return Report(scalars={name: float(right.mean()) for name, right in turns.items() if len(right)})

    def _agreed(self, clips: Frames, actions: Any, span: slice) -> Bool[np.ndarray, "n"]:
        """Of each turn in `span`, whether the picture went its way."""
        clip, frame = np.nonzero(np.isin(actions[:, span], (self.left, self.right)))
        frame = frame + span.start
        shift = column_shift(clips[clip, frame - 1], clips[clip, frame])
        return np.where(actions[clip, frame] == self.left, shift > 0, shift < 0)


def column_shift(before: Frames, after: Frames) -> Int[np.ndarray, "*batch"]:
    """By how many columns to the right a picture has moved: block matching (Jain and Jain 1981) of a whole frame.

    Compared are the columns that both frames have, by mean absolute difference, at shifts of up to three eighths of
    the width; of equal ones the smallest shift.
    """
    width = before.shape[-2]
    most = 3 * width // 8
    shifts = np.array(sorted(range(-most, most + 1), key=abs))
    a, b = before.astype(np.int16), after.astype(np.int16)
    differences = [
        np.abs(b[..., max(k, 0) : width + min(k, 0), :] - a[..., max(-k, 0) : width - max(k, 0), :]).mean((-3, -2, -1))
        for k in shifts
    ]
    return np.asarray(shifts[np.argmin(differences, axis=0)])
