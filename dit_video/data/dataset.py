"""Data: what a run learns from and is judged on, as a value of an experiment."""

import dataclasses
from collections.abc import Iterator

from dit_video.data.batch import Batch, Split
from dit_video.data.loader import BatchIterator, held_out_batches, train_batches
from dit_video.data.sources import LatentCache, Source
from dit_video.data.transforms import ClipTransform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A source, how clips are cut from it, and how many make a batch.

    Attributes:
        batch_size: clips in the global batch, over all processes and devices.
        cache: latents encoded from `source` with `dit-video encode`; training then reads these instead of
            video. Evaluation always reads the source.
        num_threads: decoding threads of each process; the order of batches does not depend on it.
    """

    source: Source
    clips: ClipTransform
    batch_size: int
    cache: LatentCache | None = None
    num_threads: int = 8

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"Data.batch_size={self.batch_size}: must be at least 1")

    def train(self, seed: int, start: int, *, process_index: int, process_count: int) -> BatchIterator:
        """Training batches from number `start` on; this process gets its rows of each."""
        source = self.cache or self.source
        return train_batches(
            source.open(Split.TRAIN),
            self.clips,
            batch_size=self.batch_size,
            seed=seed,
            start=start,
            process_index=process_index,
            process_count=process_count,
            num_threads=self.num_threads,
        )

    def judged(self, split: Split, num_clips: int, batch_size: int, seed: int) -> Iterator[tuple[Batch, int]]:
        """The same `num_clips` clips of `split` at every call, with how many rows of each batch are real."""
        return held_out_batches(
            self.source.open(split), self.clips, num_clips=num_clips, batch_size=batch_size, seed=seed
        )
