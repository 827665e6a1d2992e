"""A set that is extended is, byte for byte, the set that all sources would have made at once."""

import functools
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from sample_videos import waves, write

from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.ingest import extend as extending
from dit_video.ingest import ingest as ingesting
from dit_video.ingest.label_table import LabelTable
from dit_video.ingest.transcoding import Transcoding
from dit_video.video.encode import encode_mp4

# One process decodes: starting more takes longer than what they decode.
extend = functools.partial(extending.extend, num_workers=1)
ingest = functools.partial(ingesting.ingest, transcoding=Transcoding(num_workers=1))
CLIPS = [encode_mp4(waves(seed, 4, 16, 16), 10.0) for seed in range(12)]


def folder(path: Path, clips: dict[str, int]) -> Path:
    """A folder of videos: their names, and which they are."""
    for name, number in clips.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(CLIPS[number])
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


SOURCES = {
    "classes of one name, near-equal ones and new ones; copies": (
        {"cat/0.mp4": 0, "Dog/1.mp4": 1, "cat/2.mp4": 0},
        {"ant/3.mp4": 3, "cat/4.mp4": 4, "dog/5.mp4": 1, "dog/6.mp4": 4},
    ),
    "names that are there already": ({"cat/0.mp4": 0, "cat/1.mp4": 1}, {"cat/0.mp4": 2, "cat/3.mp4": 3}),
    "splits of folders": (
        {"train/a/0.mp4": 0, "test/a/1.mp4": 1, "z/2.mp4": 2},
        {"cat/3.mp4": 3, "cat/test/4.mp4": 4, "dog/train/5.mp4": 5},
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_two_sources_one_after_the_other_are_two_at_once(tmp_path, case):
    a, b = (folder(tmp_path / name, clips) for name, clips in zip("ab", SOURCES[case]))
    for source in (a, b):
        (source / "notes.md").write_text("no video")
    first = next(a.rglob("*.mp4"))
    first.with_suffix(".txt").write_text("a caption")
    options = {"held_out_fraction": 0.5, "group": r"(\d)\.mp4"}
    ingest([a, b], tmp_path / "at_once", **options)
    ingest([a], tmp_path / "set", **options)
    # Nothing is read again of what the set holds.
    shutil.rmtree(a)
    manifest = extend([b], tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "at_once")
    assert manifest == VideoSet(directory=str(tmp_path / "at_once")).manifest()


def test_a_source_that_has_grown_is_added_as_it_is_now(tmp_path):
    source = folder(tmp_path / "videos", {"cat/1.mp4": 1, "dog/2.mp4": 2})
    write(source / "dog" / "3.mkv", waves(9, 4, 16, 16), codec="libx264", pixels="yuv420p")
    ingest([source], tmp_path / "set")
    assert extend([source], tmp_path / "set") == VideoSet(directory=str(tmp_path / "set")).manifest()
    # A copy that comes earlier by its name is the one that is kept.
    folder(source, {"cat/0.mp4": 2, "eel/4.mp4": 4})
    (source / "dog" / "3.txt").write_text("said later")
    extend([source], tmp_path / "set")
    ingest([source], tmp_path / "at_once")
    assert content(tmp_path / "set") == content(tmp_path / "at_once")
    folder(source, {"cat/1.mp4": 5})
    with pytest.raises(
        ValueError, match=r"--add: cat/1\.mp4 of videos is another file than the one that is in the set"
    ):
        extend([source], tmp_path / "set")
    assert content(tmp_path / "set") == content(tmp_path / "at_once")


def test_one_table_describes_what_is_there_and_what_is_added(tmp_path):
    a, b = (
        folder(tmp_path / name, {f"{i}.mp4": i for i in numbers}) for name, numbers in (("a", (0, 1)), ("b", (2, 3)))
    )
    rows = ["key,class,part,talk", "0,x,train,p", "1,,test,q", "2,y,train,p", "3,x,test,r", "4,x,test,s"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    table = LabelTable(path=tmp_path / "t.csv", label="class", split="part")
    ingest([a, b], tmp_path / "at_once", labels=table, group="talk")
    ingest([a], tmp_path / "set", labels=table, group="talk")
    extend([b], tmp_path / "set", labels=table)
    assert content(tmp_path / "set") == content(tmp_path / "at_once")
    folder(tmp_path / "c", {"9.mp4": 9})
    (tmp_path / "u.csv").write_text("key,class,part,talk\n9,z,train,p\n")
    more = LabelTable(path=tmp_path / "u.csv", label="class", split="part")
    manifest = extend([tmp_path / "c"], tmp_path / "set", labels=more)
    assert (manifest.class_names, manifest.settings["labels"]) == (("x", "y", "z"), "t.csv + u.csv")
    assert manifest.rows_without_file == ("4",)


def test_a_set_is_extended_in_the_way_that_it_was_made(tmp_path):
    source = folder(tmp_path / "a", {"cat/0.mp4": 0, "cat/1.mp4": 1})
    ingest([source], tmp_path / "set")
    before = content(tmp_path / "set")
    for asked, message in (
        ({"max_size": 8}, r"--add: max_size=8, but .*set was made with max_size=None; give that or nothing"),
        ({"held_out_fraction": 0.2}, r"held_out_fraction=0\.2, but .* was made with held_out_fraction=0\.1"),
        ({"group": "x"}, r"group=x, but .* was made with group=None"),
    ):
        with pytest.raises(ValueError, match=message):
            extend([source], tmp_path / "set", asked=asked)
    (tmp_path / "t.csv").write_text("key,caption\n0,a\n")
    with pytest.raises(ValueError, match=r"--add: t\.csv: .*set was made without a table"):
        extend([source], tmp_path / "set", labels=LabelTable(path=tmp_path / "t.csv", caption="caption"))
    with pytest.raises(FileNotFoundError, match="none does not exist; --add extends a set; make one without it"):
        extend([source], tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or tar"):
        extend([tmp_path / "nowhere"], tmp_path / "set")
    assert content(tmp_path / "set") == before


def test_two_tars_of_one_name_are_two_sources(tmp_path):
    for place, number in (("a", 0), ("b", 1)):
        (tmp_path / place).mkdir()
        with tarfile.open(tmp_path / place / "x.tar", "w") as archive:
            member = tarfile.TarInfo(f"{number}.mp4")
            member.size = len(CLIPS[number])
            archive.addfile(member, io.BytesIO(CLIPS[number]))
    manifest = ingest([tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"], tmp_path / "set")
    for split in Split:
        record = VideoSet(directory=str(tmp_path / "set")).open(split)[0]
        assert record.video == CLIPS[int(record.key[0])]
    assert len(manifest.entries) == 2


def test_a_set_of_before_keeps_its_splits(tmp_path):
    ingest([folder(tmp_path / "a", {f"{i}.mp4": i for i in range(4)})], tmp_path / "set", held_out_fraction=0.5)
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["warnings"] = ["a warning"]
    del manifest["settings"]["group"]
    for entry in manifest["entries"]:
        del entry["group"], entry["split_by"]
    path.write_text(json.dumps(manifest))
    before = {entry["file"]: entry["split"] for entry in manifest["entries"]}
    after = extend([folder(tmp_path / "b", {f"{i}.mp4": i for i in range(4, 8)})], tmp_path / "set")
    assert before.items() <= {entry.file: entry.split for entry in after.entries}.items()
