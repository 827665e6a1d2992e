"""Laws of the loader: the order of examples is a function of (seed, batch index) and of nothing else."""

import hashlib
import itertools
import threading
import time

import numpy as np
import pytest
from sample_videos import waves

from dit_video.data.batch import collate
from dit_video.data.loader import (
    BatchIterator,
    BatchOrder,
    held_out_batches,
    held_out_clips,
    held_out_digest,
    train_batches,
)
from dit_video.data.record import Examples, Record, Split, content_digest
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform, usable
from dit_video.video.encode import encode_mp4

CUT = ClipTransform(num_frames=4, stride=2, size=(16, 16), random_crop=True, flip_rate=0.5)


class InMemory(Examples):
    """Videos of the given lengths whose pixels name their record and frame."""

    def __init__(self, lengths: list[int], moments: bool = False):
        self._lengths, self._moments = lengths, moments

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Record:
        if self._moments:
            return Record(key=str(index), moments=np.full((2, 2, 2, 4), index, np.float32), fps=5.0, start=3)
        length = self._lengths[index]
        video = np.empty((length, 16, 16, 3), np.uint8)
        video[..., 0], video[..., 1:] = index, np.arange(length)[:, None, None, None]
        return Record(key=str(index), video=video, label=index, num_frames=length, fps=10.0)

    @property
    def num_frames(self) -> np.ndarray | None:
        return None if self._moments else np.array(self._lengths)


def training(examples, *, batch_size: int = 8, seed: int, rows: list[int] | None = None, **options) -> BatchIterator:
    return train_batches(examples, CUT, BatchOrder(batch_size=batch_size, seed=seed, rows=rows), **options)


def batches(examples, num: int, **options) -> list:
    options = {"batch_size": 8, "seed": 1, "num_threads": 2} | options
    iterator = training(examples, **options)
    batches = [next(iterator) for _ in range(num)]
    iterator.close()
    return batches


def test_batches_are_cut_from_one_sequence_in_which_every_epoch_has_each_record_once():
    order = BatchOrder(batch_size=4, seed=3)
    assert [place for batch in range(3) for _, place in order.places(batch)] == list(range(12))
    some = BatchOrder(batch_size=4, seed=3, rows=[3, 1])
    assert list(some.places(2)) == [(3, 11), (1, 9)]
    epochs = np.array([order.sequence(6)[place] for place in range(18)]).reshape(3, 6)
    assert (np.sort(epochs) == np.arange(6)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    "shares",
    [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[row] for row in range(8)],
        [[0, 1, 6, 7], [2, 3, 4, 5], [2, 3, 4, 5]],  # processes along other axes of the mesh have the same rows
    ],
)
def test_the_global_batch_is_the_same_whoever_makes_its_rows(shares):
    examples = InMemory([12] * 13)
    whole = batches(examples, 5)
    for rows in shares:
        for made, batch in zip(batches(examples, 5, rows=rows), whole):
            np.testing.assert_array_equal(made.video, batch.video[rows])
            np.testing.assert_array_equal(made.signals["label"], batch.signals["label"][rows])


def test_order_does_not_depend_on_threads_and_resumes_anywhere():
    examples = InMemory([12] * 13)
    whole = batches(examples, 6, num_threads=1)
    resumed = batches(examples, 3, num_threads=5, start=3)
    for before, after in zip(whole[3:], resumed):
        np.testing.assert_array_equal(before.video, after.video)


def test_an_epoch_visits_every_record_once_and_epochs_differ():
    labels = np.concatenate([batch.signals["label"] for batch in batches(InMemory([9] * 16), 6)]).reshape(3, 16)
    assert all(sorted(epoch) == list(range(16)) for epoch in labels)
    assert not np.array_equal(labels[0], labels[1])


def test_clips_begin_everywhere_and_differ_between_epochs_and_seeds():
    starts = [b.video[:, 0, 0, 0, 1] for b in batches(InMemory([12]), 20)]
    assert set(np.concatenate(starts)) == set(range(12 - CUT.span() + 1))
    assert not np.array_equal(batches(InMemory([12]), 1, seed=2)[0].video, batches(InMemory([12]), 1)[0].video)


def test_the_state_is_the_index_of_the_next_batch():
    iterator = training(InMemory([12] * 3), batch_size=2, seed=0, start=7)
    assert iterator.next_batch == 7
    next(iterator)
    assert iterator.next_batch == 8
    assert iterator.wait_seconds > 0
    iterator.close()


def test_pixels_stay_uint8_and_moments_pass_through():
    batch = batches(InMemory([12] * 3), 1)[0]
    assert batch.video.dtype == np.uint8
    assert batch.video.shape == (8, 4, 16, 16, 3)
    assert batch.moments is None
    cached = batches(InMemory([0] * 3, moments=True), 1)[0]
    assert cached.video is None
    assert cached.moments.shape == (8, 2, 2, 2, 4)


def test_videos_too_short_are_left_out_counted_and_said(caplog):
    iterator = training(InMemory([3, 12, 6, 12]), batch_size=4, seed=0)
    assert set(next(iterator).signals["label"]) == {1, 3}
    assert iterator.num_too_short == 2
    assert "2 of 4 videos are left out" in caplog.text
    iterator.close()
    with pytest.raises(ValueError, match="takes 7 frames, but the longest of 2 videos has 5"):
        usable(InMemory([5, 4]), CUT)


def test_a_record_that_does_not_decode_is_named():
    class Damaged(InMemory):
        def __getitem__(self, index: int) -> Record:
            whole = encode_mp4(waves(0), 10.0)
            return Record(key="the/culprit.mp4", video=whole[: len(whole) // 2], num_frames=12, fps=10.0)

    iterator = training(Damaged([12]), batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"the/culprit\.mp4"):
        next(iterator)
    iterator.close()


class DamagedInPlaces(InMemory):
    """Records 2 and 5 are damaged."""

    def __getitem__(self, index: int) -> Record:
        if index in (2, 5):
            raise ValueError(f"record {index} is damaged")
        return super().__getitem__(index)


def test_a_damaged_record_is_replaced_by_the_same_one_everywhere():
    """By one process, by two, and by one that goes on in the middle; and no other row changes."""
    examples, options = DamagedInPlaces([12] * 13), {"batch_size": 8, "seed": 1, "num_threads": 2, "replace": True}
    sound = batches(InMemory([12] * 13), 5)

    def made(num: int, **more) -> tuple[list, list]:
        iterator = training(examples, **options, **more)
        drawn = [next(iterator) for _ in range(num)]
        replaced = iterator.take_replaced()
        assert iterator.take_replaced() == []
        iterator.close()
        return drawn, replaced

    whole, replaced = made(5)
    missing = {(b, r): i for b, batch in enumerate(sound) for r, i in enumerate(batch.signals["label"]) if i in (2, 5)}
    assert len(missing) >= 5
    assert {(r.batch, r.row): r.why for r in replaced} == {k: f"record {i} is damaged" for k, i in missing.items()}
    for number, (batch, other) in enumerate(zip(whole, sound)):
        assert not set(batch.signals["label"]) & {2, 5}
        kept = [row for row in range(8) if (number, row) not in missing]
        np.testing.assert_array_equal(batch.video[kept], other.video[kept])
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7]):
        share, of_them = made(5, rows=rows)
        assert of_them == [r for r in replaced if r.row in rows]
        for batch, other in zip(whole, share):
            np.testing.assert_array_equal(batch.video[rows], other.video)
    resumed, of_them = made(3, start=2)
    assert of_them == [r for r in replaced if r.batch >= 2]
    for batch, other in zip(whole[2:], resumed):
        np.testing.assert_array_equal(batch.video, other.video)


def test_a_set_of_damaged_records_ends_and_does_not_hang():
    class AllDamaged(InMemory):
        def __getitem__(self, index: int) -> Record:
            raise ValueError(f"record {index} is damaged")

    iterator = training(AllDamaged([12] * 3), batch_size=1, seed=0, replace=True)
    with pytest.raises(ValueError, match=r"record \d is damaged; nor can the records after it"):
        next(iterator)
    iterator.close()


def test_a_store_that_does_not_answer_is_no_damaged_record():
    class Vanished(InMemory):
        def __getitem__(self, index: int) -> Record:
            raise TimeoutError("no answer from the store")

    iterator = training(Vanished([12]), batch_size=1, seed=0, replace=True)
    with pytest.raises(OSError, match="record 0 of the training set cannot be read: no answer from the store"):
        next(iterator)
    iterator.close()


def test_the_position_can_be_changed():
    iterator = training(InMemory([12] * 13), batch_size=8, seed=1)
    next(iterator)
    iterator.seek(3)
    assert iterator.next_batch == 3
    np.testing.assert_array_equal(next(iterator).video, batches(InMemory([12] * 13), 4)[3].video)
    assert iterator.next_batch == 4
    iterator.close()


def test_what_is_being_read_is_named():
    reached, go_on = threading.Event(), threading.Event()

    class Slow(InMemory):
        def __getitem__(self, index: int) -> Record:
            reached.set()
            go_on.wait(30)
            return super().__getitem__(index)

    iterator = training(Slow([12]), batch_size=1, seed=0, start=4)
    waiter = threading.Thread(target=lambda: next(iterator))
    waiter.start()
    assert reached.wait(30)
    assert iterator.waits_for().startswith("batch 4: record 0 since 0 s")
    go_on.set()
    waiter.join()
    iterator.close()


def test_held_out_clips_are_the_same_every_time_and_all_different():
    examples = InMemory([9, 12, 7])
    whole = ClipTransform(num_frames=4, stride=2, size=(16, 16))
    clips = list(held_out_clips(examples, whole, num_clips=10, seed=0))
    assert len({(clip.key, clip.start) for clip in clips}) == 10
    # Every record takes its turn before any has a second one.
    assert {clip.key for clip in clips[:3]} == {"0", "1", "2"}
    again = held_out_clips(examples, whole, num_clips=10, seed=0)
    assert all(np.array_equal(a.video, b.video) for a, b in zip(clips, again))
    with pytest.raises(ValueError, match=r"num_clips=11: .* only 10 different clips"):
        list(held_out_clips(examples, whole, num_clips=11, seed=0))


def test_the_last_held_out_batch_is_filled_with_its_last_row():
    batches_and_sizes = list(held_out_batches(InMemory([9, 12, 7]), CUT, num_clips=5, batch_size=4, seed=0))
    assert [num_real for _, num_real in batches_and_sizes] == [4, 1]
    last = batches_and_sizes[1][0].video
    assert last.shape[0] == 4
    assert all(np.array_equal(last[0], row) for row in last)


def test_rows_that_a_batch_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"rows=\[5, 6\]: must be rows of a batch of 6"):
        training(InMemory([12]), batch_size=6, seed=0, rows=[5, 6])


def test_clips_of_different_shape_do_not_make_a_batch():
    clips = [ClipTransform(num_frames=n, size=(16, 16))(InMemory([12])[0], np.random.default_rng(0)) for n in (2, 3)]
    with pytest.raises(ValueError, match="differ in the shape of video"):
        collate(clips)


def test_a_clip_is_a_window_of_the_decoded_video(video_set):
    examples = VideoSet(directory=str(video_set)).open(Split.TRAIN)
    cut = ClipTransform(num_frames=3, stride=4, size=(32, 32))
    clip = cut(examples[0], np.random.default_rng(0))
    assert clip.video.shape == (3, 32, 32, 3)
    assert clip.fps == 2.5
    assert clip.key == examples[0].key


@pytest.mark.parametrize(("field", "value"), [("num_frames", 0), ("stride", 0), ("size", (0, 4)), ("flip_rate", 1.5)])
def test_impossible_transforms_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"ClipTransform.{field}="):
        ClipTransform(**{field: value})


def test_batches_do_not_end():
    iterator = training(InMemory([12] * 2), batch_size=2, seed=0, start=10**9)
    assert len(list(itertools.islice(iterator, 3))) == 3
    iterator.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"start": -1}, "start=-1: must be at least 0"),
        ({"rows": [-1]}, r"rows=\[-1\]"),
        ({"rows": [8]}, r"rows=\[8\]"),
    ],
)
def test_impossible_batches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training(InMemory([12]), **({"batch_size": 8, "seed": 0} | options))
    training(InMemory([12]), batch_size=1, seed=0, start=0, rows=[0]).close()


@pytest.mark.parametrize(("num_records", "num_tried"), [(1, 1), (3, 3), (100, 100), (150, 100)])
def test_a_hundred_records_at_most_are_tried_for_one(num_records, num_tried):
    tried = []

    class AllDamaged(InMemory):
        def __getitem__(self, index: int) -> Record:
            tried.append(index)
            raise ValueError(f"record {index} is damaged")

    make = training(AllDamaged([12] * num_records), batch_size=1, seed=0, replace=True)._make
    with pytest.raises(ValueError, match="nor can the records after it"):
        make(0)
    assert len(tried) == len(set(tried)) == num_tried


def test_a_record_is_replaced_by_the_next_in_the_order_of_its_epoch():
    """After the last comes the first of the same epoch."""
    sound = np.concatenate([batch.signals["label"] for batch in batches(InMemory([12] * 4), 4, batch_size=4)]).reshape(
        4, 4
    )

    class OneDamaged(InMemory):
        def __getitem__(self, index: int) -> Record:
            if index == 2:
                raise ValueError("damaged")
            return super().__getitem__(index)

    found = np.concatenate(
        [b.signals["label"] for b in batches(OneDamaged([12] * 4), 4, batch_size=4, replace=True)]
    ).reshape(4, 4)
    places = set()
    for epoch, made in zip(sound, found):
        [place] = np.flatnonzero(epoch == 2)
        places.add(int(place))
        expected = epoch.copy()
        expected[place] = epoch[(place + 1) % 4]
        np.testing.assert_array_equal(made, expected)
    assert len(places) > 1


def test_waiting_is_measured_and_added_up():
    class Slow(InMemory):
        def __getitem__(self, index: int) -> Record:
            time.sleep(0.05)
            return super().__getitem__(index)

    iterator = training(Slow([12]), batch_size=1, seed=0, num_threads=1)
    began, waited = time.perf_counter(), [iterator.wait_seconds]
    for _ in range(3):
        next(iterator)
        waited.append(iterator.wait_seconds)
    iterator.close()
    assert waited[0] == 0.0
    assert waited == sorted(waited)
    assert 0.04 < waited[-1] <= time.perf_counter() - began


def test_the_longest_read_is_named_first():
    maker = training(InMemory([12]), batch_size=1, seed=0)._make
    assert maker.reading() == "idle"
    now = time.perf_counter()
    maker._makers[0]._reading.update({1: (7, now - 3), 2: (5, now - 60), 3: (6, now)})
    assert maker.reading() == "record 5 since 60 s, record 7 since 3 s, record 6 since 0 s"


@pytest.mark.parametrize("draws", [False, True])
def test_a_digest_of_held_out_clips_is_sha256_of_what_decides_them(draws):
    """Cards hold these. Where crops are drawn, the seed and the turn of a record decide too."""
    examples, seed = InMemory([9, 12, 7]), 3
    cut = ClipTransform(num_frames=4, stride=2, size=(8, 8), random_crop=draws)
    clips = list(held_out_clips(examples, cut, num_clips=7, seed=seed))
    turns, lines = dict.fromkeys("012", 0), [repr(cut.protocol) + (repr(seed) if draws else "")]
    for clip in clips:
        turn = turns[clip.key] if draws else ""
        lines.append(f"{content_digest(examples, [int(clip.key)])} {clip.start} {turn}")
        turns[clip.key] += 1
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert held_out_digest(examples, cut, num_clips=7, seed=seed) == expected
    shorter = ClipTransform(num_frames=4, stride=2, size=(8, 9), random_crop=draws)
    assert held_out_digest(examples, shorter, num_clips=7, seed=seed) != expected


def test_held_out_moments_keep_where_they_begin_and_each_is_one_clip():
    examples = InMemory([0] * 5, moments=True)
    clips = list(held_out_clips(examples, CUT, num_clips=5, seed=0))
    assert sorted(clip.key for clip in clips) == list("01234")
    assert {clip.start for clip in clips} == {3}
    with pytest.raises(ValueError, match="num_clips=6: the records give only 5 different clips"):
        list(held_out_clips(examples, CUT, num_clips=6, seed=0))


def test_held_out_clips_do_not_depend_on_how_many_are_asked_for():
    """What is drawn for one comes from (seed, record, turn)."""
    cut = ClipTransform(num_frames=1, size=(4, 4), random_crop=True, flip_rate=0.5)
    clips = list(held_out_clips(InMemory([40]), cut, num_clips=40, seed=0))
    few = list(held_out_clips(InMemory([40]), cut, num_clips=10, seed=0))
    assert sorted(clip.start for clip in clips) == list(range(40))
    assert all(np.array_equal(a.video, b.video) for a, b in zip(few, clips))


def test_batches_that_are_full_have_no_rest():
    found = list(held_out_batches(InMemory([9, 12, 7]), CUT, num_clips=4, batch_size=2, seed=0))
    assert [(num_real, len(batch.signals["label"])) for batch, num_real in found] == [(2, 2), (2, 2)]
    clips = list(held_out_clips(InMemory([9, 12, 7]), CUT, num_clips=4, seed=0))
    np.testing.assert_array_equal(np.concatenate([batch.video for batch, _ in found]), [c.video for c in clips])
