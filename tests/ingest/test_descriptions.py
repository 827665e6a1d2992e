"""What is said of a file by its folders, a table, and what lies beside it; and of a set with nothing to be used."""

from pathlib import Path

import pytest

from dit_video.data.record import Split
from dit_video.data.video_set import Entry
from dit_video.ingest import label_table
from dit_video.ingest.descriptions import descriptions
from dit_video.ingest.ingest import ingest, nothing_usable
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.source_files import SourceFile


def sources(*names: str) -> list[SourceFile]:
    return [SourceFile(source=Path("x"), name=name, key=name) for name in names]


def table(folder: Path, text: str, **columns: str) -> LabelTable:
    (folder / "t.csv").write_text(text)
    return LabelTable(path=folder / "t.csv", **columns)


def test_nothing_usable_shows_the_five_commonest_kinds_and_reasons():
    skipped = [Entry(file=f"{i}.t{i % 6}", source="x", reason=f"reason {i % 6}") for i in range(23)]
    skipped.append(Entry(file="readme", source="x", reason="reason 0"))
    message = nothing_usable([Path("a"), Path("b")], skipped)
    assert message.startswith("a, b: no usable video among 24 files (4 .t0, 4 .t1, 4 .t2, 4 .t3, 4 .t4): 5 x reason 0 ")
    assert message.count(" x reason") == 5
    assert "1.t1, 7.t1" in message
    assert "no extension" in nothing_usable([Path("a")], skipped[-1:])
    assert nothing_usable([Path("a")], []) == "a: empty; give a folder or tar of videos"


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
def test_a_fraction_is_a_share(tmp_path, fraction):
    with pytest.raises(ValueError, match=f"held_out_fraction={fraction}: must be at least 0 and below 1"):
        ingest([tmp_path], tmp_path / "out", held_out_fraction=fraction)


def test_at_most_five_rows_without_a_file_are_shown(tmp_path):
    rows = "key,text\na,it\n" + "".join(f"row{i},x\n" for i in range(8))
    labels = table(tmp_path, rows, caption="text")
    found = descriptions(sources("a.mp4", "b.mp4"), labels)
    assert found.of == {"a.mp4": Description(caption="it")}
    assert {item.name: item.reason for item in found.items} == {"a.mp4": "", "b.mp4": "no row in t.csv"}
    warnings = found.warnings["table"]
    assert (len(found.rows_without_file), len(warnings)) == (8, 5)
    assert warnings[0] == "t.csv: no file is called 'row0'; the nearest is 'b.mp4'"
    # Where every file has its row, there is none to be near.
    assert descriptions(sources("a.mp4"), labels).warnings["table"] == []
    with pytest.raises(ValueError, match=r"its column key names none of the 1 files: it has 'row0'"):
        descriptions(sources("c.mp4"), table(tmp_path, "key,text\nrow0,x\n", caption="text"))


def test_folders_give_the_class_that_a_table_has_not(tmp_path):
    names = ("cat/a.mp4", "dog/b.mp4")
    captions = table(tmp_path, "key,text\na,it\nb,that\n", caption="text")
    assert [descriptions(sources(*names), captions).of[name].label for name in names] == ["cat", "dog"]
    classes = table(tmp_path, "key,label\na,\nb,own\n", label="label")
    assert [descriptions(sources(*names), classes).of[name].label for name in names] == [None, "own"]


def test_words_of_splits_and_of_hugging_face_tables(tmp_path):
    for word, split in {"Train": Split.TRAIN, " training ": Split.TRAIN, "TEST": Split.HELD_OUT, "x": None}.items():
        assert label_table.split_of(word) is split
    for word in ("testing", "val", "valid", "validation", "held_out"):
        assert label_table.split_of(word) is Split.HELD_OUT
    assert label_table.metadata_table(tmp_path) is None
    (tmp_path / "metadata.csv").write_text("name,text\na,b\n")
    assert label_table.metadata_table(tmp_path) is None
    (tmp_path / "metadata.csv").write_text("file_name,text,caption,label,split\na,b,c,d,train\n")
    found = label_table.metadata_table(tmp_path)
    assert found is not None
    assert (found.key, found.caption, found.label, found.split) == ("file_name", "text", "label", "split")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na,b\n")
    found = label_table.metadata_table(tmp_path)
    assert found is not None
    assert (found.caption, found.label, found.split) == ("caption", None, None)


def test_of_very_many_names_the_first_ten_thousand_are_compared():
    names = [f"{i:09}" for i in range(10_000)]
    assert label_table.nearest("clip", [*names, "clip"]) != "clip"
    assert label_table.nearest("clip", [*names[:-1], "clip"]) == "clip"
    assert label_table.nearest("clip", []) == ""
