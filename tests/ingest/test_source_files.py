"""Laws of listing: every file of a source has a name of its own and is opened, or has its reason."""

import os
import random
import tarfile

import pytest

from dit_video.ingest.sidecars import MAX_BYTES, describe, separate
from dit_video.ingest.source_files import SourceFile, files, list_files


def touch(folder, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def listed(*sources) -> dict[str, str]:
    return {item.key: item.reason for item in list_files(list(sources))}


def test_two_sources_with_a_name_in_common_are_told_apart(tmp_path):
    touch(tmp_path / "one", "a.mp4", "b.mp4")
    touch(tmp_path / "two", "a.mp4")
    assert list(listed(tmp_path / "one")) == ["a.mp4", "b.mp4"]
    assert list(listed(tmp_path / "one", tmp_path / "two")) == ["one/a.mp4", "one/b.mp4", "two/a.mp4"]
    touch(tmp_path / "deep" / "one", "a.mp4")
    with pytest.raises(ValueError, match=r"one/a\.mp4: 2 files of this name; give each source once"):
        listed(tmp_path / "one", tmp_path / "deep" / "one")


def test_what_is_no_file_to_be_opened_has_its_reason(tmp_path):
    touch(tmp_path, "in/a.mp4", "in/.hidden.mp4", "in/b.tar.gz", "other/c.mp4")
    touch(tmp_path, "in/empty.mp4", content=b"")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    assert listed(tmp_path / "in") == {
        ".hidden.mp4": "a hidden file",
        "a.mp4": "",
        "b.tar.gz": "an archive; give a tar as a source of its own",
        "empty.mp4": "an empty file",
        "gone.mp4": "a link to nothing",
        "linked": "a link to a folder; give that folder itself",
        "pipe.mp4": "not a regular file",
    }
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or tar"):
        listed(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a\.mp4: neither a folder nor a tar"):
        listed(tmp_path / "in" / "a.mp4")


@pytest.mark.parametrize(
    ("names", "clips"),
    [
        (("a/1.png", "a/2.png"), ["a"]),
        (("a/1.png", "a/2.png", "a/notes.txt", "a/.DS_Store"), ["a", "a/.DS_Store", "a/notes.txt"]),
        # One picture is a photograph; beside videos they are covers; in the source itself they are photographs.
        (("a/1.png",), ["a/1.png"]),
        (("a/1.png", "a/2.png", "a/b.mp4"), ["a/1.png", "a/2.png", "a/b.mp4"]),
        (("1.png", "2.png"), ["1.png", "2.png"]),
        (("a/x.png", "a/y.png"), ["a/x.png", "a/y.png"]),
        (("a/b/1.png", "a/b/2.png", "a/c.mp4"), ["a/b", "a/c.mp4"]),
    ],
)
def test_a_folder_is_a_clip_where_it_has_numbered_pictures_and_no_video(tmp_path, names, clips):
    touch(tmp_path, *names)
    assert sorted(listed(tmp_path)) == clips


def test_members_of_a_tar_are_copied_by_names_of_ours(tmp_path):
    touch(tmp_path / "in", "d/a.mp4", "b.mp4", content=b"first")
    touch(tmp_path / "in", "empty.mp4", content=b"")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "in", "")
        hard = tarfile.TarInfo("hard.mp4")
        hard.type, hard.linkname = tarfile.LNKTYPE, "b.mp4"
        archive.addfile(hard)
        device = tarfile.TarInfo("null.mp4")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    items = list_files([tmp_path / "x.tar"])
    assert {item.name: item.reason for item in items} == {
        "b.mp4": "",
        "d/a.mp4": "",
        "empty.mp4": "an empty file",
        "hard.mp4": "a link (to b.mp4)",
        "null.mp4": "not a regular file",
    }
    (tmp_path / "spool").mkdir()
    copied = {item.name: path for item, path in files(items, tmp_path / "spool")}
    assert copied.keys() == {item.name for item in items}
    for name, path in copied.items():
        assert path.parent == tmp_path / "spool"
        assert path.name.startswith("tar0-")
        assert path.suffix == ".mp4"
        assert path.exists() == (name in ("b.mp4", "d/a.mp4"))
    assert copied["d/a.mp4"].read_bytes() == b"first"


def test_an_archive_that_breaks_off_says_after_how_many(tmp_path):
    names = [f"{number}.mp4" for number in range(4)]
    touch(tmp_path / "in", *names, content=random.Random(0).randbytes(20_000))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            archive.add(tmp_path / "in" / name, name)
    whole = (tmp_path / "x.tar").read_bytes()
    # Of the third the header is there.
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) * 5 // 8])
    with pytest.raises(ValueError, match=r"x\.tar: the archive breaks off after 3 members"):
        listed(tmp_path / "x.tar")


def item(name: str, source, reason: str = "") -> SourceFile:
    return SourceFile(source=source, name=name, key=name, reason=reason)


def test_sidecars_belong_to_the_video_of_their_name_in_their_source(tmp_path):
    names = ("a.mp4", "a.txt", "a.srt", "b.txt", "d.v2", "d.v2.json", "A.TXT", "e.mp4")
    items = [item(name, tmp_path) for name in names]
    items += [item("e.txt", tmp_path / "other"), item("e.cls", tmp_path, "a hidden file")]
    marked, sidecars = separate(items)
    assert [one.name for one in marked] == [one.name for one in items]
    assert {one.name: one.reason for one in marked if one.reason} == {
        "a.txt": "a sidecar of a.mp4",
        "a.srt": "a sidecar of a.mp4",
        "d.v2.json": "a sidecar of d.v2",
        "e.cls": "a hidden file",
    }
    assert {key: [one.name for one in of] for key, of in sidecars.items()} == {
        "a.mp4": ["a.txt"],
        "d.v2": ["d.v2.json"],
    }


@pytest.mark.parametrize(
    ("text", "label", "caption", "split"),
    [
        ('{"caption": "a", "text": "b", "label": 1, "class": 2, "split": "val"}', "1", "a", "held_out"),
        ('{"text": "b", "cls": "x", "split": "neither"}', "x", "b", None),
        ('{"class": "nan"}', None, "", None),
        ('{"label": ["x"], "caption": null}', None, "", None),
        ("[1]", None, "", None),
    ],
)
def test_a_json_sidecar_gives_what_it_has(tmp_path, text, label, caption, split):
    (tmp_path / "a.json").write_text(text)
    [what] = describe({"a.mp4": [item("a.json", tmp_path)]}).values()
    assert (what.label, what.caption, what.split) == (label, caption, split)


def test_several_sidecars_of_a_video_add_up(tmp_path):
    (tmp_path / "a.txt").write_text("a  cat\n")
    (tmp_path / "a.cls").write_text(" 7\n")
    (tmp_path / "a.json").write_text('{"split": "train"}')
    [what] = describe({"a.mp4": [item(f"a.{end}", tmp_path) for end in ("txt", "cls", "json")]}).values()
    assert (what.label, what.caption, what.split) == ("7", "a cat", "train")


def test_a_sidecar_may_have_a_mebibyte_and_no_more(tmp_path):
    assert MAX_BYTES == 1024**2
    (tmp_path / "a.txt").write_bytes(b"x" * MAX_BYTES)
    [what] = describe({"a.mp4": [item("a.txt", tmp_path)]}).values()
    assert len(what.caption) == MAX_BYTES
    (tmp_path / "a.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"a\.txt: more than the 1048576 bytes that are read of a sidecar"):
        describe({"a.mp4": [item("a.txt", tmp_path)]})
