"""Laws of ingestion: every file is accounted for, and what is held out is never trained on."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sample_videos import waves, write, write_frames, write_sound, yuv

from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.data.video_set import SplitBy
from dit_video.ingest import label_table
from dit_video.ingest.class_folders import from_folders
from dit_video.ingest.ingest import ingest
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.transcoding import Transcoding
from dit_video.video.decode import decode
from dit_video.video.encode import encode_mp4, write_gif


def reasons(manifest) -> dict[str, str]:
    return {entry.file: entry.reason for entry in manifest.skipped()}


def test_any_container_and_codec_becomes_a_readable_record(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    video = waves(0)
    write(folder / "a.avi", video, codec="mpeg4", pixels="yuv420p")
    write(folder / "b.mkv", video, codec="libx264", pixels="yuv444p")
    write(folder / "c.webm", video, codec="libvpx-vp9", pixels="yuv420p")
    write(folder / "d.mpg", video, codec="mpeg2video", pixels="yuv420p", fps=25)
    write_gif(folder / "e.gif", video, 10.0)
    (folder / "f.mp4").write_bytes(encode_mp4(video, 10.0))
    manifest = ingest([folder], tmp_path / "out", held_out_fraction=0.0)
    assert reasons(manifest) == {}
    assert {entry.file: entry.stored for entry in manifest.entries}["f.mp4"] == "copied"
    examples = VideoSet(directory=str(tmp_path / "out")).open(Split.TRAIN)
    assert sorted(record.key for record in examples) == ["a.avi", "b.mkv", "c.webm", "d.mpg", "e.gif", "f.mp4"]
    for record in examples:
        decoded, fps = decode(record.video)
        assert abs(decoded.astype(float) - video[: len(decoded)]).mean() < 12, record.key
        assert (len(decoded), fps) == (record.num_frames, record.fps)
        assert len(decoded) == len(video)


def test_every_file_that_is_not_stored_is_named_with_its_reason(videos, tmp_path):
    whole = (videos / "dog" / "0.mp4").read_bytes()
    (videos / "cat" / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "cat" / "empty.mp4").write_bytes(b"")
    (videos / "cat" / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (videos / "notes.txt").write_text("these are my cats\n")
    (videos / ".DS_Store").write_bytes(b"junk")
    (videos / "gone.mp4").symlink_to(videos / "nowhere.mp4")
    (videos / "dog" / "copy of 0.mp4").write_bytes(whole)
    write_sound(videos / "dog" / "bark.m4a")
    Image.fromarray(waves(0)[0]).save(videos / "dog" / "photo.jpg")
    manifest = ingest([videos], tmp_path / "out")
    reason_of = reasons(manifest)
    assert len(manifest.entries) == 8 + 9
    assert reason_of["cat/empty.mp4"] == "an empty file"
    assert reason_of[".DS_Store"] == "a hidden file"
    assert reason_of["gone.mp4"] == "a link to nothing"
    # Of two equal files the first by name is kept.
    assert reason_of["dog/copy of 0.mp4"] == "a copy of dog/0.mp4"
    assert reason_of["dog/bark.m4a"] == "sound only"
    assert reason_of["dog/photo.jpg"] == "a picture, not a video"
    assert set(reason_of) >= {"cat/broken.mp4", "cat/noise.mp4", "notes.txt"}
    assert manifest.class_names == ("cat", "dog")
    assert len(manifest.stored(Split.TRAIN)) + len(manifest.stored(Split.HELD_OUT)) == 8


def test_a_stream_that_breaks_off_is_skipped(videos, tmp_path):
    write(tmp_path / "whole.mkv", waves(1, num_frames=60), codec="libx264", pixels="yuv420p")
    data = bytearray((tmp_path / "whole.mkv").read_bytes())
    shutil.copytree(videos, tmp_path / "in")
    (tmp_path / "in" / "cut.mkv").write_bytes(data[:200])
    manifest = ingest([tmp_path / "in"], tmp_path / "out")
    assert list(reasons(manifest)) == ["cut.mkv"]


def test_equal_input_gives_an_equal_set_for_any_number_of_workers(videos, tmp_path):
    for name, workers in (("a", 1), ("b", 3)):
        ingest([videos], tmp_path / name, transcoding=Transcoding(num_workers=workers))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_split_of_a_file_depends_on_its_content_alone(videos, tmp_path):
    before = ingest([videos], tmp_path / "before", held_out_fraction=0.5)
    assert before.stored(Split.TRAIN)
    assert before.stored(Split.HELD_OUT)
    (videos / "dog" / "0.mp4").rename(videos / "dog" / "renamed.mp4")
    (videos / "cat" / "new.mp4").write_bytes(encode_mp4(waves(99), 10.0))
    after = ingest([videos], tmp_path / "after", held_out_fraction=0.5)
    old, new = ({entry.sha256: entry.split for entry in manifest.entries} for manifest in (before, after))
    assert old.items() <= new.items()


def test_labels_captions_and_splits_come_from_a_table(tmp_path):
    for name, indices in (("train.tar", (0, 1, 2)), ("test.tar", (3, 4))):
        with tarfile.open(tmp_path / name, "w") as archive:
            for index in indices:
                data = encode_mp4(waves(index), 10.0)
                member = tarfile.TarInfo(f"clips/{index}.mp4")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    rows = ["0 10 train red", "1 9 train blue", "3 9 test green", "clips/4.mp4 10 val grey", "77 1 test none"]
    table = "\n".join(["id class part words", *rows]).replace(" ", "\t")
    (tmp_path / "labels.tsv").write_text(table)
    manifest = ingest(
        [tmp_path / "train.tar", tmp_path / "test.tar"],
        tmp_path / "out",
        labels=LabelTable(path=tmp_path / "labels.tsv", key="id", label="class", caption="words", split="part"),
    )
    assert manifest.class_names == ("9", "10")
    assert manifest.rows_without_file == ("77",)
    assert reasons(manifest) == {"clips/2.mp4": "no row in labels.tsv"}
    examples = VideoSet(directory=str(tmp_path / "out")).open(Split.HELD_OUT)
    assert {(r.key, r.label, r.caption) for r in examples} == {
        ("clips/3.mp4", 0, "green"),
        ("clips/4.mp4", 1, "grey"),
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,label\n0,a\n", "--key key: .* has no such column; it has id, label"),
        ("key,split\n0,sometimes\n", "line 2: split='sometimes' is no split"),
        ("key,label\n0,a\n0,b\n", "stands in two rows that contradict"),
        ("key,label\n", "no rows below the header"),
    ],
)
def test_a_table_that_does_not_fit_names_the_place(tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table)
    columns = {name: name if name in table.split("\n")[0] else None for name in ("label", "split")}
    with pytest.raises(ValueError, match=message):
        LabelTable(path=tmp_path / "t.csv", **columns).rows()


def test_a_stem_that_names_two_files_is_an_error():
    with pytest.raises(ValueError, match=r"names both a/1\.mp4 and b/1\.mp4"):
        label_table.match(["a/1.mp4", "b/1.mp4"], {"1": Description()})


def test_folders_are_classes_or_splits():
    def said(*names):
        return from_folders(names)

    assert said("x/a/1.mp4", "x/b/2.mp4")[0]["x/b/2.mp4"] == Description(label="b")
    # One class folder is one class.
    assert said("x/1.mp4", "x/2.mp4")[0]["x/1.mp4"] == Description(label="x")
    described, beside = said("train/a/1.mp4", "test/b/2.mp4")
    assert (described["test/b/2.mp4"], beside) == (Description(label="b", split=Split.HELD_OUT), [])
    described, beside = said("train/a/1.mp4", "test/a/2.mp4", "extra/a/3.mp4", "4.mp4")
    assert described["extra/a/3.mp4"] == Description(label="a", split=Split.TRAIN)
    assert described["4.mp4"] == Description(split=Split.TRAIN)
    assert beside == ["extra/"]
    # One folder with the name of a split is a class like others.
    assert said("test/1.mp4", "cat/2.mp4") == (
        {"test/1.mp4": Description(label="test"), "cat/2.mp4": Description(label="cat")},
        [],
    )


def test_a_hostile_tar_writes_nothing_outside(tmp_path):
    good = encode_mp4(waves(0), 10.0)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("../escaped.mp4", "/tmp/dit_video_escaped.mp4", "good.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(good)
            archive.addfile(member, io.BytesIO(good))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    manifest = ingest([path], tmp_path / "out")
    assert reasons(manifest) == {
        "../escaped.mp4": "its name leads out of the archive",
        "/tmp/dit_video_escaped.mp4": "its name leads out of the archive",
        "link.mp4": "a link (to /etc/passwd)",
    }
    assert not Path("/tmp/dit_video_escaped.mp4").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_nothing_usable_says_what_was_found_and_leaves_nothing(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(ValueError, match="photos: empty"):
        ingest([folder], tmp_path / "out")
    for index in range(3):
        Image.fromarray(waves(index)[0]).save(folder / f"{index}.jpg")
    with pytest.raises(ValueError, match=r"photos: no usable video among 3 files \(3 \.jpg\): 3 x a picture"):
        ingest([folder], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_of_files_that_are_all_broken_the_first_few_are_named(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.MP4").write_bytes(bytes(range(256)) * 40)
    (folder / "empty.mp4").touch()
    with pytest.raises(
        ValueError, match=r"6 files \(6 \.mp4\): 5 x not a.* \(0\.MP4, 1\.MP4, 2\.MP4, \.\.\.\); 1 x an empty"
    ):
        ingest([folder], tmp_path / "out")


def test_an_existing_folder_is_never_overwritten(videos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match=r"out: is there already and not empty"):
        ingest([videos], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or tar"):
        ingest([tmp_path / "nowhere"], tmp_path / "other")


def test_large_videos_are_scaled_to_max_size(videos, tmp_path):
    manifest = ingest([videos], tmp_path / "out", transcoding=Transcoding(max_size=16))
    assert {(e.height, e.width, e.stored) for e in manifest.entries} == {(16, 24, "encoded")}


def test_the_manifest_is_plain_json_with_counts(video_set):
    content = json.loads((video_set / "manifest.json").read_text())
    assert content["format"] == "dit_video.video_set"
    assert content["counts"]["train"] + content["counts"]["held_out"] == 8
    assert {"file", "sha256", "frames", "fps", "width", "height", "label", "caption", "split", "reason"} <= set(
        content["entries"][0]
    )


def test_a_manifest_from_before_is_read(video_set):
    path = video_set / "manifest.json"
    content = json.loads(path.read_text())
    for entry in content["entries"]:
        for name in ("left_out", "doubled", "notes", "group", "split_by"):
            del entry[name]
    before = VideoSet(directory=str(video_set)).manifest()
    path.write_text(json.dumps(content))
    # What decided its splits is not known: they stay.
    entries = tuple(replace(entry, split_by=SplitBy.LABELS) for entry in before.entries)
    assert VideoSet(directory=str(video_set)).manifest() == replace(before, entries=entries)


def test_what_was_done_to_a_file_is_in_the_manifest(tmp_path):
    times = [33, 67, 100, 133, 233, 333, 433, 533]
    (tmp_path / "in").mkdir()
    write_frames(tmp_path / "in" / "a.mkv", yuv(waves(0, num_frames=8)), codec="ffv1", times=times)
    entry = ingest([tmp_path / "in"], tmp_path / "set", held_out_fraction=0.0).entries[0]
    assert entry.notes.startswith("variable rate (10 to 30.3 frames a second) made 14")
    assert entry.fps == pytest.approx(14)
    assert (entry.left_out, entry.doubled) == (1, 1)
    record = VideoSet(directory=str(tmp_path / "set")).open(Split.TRAIN)[0]
    assert decode(record.video)[1] == record.fps == entry.fps
