"""Evaluators: metrics of a trained task, computed during training or afterwards; their data and their reports."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from dit_video.config.bounds import at_least
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.loader import held_out_batches, held_out_digest
from dit_video.data.record import Examples, Split
from dit_video.data.signals import DEFAULT_SIGNALS, Signal
from dit_video.data.transforms import ClipTransform, clip_rates, length_note, pace_note, said_rate
from dit_video.tasks.media import Media
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of an evaluator.

    Attributes:
        scalars: values by name, for the record and the curves.
        media: what is to be looked at or read, by name.
        cards: numbers that carry their protocol, by name.
    """

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    media: Mapping[str, Media] = dataclasses.field(default_factory=dict)
    cards: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def _no_run(folder: str) -> Subject:
    raise ValueError(f"{folder}: these clips are judged apart from any run, and so none is opened")


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Held-out and training clips for evaluators, the same ones at every call.

    Attributes:
        batches: (split, num_clips, batch_size) -> batches of clips and how many of their rows are real.
        digest: (split, num_clips) -> sha256 of what decides these clips: stored content, first frames, cut.
        splits: which of them there are.
        shape: (T, H, W) of a clip.
        rates: frames per second of held-out clips, the most frequent first: one, or several that differ.
        notes: what a card says of these clips.
        protocol: how clips are cut: stride, size, crop.
        references: where the clips come from, by split or otherwise; named on cards, no part of what is compared.
        open_run: (folder) -> the trained run in it, by which an evaluator judges.
    """

    batches: Callable[[Split, int, int], Iterator[tuple[Batch, int]]]
    digest: Callable[[Split, int], str]
    splits: tuple[Split, ...]
    shape: tuple[int, int, int]
    rates: tuple[float, ...]
    protocol: Mapping[str, Any]
    references: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    open_run: Callable[[str], Subject] = _no_run

    @property
    def fps(self) -> float:
        """Frames per second at which clips are shown: that of most."""
        return self.rates[0]

    @property
    def said_fps(self) -> float | list[float]:
        """Frames per second that are true of all clips: the rate, or the lowest and the highest."""
        return said_rate(self.rates)

    @classmethod
    def of(
        cls,
        examples: Mapping[Split, Examples],
        transforms: Mapping[Split, ClipTransform],
        *,
        seed: int,
        references: Mapping[str, Any],
        signals: Mapping[str, Signal] = DEFAULT_SIGNALS,
        open_run: Callable[[str], Subject] = _no_run,
    ) -> "EvaluationData":
        """Clips cut from records; `seed` decides which windows, `signals` accompany them."""

        def batches(split: Split, num_clips: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
            return held_out_batches(
                examples[split],
                transforms[split],
                num_clips=num_clips,
                batch_size=batch_size,
                seed=seed,
                signals=signals,
            )

        @functools.cache
        def digest(split: Split, num_clips: int) -> str:
            return held_out_digest(examples[split], transforms[split], num_clips=num_clips, seed=seed)

        # A set without held-out clips can be trained on, and its run sampled.
        shown = Split.HELD_OUT if Split.HELD_OUT in examples else Split.TRAIN
        cut = transforms[shown]
        return cls(
            batches=batches,
            digest=digest,
            splits=tuple(examples),
            shape=(cut.num_frames, *cut.size),
            rates=clip_rates(examples[shown], cut),
            protocol=cut.protocol,
            references=references,
            notes=tuple(filter(None, [pace_note(examples[shown], cut), length_note(examples[shown], cut)])),
            open_run=open_run,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(abc.ABC):
    """Metric of a trained task, computed every `every` steps. Its values are fields of an experiment.

    Attributes:
        needs: functions of the task that it calls.
    """

    every: int
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        at_least(self, 1, "every")

    @abc.abstractmethod
    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report: ...

    def num_judged(self) -> Mapping[Split, int]:
        """How many different clips it takes of each split; by default none."""
        return {}

    def check(self, task: Task, data: Data) -> None:
        """Rules between the evaluator, the task and the data, checked before anything is read or compiled.

        Raises:
            ValueError: the task cannot do what is judged, or the data lack it; says what to change.
        """
        del data
        functions = task.functions()
        if missing := [name for name in self.needs if name not in functions]:
            raise ValueError(
                f"{type(self).__name__} calls {' and '.join(map(repr, missing))}, but a {type(task).__name__} has "
                f"{', '.join(functions) or 'no functions'}; take the evaluator out of config.evaluators"
            )
