"""Laws of the shapes of batches: who goes where, and which shape has its turn."""

import contextlib
from collections import Counter

import numpy as np
import pytest
from toys import Sized

from dit_video.data.dataset import Data
from dit_video.data.loader import BatchOrder, mixed_batches, train_batches
from dit_video.data.record import Examples
from dit_video.data.shapes import BatchShape, Extents, ShapeSchedule, assigned, losses, records_by_shape
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform

CLIPS = ClipTransform(random_crop=True)
# A square, a wide and a tall one of nearly one area, a long one, and a picture.
SHAPES = tuple(
    BatchShape(num_frames=t, size=size, batch_size=n)
    for t, size, n in [(5, (16, 16), 3), (5, (12, 20), 2), (5, (20, 12), 4), (9, (16, 16), 1), (1, (16, 16), 5)]
)


def extents(*records: tuple[int, int, int]) -> Extents:
    """Of (frames, height, width)."""
    rows = np.array(records)
    return Extents(rows[:, 0], np.full(len(rows), 10.0), rows[:, 1:])


def places(schedule: ShapeSchedule, count: int) -> list[tuple[int, int]]:
    return [schedule.place(batch) for batch in range(count)]


def test_records_go_where_they_lose_least():
    """By aspect, then by length; a larger picture is scaled down for nothing, a smaller one is filled up."""
    where = assigned(
        extents((5, 64, 64), (7, 90, 160), (6, 160, 90), (30, 64, 64), (9, 64, 64), (1, 64, 64), (1, 9, 160)),
        SHAPES,
        CLIPS,
    )
    assert where.tolist() == [0, 1, 2, 3, 3, 4, 4]


def test_what_is_lost_is_what_is_cut_and_what_is_filled():
    shape = BatchShape(num_frames=4, size=(10, 10))
    lost = losses(extents((4, 10, 10), (8, 10, 10), (4, 10, 20), (4, 5, 5), (3, 10, 10)), [shape], CLIPS)
    # Whole; half of the time; half of the width; one of four pixels is there; too short.
    half = losses(extents((8, 10, 10)), [shape], CLIPS, max_frames=8)
    np.testing.assert_allclose(lost.cut[:, 0], [0, 0, 0.5, 0, np.inf], atol=1e-12)
    np.testing.assert_allclose(half.cut, [[0.5]])
    # The frame of 10 x 20 would be 7.1 x 14.1 of as many pixels; what is left of it is scaled up to 10 x 10.
    np.testing.assert_allclose(lost.filled[:4, 0], [0, 0, 0.5, 3], atol=1e-12)


def test_clips_of_a_rate_are_as_long_as_they_last():
    clips, where = ClipTransform(fps=5.0), [BatchShape(num_frames=n, size=(8, 8)) for n in (1, 4, 8)]
    assert assigned(extents((1, 8, 8), (6, 8, 8), (7, 8, 8), (15, 8, 8)), where, clips).tolist() == [0, 0, 1, 2]
    assert assigned(extents((2, 8, 8)), where[1:], clips).tolist() == [-1]


@pytest.mark.parametrize("counts", [(7, 5, 12), (1, 1, 1), (100, 3, 40), (2, 0, 9)])
def test_each_shape_has_its_share_of_batches_and_each_of_its_batches_comes_once(counts):
    sizes = (3, 2, 4)
    schedule = ShapeSchedule(5, counts, sizes)
    per_epoch = sum(n / size for n, size in zip(counts, sizes))
    epochs = 24
    order = places(schedule, round(epochs * per_epoch))
    for shape, (n, size) in enumerate(zip(counts, sizes)):
        numbers = [number for which, number in order if which == shape]
        assert numbers == list(range(len(numbers)))
        # Of 24 epochs, in which every record is seen 24 times.
        assert len(numbers) == pytest.approx(epochs * n / size, abs=1)
    assert order == [schedule.place(batch) for batch in reversed(range(len(order)))][::-1]


def test_the_order_of_shapes_is_a_function_of_the_seed_and_differs_between_epochs():
    one, other = ShapeSchedule(0, (30, 30), (3, 3)), ShapeSchedule(1, (30, 30), (3, 3))
    assert places(one, 60) == places(ShapeSchedule(0, (30, 30), (3, 3)), 60) != places(other, 60)
    epochs = np.array([shape for shape, _ in places(one, 60)]).reshape(3, 20)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert places(ShapeSchedule(0, (5,), (2,)), 4) == [(0, 0), (0, 1), (0, 2), (0, 3)]


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Videos that go to each of SHAPES."""
    return Sized([(5, 16, 16)] * 4 + [(6, 12, 20)] * 3 + [(5, 40, 24)] * 5 + [(12, 32, 32)] * 2 + [(1, 16, 16)] * 6)


def batches(examples: Examples, count: int, rows: dict[int, list[int]] | None = None, **options) -> list:
    sizes = [shape.batch_size for shape in SHAPES]
    orders = [BatchOrder(batch_size=n, seed=1, rows=None if rows is None else rows[n]) for n in sizes]
    orders = list(zip(SHAPES, orders))
    with contextlib.closing(mixed_batches(examples, CLIPS, orders, **{"num_threads": 2} | options)) as made:
        return [next(made) for _ in range(count)]


def test_each_batch_has_one_shape_and_each_record_its_own(examples):
    made = batches(examples, 24)
    kinds = {shape.clip: shape.batch_size for shape in SHAPES}
    where = {number: SHAPES[k].clip for number, k in enumerate(assigned(Extents.of(examples), SHAPES, CLIPS))}
    seen = Counter()
    for batch in made:
        assert len(batch.video) == kinds[batch.video.shape[1:4]]
        labels = batch.signals["label"].tolist()
        assert {where[label] for label in labels} == {batch.video.shape[1:4]}
        seen.update(labels)
    assert seen.keys() == set(range(len(examples)))
    # In so many epochs, and one that is not over.
    assert max(seen.values()) - min(seen.values()) <= 3


def test_batches_are_the_same_whoever_makes_their_rows_and_wherever_one_begins(examples):
    whole = batches(examples, 20)
    for share in (0, 1):
        rows = {n: list(range(n))[share::2] for n in range(1, 6)}
        rows[1] = [0]
        for part, batch in zip(batches(examples, 8, rows), whole):
            np.testing.assert_array_equal(part.video, batch.video[rows[len(batch.video)]])
    for again, batch in zip(batches(examples, 7, start=13, num_threads=3), whole[13:]):
        np.testing.assert_array_equal(again.video, batch.video)


def test_one_shape_has_the_batches_that_it_had_before_there_were_several(examples):
    (shape, order) = BatchShape(num_frames=1, size=(16, 16)), BatchOrder(batch_size=3, seed=2)
    with (
        contextlib.closing(mixed_batches(examples, CLIPS, [(shape, order)])) as mixed,
        contextlib.closing(train_batches(examples, shape.cut(CLIPS), order)) as plain,
    ):
        for _ in range(8):
            np.testing.assert_array_equal(next(mixed).video, next(plain).video)


def test_shapes_that_cannot_be_are_refused(examples):
    unreached = BatchShape(num_frames=50, size=(16, 16))
    with pytest.raises(ValueError, match=r"shapes\[1\]=50x16x16: none of the 20 .* a clip of 12 frames"):
        records_by_shape(examples, [SHAPES[0], unreached], CLIPS)
    with pytest.raises(ValueError, match=r"BatchShape.size=\(0, 16\): each must be at least 1"):
        BatchShape(num_frames=1, size=(0, 16))
    data = {"source": VideoSet(directory="nowhere"), "clips": CLIPS, "batch_size": 2}
    with pytest.raises(ValueError, match=r"\(5, 16, 16\) is there 2 times"):
        Data(**data, shapes=(SHAPES[0], SHAPES[0]))
    with pytest.raises(ValueError, match="1x8x8 has no batch size yet"):
        Data(**data, shapes=(BatchShape(num_frames=1, size=(8, 8)),)).by_shape()

    class OfUnknownSize(Sized):
        sizes = None

    with pytest.raises(ValueError, match="does not say the length and size"):
        Extents.of(OfUnknownSize([(5, 16, 16)]))
