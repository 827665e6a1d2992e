"""Data: what a run learns from and is judged on, as a value of an experiment."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from dit_video.data.batch import Batch
from dit_video.data.loader import BatchIterator, held_out_batches, train_batches
from dit_video.data.record import Split
from dit_video.data.sources import LatentCache, Source
from dit_video.data.text_cache import Embeddings, TextCache
from dit_video.data.transforms import ClipTransform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A source, how clips are cut from it, and how many make a batch.

    Attributes:
        batch_size: clips in the global batch, over all processes and devices.
        cache: latents encoded from `source` with `dit-video encode`; training then reads these instead of
            video. Evaluation always reads the source.
        caption_bytes: length of captions in a batch, longer ones cut; a multiple of config.mesh.context. None where
            nothing reads them.
        text: embeddings of captions, made with `dit-video encode`; None where nothing reads them.
        num_threads: decoding threads of each process; the order of batches does not depend on it.
    """

    source: Source
    clips: ClipTransform
    batch_size: int
    cache: LatentCache | None = None
    caption_bytes: int | None = None
    text: TextCache | None = None
    num_threads: int = 8

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"Data.batch_size={self.batch_size}: must be at least 1")
        if self.caption_bytes is not None and self.caption_bytes < 2:
            raise ValueError(f"Data.caption_bytes={self.caption_bytes}: must be at least 2; one byte begins a caption")

    def train(
        self, seed: int, start: int, *, rows: Sequence[int] | None = None, replace: bool = False
    ) -> BatchIterator:
        """Training batches from number `start` on: all rows of each, or these alone.

        A record that cannot be read or decoded is replaced by another, or raises ValueError.
        """
        source = self.cache or self.source
        return train_batches(
            source.open(Split.TRAIN),
            self.clips,
            batch_size=self.batch_size,
            seed=seed,
            start=start,
            rows=rows,
            caption_bytes=self.caption_bytes,
            texts=self.texts(),
            num_threads=self.num_threads,
            replace=replace,
        )

    def texts(self) -> Embeddings | None:
        """What has the embeddings of captions, opened; None where nothing reads them."""
        return None if self.text is None else self.text.open()

    def identity(self) -> dict[str, Any]:
        """What decides which records there are, and which of them is in which batch; JSON."""
        return {"source": _identity(self.source), "cache": None if self.cache is None else _identity(self.cache)}

    def judged(self, split: Split, num_clips: int, batch_size: int, seed: int) -> Iterator[tuple[Batch, int]]:
        """The same `num_clips` clips of `split` at every call, with how many rows of each batch are real."""
        return held_out_batches(
            self.source.open(split),
            self.clips,
            num_clips=num_clips,
            batch_size=batch_size,
            seed=seed,
            caption_bytes=self.caption_bytes,
            texts=self.texts(),
        )


def _identity(source: Source) -> dict[str, Any]:
    info = source.info()
    return {
        "digest": info.digest,
        "split_digest": {split.value: digest for split, digest in info.split_digest.items()},
        "num_records": {split.value: number for split, number in info.num_records.items()},
        "class_names": list(info.class_names),
    }
