"""Sidecar files of a video, and the table of its folder, describe it without flags."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from sample_videos import waves

from dit_video.data.record import Split
from dit_video.ingest.ingest import ingest
from dit_video.ingest.label_table import LabelTable
from dit_video.video.encode import encode_mp4


def videos(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_mp4(waves(seed, 4, 16, 16), 10.0))


def described(source: Path, tmp_path: Path) -> dict[str, tuple]:
    manifest = ingest([source], tmp_path / "set")
    return {entry.file: (entry.label, entry.caption) for entry in manifest.entries if entry.stored}


def packed(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, path.relative_to(folder))
    return folder.with_suffix(".tar")


@pytest.mark.parametrize("as_tar", [False, True])
def test_captions_and_classes_beside_a_video_are_its_own(tmp_path, as_tar):
    folder = tmp_path / "clips"
    videos(folder, "0.mp4", "1.mp4", "2.mp4")
    (folder / "0.txt").write_text("a cat,\n sitting on a mat\n")
    (folder / "1.cls").write_text("7\n")
    (folder / "2.json").write_text(json.dumps({"text": "a dog", "label": 3, "other": [1]}))
    (folder / "2.srt").write_text("1")
    source = packed(folder) if as_tar else folder
    assert described(source, tmp_path) == {
        "0.mp4": (None, "a cat, sitting on a mat"),
        "1.mp4": ("7", ""),
        "2.mp4": ("3", "a dog"),
    }


def test_a_folder_of_pictures_has_sidecars_too(tmp_path):
    folder = tmp_path / "clips"
    for number, picture in enumerate(waves(0, 4, 16, 16)):
        (folder / "clip.v2").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "clip.v2" / f"{number}.png")
    (folder / "clip.v2.txt").write_text("waves")
    videos(folder, "other.mp4")
    assert described(folder, tmp_path) == {"clip.v2": (None, "waves"), "other.mp4": (None, "")}


def test_a_stem_names_the_video_and_not_what_lies_beside_it(tmp_path):
    folder = tmp_path / "clips"
    videos(folder, "clip0.mp4", "clip1.mp4")
    (folder / "clip0.json").write_text('{"caption": "of the file beside it"}')
    (folder / "clip1.txt").write_text("of the file beside it")
    (tmp_path / "t.csv").write_text("key,text\nclip0,of the table\nclip1,too\n")
    manifest = ingest([folder], tmp_path / "set", labels=LabelTable(path=tmp_path / "t.csv", caption="text"))
    stored = {entry.file: entry.caption for entry in manifest.entries if entry.split is not None}
    assert stored == {"clip0.mp4": "of the table", "clip1.mp4": "too"}
    assert {entry.reason for entry in manifest.skipped()} == {"a sidecar of clip0.mp4", "a sidecar of clip1.mp4"}


def test_a_file_of_notes_alone_is_no_sidecar(tmp_path):
    videos(tmp_path / "clips", "0.mp4")
    (tmp_path / "clips" / "readme.txt").write_text("hello")
    manifest = ingest([tmp_path / "clips"], tmp_path / "set")
    assert [(e.file, bool(e.reason)) for e in manifest.entries] == [("0.mp4", False), ("readme.txt", True)]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_hugging_face_folder_is_read(tmp_path, name):
    folder = tmp_path / "clips"
    videos(folder, "data/0.mp4", "data/1.mp4")
    lines = {
        "metadata.jsonl": '{"file_name": "data/0.mp4", "text": "a, b"}\n{"file_name": "data/1.mp4", "text": "c"}\n',
        "metadata.csv": 'file_name,text\ndata/0.mp4,"a, b"\ndata/1.mp4,c\n',
    }
    (folder / name).write_text(lines[name])
    assert {file: caption for file, (_, caption) in described(folder, tmp_path).items()} == {
        "data/0.mp4": "a, b",
        "data/1.mp4": "c",
    }


def test_a_damaged_sidecar_is_named(tmp_path):
    videos(tmp_path / "clips", "0.mp4")
    (tmp_path / "clips" / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"0\.txt: not UTF-8"):
        ingest([tmp_path / "clips"], tmp_path / "set")
    assert not (tmp_path / "set").exists()
    (tmp_path / "clips" / "0.txt").write_bytes(b"x" * (1 << 21))
    with pytest.raises(ValueError, match=r"0\.txt: more than the 1048576 bytes"):
        ingest([tmp_path / "clips"], tmp_path / "set")
    (tmp_path / "clips" / "0.txt").unlink()
    (tmp_path / "clips" / "0.json").write_text('{"caption": "\\ud800"}')
    with pytest.raises(ValueError, match=r"0\.json: caption has half of a character"):
        ingest([tmp_path / "clips"], tmp_path / "set")


def test_a_tar_is_read_by_its_own_names(tmp_path):
    """Two members of one name: the first that is a file is meant, and nothing is written outside."""
    data = encode_mp4(waves(0, 4, 16, 16), 10.0)
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        for name, content in (("a/0.mp4", data), ("a/0.txt", b"first")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert described(tmp_path / "w.tar", tmp_path) == {"a/0.mp4": ("a", "first")}


def test_a_table_of_other_files_shows_a_key_beside_a_name(tmp_path):
    videos(tmp_path / "clips", "clip0.mp4")
    (tmp_path / "t.csv").write_text("key,text\ncat/clip0.mp4,a\n")
    table = LabelTable(path=tmp_path / "t.csv", caption="text")
    with pytest.raises(ValueError, match=r"t\.csv: .* it has 'cat/clip0\.mp4', the nearest file is 'clip0\.mp4'"):
        ingest([tmp_path / "clips"], tmp_path / "set", labels=table)
    (tmp_path / "t.csv").write_text("key,text\nclip0,a\nclipp1,b\n")
    videos(tmp_path / "clips", "clip0.mp4", "clip1.mp4")
    manifest = ingest([tmp_path / "clips"], tmp_path / "set", labels=table)
    assert manifest.settings["warnings"]["table"] == ["t.csv: no file is called 'clipp1'; the nearest is 'clip1.mp4'"]


@pytest.mark.parametrize("given", ["table", "metadata", "json", "pattern"])
def test_groups_come_from_a_column_a_field_or_a_pattern(tmp_path, given):
    folder = tmp_path / "clips"
    names = [f"{talk}_{part}" for talk in ("a", "b", "c") for part in range(2)]
    videos(folder, *(f"{name}.mp4" for name in names))
    (folder / "notes.txt").write_text("no class folder is needed")
    group, labels = "talk", None
    rows = [{"file_name": f"{name}.mp4", "talk": name[0], "text": "x"} for name in names]
    if given == "table":
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
        labels = LabelTable(path=tmp_path / "t.parquet", key="file_name", caption="text")
    elif given == "metadata":
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    elif given == "json":
        for row in rows:
            (folder / row["file_name"]).with_suffix(".json").write_text(json.dumps(row))
    else:
        group = r"(\w)_\d\.mp4"
    manifest = ingest([folder], tmp_path / "set", labels=labels, group=group)
    stored = [entry for entry in manifest.entries if entry.stored]
    assert [entry.group for entry in stored] == ["a", "a", "b", "b", "c", "c"]
    assert {entry.caption for entry in stored} == {"" if given == "pattern" else "x"}
    assert len({(entry.group, entry.split) for entry in stored}) == 3
    assert (manifest.settings["group"], manifest.class_names) == (group, ())
    with pytest.raises(ValueError, match=r"--group nobody: gives none of the \d files a group, such as 'a_0\.mp4'"):
        ingest([folder], tmp_path / "other", labels=labels, group="nobody")
    assert not (tmp_path / "other").exists()


def test_a_table_takes_nothing_away_that_it_has_no_column_for(tmp_path):
    folder = tmp_path / "clips"
    videos(folder, "train/cat/0.mp4", "test/dog/1.mp4")
    (folder / "train" / "cat" / "0.txt").write_text("beside")
    (tmp_path / "t.csv").write_text("key,label\n0,lion\n1,nan\n")
    (tmp_path / "u.csv").write_text("key,text\n0,in the table\n1,\n")
    for table, label, caption, expected in (
        ("t.csv", "label", None, [("test/dog/1.mp4", None, ""), ("train/cat/0.mp4", "lion", "beside")]),
        ("u.csv", None, "text", [("test/dog/1.mp4", "dog", ""), ("train/cat/0.mp4", "cat", "in the table")]),
    ):
        labels = LabelTable(path=tmp_path / table, label=label, caption=caption)
        entries = [e for e in ingest([folder], tmp_path / table[0], labels=labels).entries if e.stored]
        assert [(e.file, e.label, e.caption) for e in entries] == expected
        assert [e.split for e in entries] == [Split.HELD_OUT, Split.TRAIN]
