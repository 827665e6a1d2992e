"""The protocol of an evaluator, the clips it judges by, and what it reports."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from dit_video.data.batch import Batch
from dit_video.data.loader import held_out_batches, held_out_digest
from dit_video.data.record import Examples, Split
from dit_video.data.text_cache import Embeddings
from dit_video.data.transforms import ClipTransform
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import ClipShape


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluator found.

    Attributes:
        scalars: values by name, for the record and the curves.
        media: videos `uint8 [T H W 3]` by name, to look at.
        cards: numbers that carry their protocol, by name.
    """

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    media: Mapping[str, UInt8[np.ndarray, "T H W 3"]] = dataclasses.field(default_factory=dict)
    cards: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Clips to judge by, the same ones at every call.

    Attributes:
        batches: (split, num_clips, batch_size) -> batches of clips and how many of their rows are real.
        digest: (split, num_clips) -> sha256 of what decides these clips: stored content, first frames, cut.
        splits: which of them there are.
        shape: (T, H, W) of a clip.
        fps: frames per second of a clip.
        protocol: how clips are cut: stride, size, crop.
        references: where the clips come from, by split or otherwise; named on cards, no part of what is compared.
    """

    batches: Callable[[Split, int, int], Iterator[tuple[Batch, int]]]
    digest: Callable[[Split, int], str]
    splits: tuple[Split, ...]
    shape: ClipShape
    fps: float
    protocol: Mapping[str, Any]
    references: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        examples: Mapping[Split, Examples],
        transforms: Mapping[Split, ClipTransform],
        *,
        seed: int,
        references: Mapping[str, Any],
        caption_bytes: int | None = None,
        texts: Embeddings | None = None,
    ) -> "EvaluationData":
        """Clips cut from records; `seed` decides which windows, `caption_bytes` and `texts` are as in `collate`."""

        def batches(split: Split, num_clips: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
            return held_out_batches(
                examples[split],
                transforms[split],
                num_clips=num_clips,
                batch_size=batch_size,
                seed=seed,
                caption_bytes=caption_bytes,
                texts=texts,
            )

        @functools.cache
        def digest(split: Split, num_clips: int) -> str:
            return held_out_digest(examples[split], transforms[split], num_clips=num_clips, seed=seed)

        cut = transforms[Split.HELD_OUT]
        return cls(
            batches=batches,
            digest=digest,
            splits=tuple(examples),
            shape=(cut.num_frames, *cut.size),
            fps=examples[Split.HELD_OUT][0].fps / cut.stride,
            protocol=cut.protocol,
            references=references,
        )


@runtime_checkable
class Evaluator(Protocol):
    """Judges a subject every `every` steps. Values of this protocol are fields of an experiment."""

    @property
    def every(self) -> int: ...

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report: ...
