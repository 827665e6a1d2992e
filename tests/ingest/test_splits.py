"""Laws of splits and duplicates: decided by content, so that a growing collection keeps them."""

from pathlib import Path

import pytest

from dit_video.data.record import Split
from dit_video.data.video_set import Entry
from dit_video.ingest import label_table
from dit_video.ingest.ingest import _assign_splits, _described, _mark_duplicates, _over, ingest, nothing_usable
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.source_files import SourceFile


def entries(**digests: str) -> list[Entry]:
    """Entries whose digests begin so."""
    return [
        Entry(file=file, source="x", sha256=begin.ljust(64, "0"), stored="copied") for file, begin in digests.items()
    ]


def held_out(entries: list[Entry]) -> set[str]:
    assert {entry.split for entry in entries} <= {Split.HELD_OUT, Split.TRAIN}
    return {entry.file for entry in entries if entry.split is Split.HELD_OUT}


def test_a_file_is_held_out_where_its_digest_as_a_fraction_is_below():
    one = entries(a="7fffffffffffffff", b="8", c="4", d="ffff")
    assert held_out(_assign_splits(one, {}, 0.5)) == {"a", "c"}
    assert held_out(_assign_splits(one, {}, 0.25)) == {"c"}  # of none below it, the nearest
    assert held_out(_assign_splits(one, {}, 0.0)) == set()
    # The thirteenth digit still counts, which is as far as floats reach.
    fine = entries(a="8000000000001", b="7ffffffffffff", c="f")
    assert held_out(_assign_splits(fine, {}, 0.5)) == {"b"}


def test_neither_side_is_empty_where_there_are_two_files():
    assert held_out(_assign_splits(entries(a="8", b="9", c="a"), {}, 0.1)) == {"a"}
    assert held_out(_assign_splits(entries(a="2", b="1", c="0"), {}, 0.9)) == {"b", "c"}
    assert held_out(_assign_splits(entries(a="8"), {}, 0.1)) == set()
    assert held_out(_assign_splits(entries(a="0"), {}, 0.1)) == {"a"}


def test_named_splits_win_and_are_not_filled_up():
    named = {"a": Split.HELD_OUT, "b": Split.TRAIN}
    assert held_out(_assign_splits(entries(a="f", b="0"), named, 0.5)) == {"a"}
    assert held_out(_assign_splits(entries(a="f", b="0", c="f", d="e"), named, 0.5)) == {"a"}
    assert held_out(_assign_splits(entries(a="f", b="0", c="0"), named, 0.5)) == {"a", "c"}
    left = Entry(file="e", source="x", sha256="0" * 64, reason="empty")
    assert _assign_splits([left], {}, 0.5) == [left]


def test_of_equal_files_the_first_is_kept():
    a, b, c = entries(a="1", b="1", c="2")
    broken = Entry(file="d", source="x", sha256="1".ljust(64, "0"), reason="damaged")
    marked = _mark_duplicates([broken, a, b, c])
    assert [(entry.reason, entry.stored) for entry in marked] == [
        ("damaged", None),
        ("", "copied"),
        ("a copy of a", None),
        ("", "copied"),
    ]


def test_nothing_usable_shows_the_five_commonest_kinds_and_reasons():
    skipped = [Entry(file=f"{i}.t{i % 6}", source="x", reason=f"reason {i % 6}") for i in range(23)]
    skipped.append(Entry(file="readme", source="x", reason="reason 0"))
    message = nothing_usable([Path("a"), Path("b")], skipped)
    assert message.startswith("a, b: no usable video among 24 files (4 .t0, 4 .t1, 4 .t2, 4 .t3, 4 .t4): 5 x reason 0 ")
    assert message.count(" x reason") == 5
    assert "(such as 1.t1)" in message
    assert "no extension" in nothing_usable([Path("a")], skipped[-1:])
    assert nothing_usable([Path("a")], []) == "a: empty; give a folder or tar of videos"


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
def test_a_fraction_is_a_share(tmp_path, fraction):
    with pytest.raises(ValueError, match=f"held_out_fraction={fraction}: must be at least 0 and below 1"):
        ingest([tmp_path], tmp_path / "out", held_out_fraction=fraction)


def test_what_is_said_nearer_to_a_file_goes_first():
    below = {"a": Description(label="x", caption="one", split=Split.TRAIN), "b": Description(label="y")}
    above = {"a": Description(caption="two", split=Split.HELD_OUT), "c": Description(label="z")}
    assert _over(below, above) == {
        "a": Description(label="x", caption="two", split=Split.HELD_OUT),
        "b": Description(label="y"),
        "c": Description(label="z"),
    }


def sources(*names: str) -> list[SourceFile]:
    return [SourceFile(source=Path("x"), name=name, key=name) for name in names]


def test_at_most_five_rows_without_a_file_are_shown():
    table = LabelTable(path="t.csv", caption="text")
    rows = {"a": Description(caption="it"), **{f"row{i}": Description() for i in range(8)}}
    items, described, without_file, warnings = _described(sources("a.mp4", "b.mp4"), table, rows)
    assert described == {"a.mp4": Description(caption="it")}
    assert {item.name: item.reason for item in items} == {"a.mp4": "", "b.mp4": "no row in t.csv"}
    assert (len(without_file), len(warnings)) == (8, 5)
    assert warnings[0] == "t.csv: no file is called 'row0'; the nearest is 'b.mp4'"
    # Where every file has its row, there is none to be near.
    assert _described(sources("a.mp4"), table, rows)[3] == []
    with pytest.raises(ValueError, match=r"its column key names none of the 1 files: it has 'row0'"):
        _described(sources("c.mp4"), table, {"row0": Description()})


def test_folders_give_the_class_that_a_table_has_not():
    rows = {"a": Description(caption="it"), "b": Description(label="own")}
    names = ("cat/a.mp4", "dog/b.mp4")
    without = _described(sources(*names), LabelTable(path="t.csv", caption="text"), rows)[1]
    assert [without[name].label for name in names] == ["cat", "dog"]
    with_column = _described(sources(*names), LabelTable(path="t.csv", label="label"), rows)[1]
    assert [with_column[name].label for name in names] == [None, "own"]


def test_words_of_splits_and_of_hugging_face_tables(tmp_path):
    for word, split in {"Train": Split.TRAIN, " training ": Split.TRAIN, "TEST": Split.HELD_OUT, "x": None}.items():
        assert label_table.split_of(word) is split
    for word in ("testing", "val", "valid", "validation", "held_out"):
        assert label_table.split_of(word) is Split.HELD_OUT
    assert label_table.metadata_table(tmp_path) is None
    (tmp_path / "metadata.csv").write_text("name,text\na,b\n")
    assert label_table.metadata_table(tmp_path) is None
    (tmp_path / "metadata.csv").write_text("file_name,text,caption,label,split\na,b,c,d,train\n")
    table = label_table.metadata_table(tmp_path)
    assert (table.key, table.caption, table.label, table.split) == ("file_name", "text", "label", "split")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na,b\n")
    table = label_table.metadata_table(tmp_path)
    assert (table.caption, table.label, table.split) == ("caption", None, None)


def test_of_very_many_names_the_first_ten_thousand_are_compared():
    names = [f"{i:09}" for i in range(10_000)]
    assert label_table.nearest("clip", [*names, "clip"]) != "clip"
    assert label_table.nearest("clip", [*names[:-1], "clip"]) == "clip"
    assert label_table.nearest("clip", []) == ""
