"""Laws of manifests: what decides where and how records are read is checked."""

import dataclasses
import hashlib
import json

import pytest

from dit_video.data.record import NO_LABEL, Split
from dit_video.data.signals import CaptionBytes, ClassLabel, examples_of
from dit_video.data.sources import VideoSet
from dit_video.data.text_cache import TextCache
from dit_video.data.video_set import (
    Entry,
    Manifest,
    _to_json,
    file_digest,
    read_manifest,
    write_video_set,
)
from dit_video.video.files import MAX_FPS, MAX_FRAMES
from dit_video.video.pictures import MAX_FRAME_PIXELS

STORED = {"split": Split.TRAIN, "frames": 5, "fps": 8.0, "width": 4, "height": 2, "stored": "copied"}
MANIFEST = Manifest(
    settings={"made_by": "hand"},
    class_names=("cat",),
    entries=(
        Entry(file="b.mp4", source="x", sha256="2", index=1, label="cat", **STORED),
        Entry(file="a.mp4", source="x", sha256="1", index=0, **STORED),
        Entry(file="c.mp4", source="x", sha256="3", index=0, **STORED | {"split": Split.HELD_OUT}),
        Entry(file="d.txt", source="x", reason="text, not a video"),
    ),
    rows_without_file=("e",),
)


def read(folder, content: dict) -> Manifest:
    (folder / "manifest.json").write_text(json.dumps(content))
    return read_manifest(folder, remedy="dit-video data ingest")


def test_a_manifest_comes_back_and_counts_what_it_has(tmp_path):
    content = json.loads(_to_json(MANIFEST))
    assert (content["format"], content["version"]) == ("dit_video.video_set", 1)
    assert content["counts"] == {"train": 2, "held_out": 1, "skipped": 1}
    assert read(tmp_path, content) == MANIFEST
    assert [entry.file for entry in MANIFEST.stored(Split.TRAIN)] == ["a.mp4", "b.mp4"]
    assert [entry.file for entry in MANIFEST.skipped()] == ["d.txt"]
    assert MANIFEST.split_digest(Split.TRAIN) == hashlib.sha256(b"1\n2").hexdigest()
    assert (MANIFEST.entries[3].index, NO_LABEL) == (-1, -1)
    for entry in content["entries"]:
        del entry["left_out"], entry["doubled"], entry["notes"]
    assert read(tmp_path, content) == MANIFEST


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"frames": MAX_FRAMES}),
        (0, {"width": MAX_FRAME_PIXELS}),
        (0, {"fps": float(MAX_FPS)}),
        (0, {"fps": 0.001}),
        (0, {"frames": 1, "height": 1}),
        (3, {"frames": 0, "fps": 0.0}),
        (3, {"file": "../x"}),
    ],
)
def test_values_at_the_limits_are_read_and_of_skipped_files_any(tmp_path, number, change):
    content = json.loads(_to_json(MANIFEST))
    content["entries"][number] |= change
    entry = read(tmp_path, content).entries[number]
    assert {name: getattr(entry, name) for name in change} == change


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"frames": MAX_FRAMES + 1}, "frames=524289: must be above 0 and at most 524288"),
        (0, {"frames": 0}, "frames=0: must be above 0"),
        (0, {"width": 0}, "width=0: must be above 0"),
        (0, {"height": MAX_FRAME_PIXELS + 1}, "height=35389441: must be above 0"),
        (0, {"fps": 0.0}, "fps=0.0: must be above 0"),
        (0, {"fps": 90_000.5}, "fps=90000.5: must be above 0 and at most 90000"),
        (0, {"frames": True}, r"entries\[0\].frames=True: is bool"),
        (0, {"label": 3}, r"entries\[0\].label=3: is int"),
        (0, {"file": ""}, "its name leads out of its source"),
        (0, {"file": "/x"}, "its name leads out of its source"),
        (0, {"file": "a/../x"}, "its name leads out of its source"),
        (0, {"file": "a.mp4"}, "two entries of train have one file name"),
        (0, {"index": 2}, "index=2: train has one record for each position"),
        (1, {"index": 1}, "index=1: train has one record for each position"),
        (0, {"split": "test"}, r"entries\[0\].split='test': must be one of train, held_out"),
        (0, {"more": 1}, r"entries\[0\]=.*: must have the fields"),
    ],
)
def test_entries_that_no_program_of_ours_wrote_are_refused(tmp_path, number, change, message):
    content = json.loads(_to_json(MANIFEST))
    content["entries"][number] |= change
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{message}.*; make the set again: dit-video data ingest"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, but this program reads 'dit_video.video_set' version 1; dit-video data ingest"),
        ({"entries": [3]}, r"entries\[0\]=3: must have the fields"),
        ({"class_names": ["cat", 1]}, "class_names=.*: must be strings"),
        ({"rows_without_file": [1]}, "rows_without_file=.*: must be strings"),
        ({"settings": []}, r"settings=\[\]: must be an object"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, json.loads(_to_json(MANIFEST)) | change)


def test_a_folder_without_a_manifest_is_told_from_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json, so it is not a video set; do this"):
        read_manifest(tmp_path, remedy="do this")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; do this"):
        read_manifest(tmp_path / "nowhere", remedy="do this")


def test_the_digest_of_a_folder_is_that_of_its_names_and_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "2.png").write_bytes(b"two")
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    expected = hashlib.sha256(json.dumps([("1.png", one), ("2.png", two)]).encode()).hexdigest()
    assert file_digest(tmp_path / "a") == expected
    assert file_digest(tmp_path / "a" / "1.png") == one


def test_what_is_written_is_what_the_manifest_says(tmp_path, video_set):
    """A record without a class has the label -1; progress counts the records of all splits."""
    original = VideoSet(directory=str(video_set)).manifest()
    entries = tuple(dataclasses.replace(e, label=None if i % 2 else e.label) for i, e in enumerate(original.entries))
    done: list[tuple[int, int]] = []
    written = write_video_set(
        tmp_path,
        dataclasses.replace(original, entries=entries),
        lambda entry: entry.file.encode(),
        shard_size=1 << 30,
        on_record=lambda *counts: done.append(counts),
    )
    assert done == [(i + 1, 8) for i in range(8)]
    assert read_manifest(tmp_path, remedy="") == written
    source = VideoSet(directory=str(tmp_path))
    for split in Split:
        for record, entry in zip(source.open(split), written.stored(split), strict=True):
            assert record.video == entry.file.encode()
            label = NO_LABEL if entry.label is None else written.class_names.index(entry.label)
            assert (record.key, record.label, record.fps) == (entry.file, label, entry.fps)
        assert source.open(split).labels.tolist() == [record.label for record in source.open(split)]
        assert source.open(split).captions == [record.caption for record in source.open(split)]


def test_records_that_are_not_those_of_the_manifest_are_refused(video_set):
    source = VideoSet(directory=str(video_set))
    content = json.loads((video_set / "manifest.json").read_text())
    train = [entry for entry in content["entries"] if entry["split"] == "train"]
    one, other = train[:2]
    one["index"], other["index"] = other["index"], one["index"]
    (video_set / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"record \d is '.*', but the manifest says '.*'"):
        list(source.open(Split.TRAIN))
    last = max(train, key=lambda entry: entry["index"])
    last["split"], last["index"] = None, -1
    (video_set / "manifest.json").write_text(json.dumps(content))
    number = len(train)
    with pytest.raises(ValueError, match=rf"{number} records, but the manifest names {number - 1}; the folder was"):
        source.open(Split.TRAIN)


def test_words_become_labels_and_captions():
    labels, warnings = ClassLabel(), []
    names = ("tench, Tinca tinca", "goldfish", *(f"c{i}" for i in range(30)))

    def parse(word: str) -> list[int]:
        return labels.parse(word, lambda: names, warnings.append).tolist()

    assert [parse(word) for word in ("goldfish", "Tinca tinca", "tench", "tench, Tinca tinca", "7", "99")] == [
        [1], [0], [0], [0], [7], [99]
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"tinca, goldfish, c0, .*, c17, \.\.\., its number, all"):
        parse("fish")
    with pytest.raises(ValueError, match="'fish' is no class: must be one of a, b, its number, all"):
        labels.parse("fish", lambda: ("a", "b"), warnings.append)
    assert labels.choices(lambda: names)[:3] == ["0", "1", "2"]
    assert labels.example(3).tolist() == [-1] * 3
    captions = CaptionBytes(num_bytes=5)
    assert captions.parse("abcd", lambda: (), warnings.append).tolist() == [[255, *b"abcd"]]
    assert warnings == []
    captions.parse("abcde", lambda: (), warnings.append)
    assert warnings == ["'abcde' is cut: config.data.signals.caption.num_bytes=5 leaves room for 4"]
    assert captions.example(2).tolist() == [[255, 0, 0, 0, 0]] * 2
    assert list(examples_of({"caption": captions, "text": TextCache(directory="x")}, 2)) == ["caption"]
    with pytest.raises(ValueError, match="num_bytes=1: must be at least 2"):
        CaptionBytes(num_bytes=1)
