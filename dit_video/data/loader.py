"""Batches in an order that is a pure function of (seed, batch index).

Global batch n is rows n*B .. n*B + B - 1 of one endless, reshuffled sequence of examples; of several processes
each makes the rows that its devices need. So the global batch, row for row, does not depend on how many processes or
threads made it, and the whole state of a loader is one integer: the index of the next batch. Where clips have several
shapes, each shape has such a sequence, and which of them batch n is cut from is a function of (seed, n) too.
"""

import contextlib
import dataclasses
import hashlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from dit_video.config.bounds import at_least
from dit_video.data.batch import Batch, collate
from dit_video.data.record import Clip, Examples, content_digest
from dit_video.data.shapes import BatchShape, ShapeSchedule, records_by_shape
from dit_video.data.signals import DEFAULT_SIGNALS, Reader, Signal, open_all
from dit_video.data.transforms import ClipTransform, Usable, pace_note, usable

_LOG = logging.getLogger(__name__)
# Grain counts batches in a signed 64-bit integer; this many never end.
_ENDLESS = sys.maxsize // 2
# Where so many records in a row are damaged, the set is.
_MOST_TRIED = 100


class Replaced(NamedTuple):
    """A row that holds another record than it should: its own could not be read or decoded.

    Attributes:
        row: of the global batch.
        why: the record that is missing, and what was wrong with it.
    """

    batch: int
    row: int
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """Which records stand in which rows of which batch: a pure function of the seed and the number of records.

    Attributes:
        batch_size: B, of the global batch, over all processes.
        seed: of the order of records, and of where a clip begins, its crop and its mirroring.
        rows: which rows of each global batch are made here, in this order; None: all.
    """

    batch_size: int
    seed: int
    rows: Sequence[int] | None = None

    def __post_init__(self):
        at_least(self, 1, "batch_size")
        if self.rows is not None and not set(self.rows) <= set(range(self.batch_size)):
            raise ValueError(
                f"BatchOrder.rows={list(self.rows)}: must be rows of a batch of {self.batch_size}, which count from 0"
            )

    def sequence(self, num_records: int) -> Any:
        """Grain MapDataset of positions of records, endless; each epoch has every one once, in an order of its own."""
        # Here, so that an experiment is read without what reads its data.
        import grain

        return grain.MapDataset.source(_Positions(num_records)).seed(self.seed).shuffle().repeat()

    def places(self, batch: int) -> Iterator[tuple[int, int]]:
        """(row, place in the sequence) of each row of the global batch of this index that is made here."""
        for row in range(self.batch_size) if self.rows is None else self.rows:
            yield row, batch * self.batch_size + row


class BatchIterator(Iterator[Batch]):
    """Endless batches, read ahead by threads.

    Attributes:
        next_batch: index of the batch that `next` returns: the loader's whole state.
        wait_seconds: how long callers of `next` have waited, in all.
        num_too_short: records left out because a clip does not fit into them.
    """

    def __init__(self, make: "_AnyShape", *, start: int, num_threads: int, num_too_short: int):
        self._make, self._num_threads = make, num_threads
        self._replaced: list[Replaced] = []
        self._iterator = self._from(start)
        self.next_batch = start
        self.wait_seconds = 0.0
        self.num_too_short = num_too_short

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch, replaced = next(self._iterator)
        self.wait_seconds += time.perf_counter() - began
        self.next_batch += 1
        self._replaced += replaced
        return batch

    def seek(self, next_batch: int) -> None:
        """Goes on with another batch; what was replaced and not asked for is forgotten."""
        self._iterator.close()
        self._iterator = self._from(next_batch)
        self.next_batch, self._replaced = next_batch, []

    def take_replaced(self) -> list[Replaced]:
        """Rows of the batches returned since the last call."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def waits_for(self) -> str:
        """What is being read at this moment, for those who wait longer than they should."""
        return f"batch {self.next_batch}: {self._make.reading()}"

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()

    def _from(self, start: int) -> Any:
        """Grain's iterator from batch `start` on."""
        import grain

        options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=self._num_threads)
        iterator = iter(grain.MapDataset.range(_ENDLESS).map(self._make).to_iter_dataset(options))
        iterator.set_state({"next_index": start})
        return iterator


def train_batches(
    examples: Examples,
    transform: ClipTransform,
    order: BatchOrder,
    *,
    start: int = 0,
    signals: Mapping[str, Signal] = DEFAULT_SIGNALS,
    num_threads: int = 8,
    replace: bool = False,
) -> BatchIterator:
    """The global batches start, start + 1, ... without end, or some rows of each.

    Every epoch visits each usable record once, in an order of its own; where a clip begins, its crop and its
    mirroring are drawn from (seed, position in the sequence). A record that fails while it is read or decoded
    raises from `next`, naming itself.

    Args:
        order: which records are in which batch, and which rows of it are made here.
        start: index of the first batch.
        signals: what accompanies the clips of a batch.
        num_threads: batches prepared at once; also how many are kept ready.
        replace: a record whose bytes are damaged, or do not decode, is replaced by the next in the order of its epoch
            that does, cut at random anew: a function of (seed, position) like all else. A store that does not answer
            raises all the same.

    Raises:
        ValueError: a batch before the first, or no record long enough.
    """
    records = _usable(examples, transform)
    if note := pace_note(records, transform):
        _LOG.warning("training %s", note)
    make = _AnyShape([_BatchMaker(records, transform, order, open_all(signals), replace)])
    return _iterator(make, start, num_threads, records.num_too_short)


def mixed_batches(
    examples: Examples,
    transform: ClipTransform,
    shapes: Sequence[tuple[BatchShape, BatchOrder]],
    *,
    start: int = 0,
    signals: Mapping[str, Signal] = DEFAULT_SIGNALS,
    num_threads: int = 8,
    replace: bool = False,
) -> BatchIterator:
    """Training batches as of `train_batches`, each of one of several shapes, of the records that go to that shape.

    Args:
        transform: how clips of any shape are cut.
        shapes: each with the order of its batches; these have one seed.

    Raises:
        ValueError: a batch before the first, or a shape that no record goes to.
    """
    by_shape = records_by_shape(examples, [shape for shape, _ in shapes], transform)
    num_too_short = len(examples) - sum(map(len, by_shape))
    if num_too_short:
        _LOG.warning("%d of %d videos are left out: too short for every shape", num_too_short, len(examples))
    readers = open_all(signals)
    makers = [
        _BatchMaker(records, shape.cut(transform), order, readers, replace)
        for records, (shape, order) in zip(by_shape, shapes)
    ]
    return _iterator(_AnyShape(makers), start, num_threads, num_too_short)


def _iterator(make: "_AnyShape", start: int, num_threads: int, num_too_short: int) -> BatchIterator:
    if start < 0:
        raise ValueError(f"start={start}: must be at least 0")
    return BatchIterator(make, start=start, num_threads=num_threads, num_too_short=num_too_short)


class _AnyShape:
    """Makes some rows of the global batch of any index, in any thread: of the shape that has its turn."""

    def __init__(self, makers: Sequence["_BatchMaker"]):
        self._makers = makers
        orders = [maker.order for maker in makers]
        self._schedule = ShapeSchedule(
            seed=orders[0].seed,
            num_records=tuple(maker.num_records for maker in makers),
            batch_sizes=tuple(order.batch_size for order in orders),
        )

    def __call__(self, index: int) -> tuple[Batch, list[Replaced]]:
        shape, number = self._schedule.place(index)
        batch, replaced = self._makers[shape](number)
        return batch, [Replaced(index, row, why) for row, why in replaced]

    def reading(self) -> str:
        """The records at which threads are, longest first."""
        now = time.perf_counter()
        longest_first = sorted((at for maker in self._makers for at in maker.reading()), key=lambda at: at[1])
        return ", ".join(f"record {position} since {now - since:.0f} s" for position, since in longest_first) or "idle"


class _BatchMaker:
    """Makes some rows of any batch of one shape, in any thread."""

    def __init__(
        self,
        records: Usable,
        transform: ClipTransform,
        order: BatchOrder,
        readers: Mapping[str, Reader],
        replace: bool,
    ):
        self.order, self.num_records = order, len(records)
        self._records, self._transform = records, transform
        self._readers, self._replace = readers, replace
        self._sequence = order.sequence(len(records))
        self._clips = self._sequence.random_map(self._clip)
        # By thread: the position of a record, and since when it is being read.
        self._reading: dict[int, tuple[int, float]] = {}

    def __call__(self, number: int) -> tuple[Batch, list[tuple[int, str]]]:
        """The batch of this number among those of the shape, and the rows that hold another record, with the reason."""
        clips, replaced = [], []
        for row, place in self.order.places(number):
            try:
                # Grain's type allows for elements that a filter dropped; there is no filter.
                clip = cast(Clip, self._clips[place])
            except ValueError as error:
                if not self._replace:
                    raise
                clip = self._other(place, error)
                replaced.append((row, str(error)))
            clips.append(clip)
        return collate(clips, self._readers), replaced

    def reading(self) -> Sequence[tuple[int, float]]:
        """The position of the record at which each thread is, and since when."""
        return tuple(self._reading.copy().values())

    def _clip(self, position: int, rng: np.random.Generator) -> Clip:
        thread = threading.get_ident()
        self._reading[thread] = (position, time.perf_counter())
        try:
            return self._transform(self._records[position], rng)
        except OSError as error:
            raise OSError(f"record {position} of the training set cannot be read: {error}") from error
        finally:
            del self._reading[thread]

    def _other(self, number: int, error: ValueError) -> Clip:
        """The clip in the place of row `number` of the sequence, whose own record fails with `error`."""
        epoch, place = divmod(number, len(self._records))
        for tried in range(1, min(len(self._records), _MOST_TRIED)):
            other = epoch * len(self._records) + (place + tried) % len(self._records)
            with contextlib.suppress(ValueError):
                return self._clip(cast(int, self._sequence[other]), np.random.default_rng((self.order.seed, number)))
        raise ValueError(f"{error}; nor can the records after it in the order of its epoch") from error


class _Positions:
    """The numbers 0 .. length - 1: records are read only when their turn has come."""

    def __init__(self, length: int):
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def _usable(examples: Examples, transform: ClipTransform) -> Usable:
    records = usable(examples, transform)
    if records.num_too_short:
        _LOG.warning(
            "%d of %d videos are left out: shorter than the %s a clip reaches over",
            records.num_too_short,
            len(examples),
            transform.reach,
        )
    return records


def held_out_clips(examples: Examples, transform: ClipTransform, *, num_clips: int, seed: int) -> Iterator[Clip]:
    """`num_clips` different clips, the same ones every time.

    Records take turns in a fixed shuffled order; each time round, a record gives a window that begins at another frame.

    Raises:
        ValueError: there are not so many different clips; or a record that does not decode.
    """
    records = _usable(examples, transform)
    for position, start, turn in _chosen(records, transform, num_clips, seed):
        record = records[position]
        rng = np.random.default_rng((seed, position, turn))
        yield transform.at(record, record.start if record.moments is not None else start, rng)


def held_out_digest(examples: Examples, transform: ClipTransform, *, num_clips: int, seed: int) -> str:
    """sha256 of what decides the clips of `held_out_clips`, in order: stored content, first frame, and how each is cut.

    How many frames are cut is left out: whoever judges the first few of them says how many. Nothing is decoded.

    Raises:
        ValueError: there are not so many different clips.
    """
    records = usable(examples, transform)
    chosen = list(_chosen(records, transform, num_clips, seed))
    content = {position: content_digest(records, [position]) for position in dict.fromkeys(p for p, _, _ in chosen)}
    cut = repr(transform.protocol) + (repr(seed) if transform.draws else "")
    lines = [f"{content[position]} {start} {turn if transform.draws else ''}" for position, start, turn in chosen]
    return hashlib.sha256("\n".join([cut, *lines]).encode()).hexdigest()


def _chosen(records: Usable, transform: ClipTransform, num_clips: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """(position, first frame, how often the record was chosen before) of each clip."""
    num_frames = records.num_frames
    num_starts = np.ones(len(records), int) if num_frames is None else transform.num_starts(num_frames, records.fps)
    if num_clips > num_starts.sum():
        raise ValueError(f"num_clips={num_clips}: the records give only {num_starts.sum()} different clips")
    order = np.random.default_rng(seed).permutation(len(records))
    taken, turn = 0, 0
    while taken < num_clips:
        for position in map(int, order):
            if turn >= num_starts[position] or taken == num_clips:
                continue
            starts = np.random.default_rng((seed, position)).permutation(num_starts[position])
            yield position, int(starts[turn]), turn
            taken += 1
        turn += 1


def held_out_batches(
    examples: Examples,
    transform: ClipTransform,
    *,
    num_clips: int,
    batch_size: int,
    seed: int,
    signals: Mapping[str, Signal] = DEFAULT_SIGNALS,
) -> Iterator[tuple[Batch, int]]:
    """`held_out_clips` in batches, each with its number of real rows.

    The last batch is filled up by repeating its last row, so that all have one shape.

    Raises:
        ValueError: there are not so many different clips; a record that does not decode, or a clip of which
            a signal cannot be read.
    """
    rows: list[Clip] = []
    readers = open_all(signals)
    for clip in held_out_clips(examples, transform, num_clips=num_clips, seed=seed):
        rows.append(clip)
        if len(rows) == batch_size:
            yield collate(rows, readers), batch_size
            rows = []
    if rows:
        yield collate(rows + [rows[-1]] * (batch_size - len(rows)), readers), len(rows)
