"""No clip that is judged was trained on: neither a copy of it, nor one cut from the same source, nor by its folder."""

import random
from dataclasses import replace

import pytest

from dit_video.data.record import Split
from dit_video.data.video_set import Entry, SplitBy
from dit_video.ingest.class_folders import from_folders
from dit_video.ingest.label_table import Description
from dit_video.ingest.splits import assign_splits, group_by, mark_duplicates, split_warnings


def clip(file: str, *, source: str = "videos", **fields) -> Entry:
    return Entry(file=file, source=source, sha256=f"{hash_of(file):064x}", stored="copied", **fields)


def hash_of(text: str) -> int:
    return random.Random(text).getrandbits(256)


def sides(entries: list[Entry]) -> dict[str, set[Split]]:
    """Sides on which the clips of each group are."""
    found: dict[str, set[Split]] = {}
    for entry in entries:
        if entry.split is not None:
            found.setdefault(entry.group or entry.file, set()).add(entry.split)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_no_group_is_on_both_sides_in_whatever_order_and_whatever_joins_later(seed):
    rng = random.Random(seed)
    named = {f"g{i}": rng.choice([None, None, Split.TRAIN, Split.HELD_OUT]) for i in range(rng.randrange(1, 30))}
    fraction = rng.choice([0.0, 0.1, 0.5, 0.9])

    def made(number: int) -> Entry:
        group = rng.choice([*named, None])
        split = named.get(group) if rng.random() < 0.5 else None
        said_by = SplitBy.DIGEST if split is None else SplitBy.LABELS
        return clip(f"{seed}/{number}", group=group, split=split, split_by=said_by)

    entries = [made(number) for number in range(rng.randrange(1, 60))]
    split = assign_splits(entries, fraction)
    assert all(len(found) == 1 for found in sides(split).values())
    assert {entry.file for entry in split if entry.split} == {entry.file for entry in entries}
    assert all(new.split is old.split for new, old in zip(split, entries) if old.split)
    shuffled = rng.sample(entries, len(entries))
    assert sides(assign_splits(shuffled, fraction)) == sides(split)
    if any(entry.split for entry in entries):
        # One that is fixed rules the handful out: then whoever joins moves nobody.
        grown = assign_splits([*entries, *(clip(f"more/{n}", group=f"new{n % 3}") for n in range(9))], fraction)
        assert sides(split).items() <= sides(grown).items()


def test_a_group_on_both_sides_of_a_table_is_refused():
    entries = [
        clip("a", group="g", split=Split.TRAIN, split_by=SplitBy.LABELS),
        clip("b", group="g", split=Split.HELD_OUT, split_by=SplitBy.LABELS),
    ]
    with pytest.raises(ValueError, match=r"--group: 'g' is on both sides of the split: a is train, b is held_out"):
        assign_splits(entries, 0.1)


def test_a_copy_is_on_no_side():
    entries = [clip("a"), Entry(file="b", source="videos", sha256=clip("a").sha256, stored="copied", split=Split.TRAIN)]
    assert [entry.reason for entry in mark_duplicates(entries)] == ["", "a copy of a"]
    assert [entry.split for entry in assign_splits(mark_duplicates(entries), 0.5)] == [Split.TRAIN, None]


def test_a_handful_has_both_sides_and_a_single_group_is_trained_on():
    for number in range(20):
        both = assign_splits([clip(f"{number}a", group="x"), clip(f"{number}b", group="y")], 0.1)
        assert {entry.split for entry in both} == set(Split)
        one = assign_splits([clip(f"{number}{i}", group="x") for i in range(3)], 0.9)
        assert {entry.split for entry in one} == {Split.TRAIN}


def test_sources_named_after_both_sides_are_splits():
    entries = [clip("1", source="train"), clip("2", source="test.tar.gz"), clip("3", source="more")]
    split = assign_splits(entries, 0.5)
    assert [entry.split for entry in split] == [Split.TRAIN, Split.HELD_OUT, Split.TRAIN]
    assert split_warnings(split) == ["more: beside sources named after splits: their clips are trained on"]
    by_table = [clip("4", source="test", split=Split.TRAIN, split_by=SplitBy.LABELS), *entries]
    assert assign_splits(by_table, 0.5)[0].split is Split.TRAIN
    assert split_warnings(assign_splits(by_table, 0.5)) == split_warnings(split)


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["test/1.mp4", "cat/2.mp4"], "1 clip of test are trained on"),
        (["cat/1.mp4", "cat/val/2.mp4", "dog/3.mp4"], "1 clip of val are trained on"),
        (["cat/test/1.mp4", "cat/train/2.mp4"], None),
        (["train/1.mp4", "extra/test/2.mp4", "test/3.mp4"], "1 clip of test are trained on"),
        (["test/cat/1.mp4", "test/dog/2.mp4"], "all clips are held out"),
        (["test/1.mp4", "val/2.mp4"], "all clips are held out"),
    ],
)  # fmt: skip
def test_no_clip_of_a_folder_named_test_is_trained_on_in_silence(names, warned):
    described, _ = from_folders(names)
    entries = [
        clip(name, split=what.split, split_by=SplitBy.FOLDERS if what.split else SplitBy.DIGEST)
        for name, what in described.items()
    ]
    warnings = split_warnings(assign_splits(entries, 0.0))
    assert [line.startswith(warned) for line in warnings] == [True] if warned else warnings == []


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/1", "cat/2"], ["cat", "cat"]),
        (["videos/cat/1", "videos/cat/2"], ["cat", "cat"]),
        (["videos/cat/1", "videos/dog/2"], ["cat", "dog"]),
        (["cat/1", "2"], ["cat", None]),
        (["1", "2"], [None, None]),
        (["train/cat/1", "test/cat/2"], ["cat", "cat"]),
        (["cat/train/1", "dog/test/2", "dog/3"], ["cat", "dog", "dog"]),
        (["train/1", "train/2"], [None, None]),
        (["train/cat/1", "train/dog/2"], ["cat", "dog"]),
    ],
)  # fmt: skip
def test_the_first_folder_that_is_no_split_and_not_of_all_is_the_class(names, labels):
    described, _ = from_folders(names)
    assert [described[name].label for name in names] == labels


def test_one_folder_in_a_source_with_a_table_is_no_class():
    assert from_folders(["data/1", "data/2"], one_is_class=False)[0]["data/1"] == Description()


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        (r"v_\w+_g\d+", "Archery/v_Archery_g01_c03.avi", "v_Archery_g01"),
        (r"([^/]+)_\d+\.mp4$", "a/talk_17.mp4", "talk"),
        (r"^([^/]+)/", "talk/1.mp4", "talk"),
        (r"^x", "talk/1.mp4", None),
        (r"x*", "talk/1.mp4", None),
    ],
)
def test_a_pattern_names_groups(pattern, path, group):
    assert group_by(pattern)(path) == group


def test_what_is_no_pattern_says_so():
    with pytest.raises(ValueError, match=r"--group \(: no column, and no regular expression"):
        group_by("(")


def by_digest(**digests: str) -> list[Entry]:
    """Entries whose digests begin so."""
    return [
        Entry(file=file, source="x", sha256=begin.ljust(64, "0"), stored="copied") for file, begin in digests.items()
    ]


def held_out(entries: list[Entry]) -> set[str]:
    assert {entry.split for entry in entries} <= {Split.HELD_OUT, Split.TRAIN}
    return {entry.file for entry in entries if entry.split is Split.HELD_OUT}


def test_a_file_is_held_out_where_its_digest_as_a_fraction_is_below():
    one = by_digest(a="7fffffffffffffff", b="8", c="4", d="ffff")
    assert held_out(assign_splits(one, 0.5)) == {"a", "c"}
    assert held_out(assign_splits(one, 0.25)) == {"c"}  # of none below it, the nearest
    assert held_out(assign_splits(one, 0.0)) == set()
    # The thirteenth digit still counts, which is as far as floats reach.
    fine = by_digest(a="8000000000001", b="7ffffffffffff", c="f")
    assert held_out(assign_splits(fine, 0.5)) == {"b"}


def test_neither_side_is_empty_where_there_are_two_files():
    assert held_out(assign_splits(by_digest(a="8", b="9", c="a"), 0.1)) == {"a"}
    assert held_out(assign_splits(by_digest(a="2", b="1", c="0"), 0.9)) == {"b", "c"}
    assert held_out(assign_splits(by_digest(a="8"), 0.1)) == set()
    assert held_out(assign_splits(by_digest(a="0"), 0.1)) == set()


def test_splits_that_are_said_win_and_are_not_filled_up():
    a, b, c, d = by_digest(a="f", b="0", c="f", d="0")
    a = replace(a, split=Split.HELD_OUT, split_by=SplitBy.LABELS)
    b = replace(b, split=Split.TRAIN, split_by=SplitBy.LABELS)
    assert held_out(assign_splits([a, b], 0.5)) == {"a"}
    assert held_out(assign_splits([a, b, c], 0.5)) == {"a"}
    assert held_out(assign_splits([a, b, d], 0.5)) == {"a", "d"}
    left = Entry(file="e", source="x", sha256="0" * 64, reason="empty")
    assert assign_splits([left], 0.5) == [left]


def test_of_equal_files_the_first_that_is_stored_is_kept():
    a, b, c = by_digest(a="1", b="1", c="2")
    broken = Entry(file="d", source="x", sha256="1".ljust(64, "0"), reason="damaged")
    marked = mark_duplicates([broken, a, b, c])
    assert [(entry.reason, entry.stored) for entry in marked] == [
        ("damaged", None),
        ("", "copied"),
        ("a copy of a", None),
        ("", "copied"),
    ]


def test_three_names_are_shown_of_many_sources_beside_those_of_splits():
    names = ["train", "test", "a", "b", "c", "d"]
    for number, words in ((3, "a: beside"), (5, "a, b, c: beside"), (6, "a, b, c and 1 more: beside")):
        entries = assign_splits([clip(name, source=name) for name in names[:number]], 0.1)
        assert any(warning.startswith(words) for warning in split_warnings(entries))
