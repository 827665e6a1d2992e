"""Data: what a run learns from and is judged on, as a value of an experiment."""

import dataclasses
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.config.bounds import at_least
from dit_video.config.json_file import check_kinds
from dit_video.data.batch import Batch
from dit_video.data.inventory import Inventory, take_inventory
from dit_video.data.loader import BatchIterator, BatchOrder, held_out_batches, mixed_batches, train_batches
from dit_video.data.record import Split
from dit_video.data.shapes import BatchShape
from dit_video.data.shard_files import Sharded, check_contents
from dit_video.data.signals import DEFAULT_SIGNALS, Signal
from dit_video.data.sources import LatentCache, Source, TextSet
from dit_video.data.text_tokens import PROMPT, TOKENS, TextPrompt, TextTokens
from dit_video.data.transforms import ClipTransform
from dit_video.data.video_set import MANIFEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A source, how clips are cut from it, and how many make a batch.

    Attributes:
        clips: how clips are cut; evaluation judges clips of this shape, and samples have it.
        batch_size: clips in the global batch, over all processes and devices.
        shapes: of training clips, where they have several: each batch has one of them, each record goes to the one in
            which it loses least (data/shapes.py). Empty: all clips have the shape of `clips`.
        batch_multiple: batch sizes of shapes are chosen as multiples of it: of the devices along data and fsdp, times
            num_microbatches. A value of the data, so that their order does not depend on devices.
        cache: latents encoded from `source` with `dit-video encode`; training then reads these instead of
            video. Evaluation always reads the source.
        signals: what accompanies the clips of a batch (data/signals.py), by the names that conditions read; by default
            the class of each.
        num_threads: decoding threads of each process; the order of batches does not depend on it.
    """

    source: Source
    clips: ClipTransform
    batch_size: int
    shapes: tuple[BatchShape, ...] = ()
    batch_multiple: int = 1
    cache: LatentCache | None = None
    signals: Mapping[str, Signal] = dataclasses.field(default_factory=lambda: dict(DEFAULT_SIGNALS))
    num_threads: int = 8

    def __post_init__(self):
        at_least(self, 1, "batch_size", "batch_multiple", "num_threads")
        clips = [shape.clip for shape in self.shapes]
        if twice := [clip for clip in clips if clips.count(clip) > 1]:
            raise ValueError(f"Data.shapes: {twice[0]} is there {clips.count(twice[0])} times; leave one")
        for name, signal in self.signals.items():
            try:
                signal.check_clips(self.clips)
            except ValueError as error:
                raise ValueError(f"Data.signals.{name}: {error}") from error

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Clips of each global batch, or what these will be multiples of, by the field that says so."""
        sizes = {f"shapes[{number}].batch_size": shape.batch_size for number, shape in enumerate(self.shapes)}
        fixed = {name: size for name, size in sizes.items() if size is not None}
        chosen = {"batch_multiple": self.batch_multiple} if len(fixed) < len(sizes) else {}
        return fixed | chosen if self.shapes else {"batch_size": self.batch_size}

    @classmethod
    def of_text(cls, source: TextSet, *, batch_size: int, num_threads: int = 2) -> "Data":
        """Rows of text, whole as the source cuts them: a clip of as many frames of one pixel, so to speak."""
        same = {"length": source.length, "tokenizer": source.tokenizer}
        return cls(
            source=source,
            clips=ClipTransform(num_frames=source.length, size=(1, 1)),
            batch_size=batch_size,
            signals={TOKENS: TextTokens(**same), PROMPT: TextPrompt(**same)},
            num_threads=num_threads,
        )

    def by_shape(self) -> tuple["Data", ...]:
        """The data of each shape as if there were no other; these data themselves where there is one.

        Raises:
            ValueError: a shape without a batch size, which `run.shapes.balanced` gives.
        """
        return tuple(map(self.of_shape, self.shapes)) or (self,)

    def of_shape(self, shape: BatchShape) -> "Data":
        """The data of one shape as if there were no other."""
        if shape.batch_size is None:
            raise ValueError(f"config.data.shapes: {shape} has no batch size yet; run.shapes.balanced gives it one")
        return dataclasses.replace(self, clips=shape.cut(self.clips), batch_size=shape.batch_size, shapes=())

    def train(
        self,
        seed: int,
        start: int,
        *,
        rows: Callable[[int], Sequence[int]] | None = None,
        replace: bool = False,
    ) -> BatchIterator:
        """Training batches from number `start` on.

        A record that cannot be read or decoded is replaced by another, or raises ValueError.

        Args:
            rows: which rows of a global batch of so many are made here; None: all.
        """
        examples = (self.cache or self.source).open(Split.TRAIN)
        sizes = [data.batch_size for data in self.by_shape()]
        orders = [BatchOrder(batch_size=n, seed=seed, rows=None if rows is None else rows(n)) for n in sizes]
        options: dict[str, Any] = {"signals": self.signals, "num_threads": self.num_threads, "replace": replace}
        if self.shapes:
            return mixed_batches(examples, self.clips, list(zip(self.shapes, orders)), start=start, **options)
        return train_batches(examples, self.clips, orders[0], start=start, **options)

    def inventories(self) -> dict[Split, Inventory]:
        """What each split that the source has holds for clips that are learnt or judged; nothing is decoded."""
        info = self.source.info()
        there = [split for split in Split if info.num_records.get(split)]
        known = info.class_names, info.actions
        shapes = {Split.TRAIN: self.shapes, Split.HELD_OUT: ()}
        return {split: take_inventory(self.source.open(split), self.clips, *known, shapes[split]) for split in there}

    def identity(self) -> dict[str, Any]:
        """What decides which records there are, and which of them is in which batch; JSON."""
        return {"source": _identity(self.source), "cache": None if self.cache is None else _identity(self.cache)}

    def verify(self, advance: Callable[[int], object]) -> dict[str, str]:
        """Reads every shard of set and caches and compares it with its manifest.

        Args:
            advance: called with the number of bytes that were read since the last call.

        Returns:
            for each folder that is there what is wrong with it, nothing where it is good.
        """
        parts = (self.source, self.cache, *self.signals.values())
        folders = {part.directory: part for part in parts if isinstance(part, Sharded)}
        found = {}
        for folder, part in folders.items():
            if (Path(folder) / MANIFEST).is_file():  # digits that are not there would be made
                try:
                    check_contents(Path(folder), part.manifest().files, "make it again", advance)
                    found[folder] = ""
                except ValueError as error:
                    found[folder] = str(error)
        return found

    def judged(self, split: Split, num_clips: int, batch_size: int, seed: int) -> Iterator[tuple[Batch, int]]:
        """The same `num_clips` clips of `split` at every call, with how many rows of each batch are real."""
        return held_out_batches(
            self.source.open(split),
            self.clips,
            num_clips=num_clips,
            batch_size=batch_size,
            seed=seed,
            signals=self.signals,
        )


def _identity(source: Source) -> dict[str, Any]:
    info = source.info()
    return {
        "digest": info.digest,
        "split_digest": {split.value: digest for split, digest in info.split_digest.items()},
        "num_records": {split.value: number for split, number in info.num_records.items()},
        "class_names": list(info.class_names),
    }


def check_identity(content: Any) -> None:
    """Raises ValueError where `content`, of a record, is nothing that `Data.identity` makes; names the field."""
    if not isinstance(content, dict):
        raise ValueError(f"data={reprlib.repr(content)}: must be an object")
    check_kinds(content, {"source": dict, "cache": (dict, type(None))})
    for name in ("source", "cache"):
        if (part := content[name]) is None:
            continue
        check_kinds(part, {"digest": str, "split_digest": dict, "num_records": dict, "class_names": list})
        check_kinds(part["split_digest"], dict.fromkeys(part["split_digest"], str))
        check_kinds(part["num_records"], dict.fromkeys(part["num_records"], int))
        if not all(isinstance(one, str) for one in part["class_names"]):
            raise ValueError(f"class_names={reprlib.repr(part['class_names'])}: must be texts")
