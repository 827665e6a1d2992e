"""`dit-video data`: what a set holds is shown, how long its captions are among it."""

import contextlib
import json
from pathlib import Path

import pytest
from PIL import Image
from sample_videos import waves

from dit_video.cli import data
from dit_video.cli.main import main
from dit_video.ingest import transcoding
from dit_video.video.encode import encode_mp4

CAPTIONS = ("", "a cat", "a cat on a mat, at dusk", "ä" * 20)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """A set of four clips, of which one has no caption and the longest has 40 bytes."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "clips").mkdir()
    for index, caption in enumerate(CAPTIONS):
        (folder / "clips" / f"{index}.mp4").write_bytes(encode_mp4(waves(index, 4, 16, 16), 10.0))
        (folder / "clips" / f"{index}.txt").write_text(caption)
    words = [str(folder / "clips"), f"--out={folder / 'set'}", "--held_out_fraction=0", "--json"]
    with (folder / "set.json").open("w") as file, contextlib.redirect_stdout(file):
        assert main(["data", "ingest", *words]) == 0
    return folder / "set"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "bytes of a caption: 5 to 40, half of them at most 23"),
        (["--caption_bytes=41"], "leaves room for 40: 0 of 3 captions are longer"),
        (["--caption_bytes=24"], "leaves room for 23: 1 of 3 captions are longer and would be cut; 41 would hold"),
    ],
)
def test_captions_are_measured(captioned, words, line, capsys):
    assert main(["data", "inspect", str(captioned), *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert line in shown
    assert "captions: 3, 3 of them different" in shown
    for row in ("│ none │ 1 │", "│ 1..16 │ 1 │", "│ 17..32 │ 1 │", "│ 33..64 │ 1 │"):
        assert row in shown


def test_a_set_is_told_as_json(captioned, capsys):
    assert main(["data", "inspect", str(captioned), "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed == captioned.with_name("set.json").read_text()
    found = json.loads(printed)
    train, held_out = (found["splits"][split] for split in ("train", "held_out"))
    assert (train["videos"], held_out["videos"]) == (4, 0)
    assert train["captions"] == {"videos": 3, "different": 3, "bytes": [5, 40]}
    assert (train["sizes"], train["frames"]) == ({"16x16": 4}, [4, 4])
    assert (held_out["frames"], held_out["bytes"]) == (None, 0)
    assert {"file": "0.txt", "reason": "an empty file"} in found["skipped"]


def test_what_was_made_of_text_and_of_digits_is_told_as_json(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a text\n" * 30)
    (tmp_path / "b.txt").write_text("")
    assert main(["data", "text", str(tmp_path), f"--out={tmp_path / 'set'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(split["bytes"] for split in found["splits"].values()) == 30 * 7
    assert [entry["file"] for entry in found["noted"] if entry["left_out"]] == ["b.txt"]
    counts = ["--num_train=2", "--num_held_out=1", "--num_frames=2"]
    assert main(["data", "digits", f"--out={tmp_path / 'digits'}", *counts, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"videos": {"train": 2, "held_out": 1}}


def test_the_file_that_is_waited_for_is_named_with_escapes(tmp_path, capsys, monkeypatch):
    """Again as long as it takes."""
    monkeypatch.setattr(data, "SAID_EVERY", 0.0)
    monkeypatch.setattr(transcoding, "SAID_EVERY", 0.001)
    (tmp_path / "clips").mkdir()
    names = ["a.mp4", "b\x1b[2J.mp4"]
    for index, name in enumerate(names):
        (tmp_path / "clips" / name).write_bytes(encode_mp4(waves(index, 4, 16, 16), 10.0))
    words = [str(tmp_path / "clips"), f"--out={tmp_path / 'set'}", "--held_out_fraction=0", "--num_workers=1"]
    assert main(["data", "ingest", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said.count("reading: 0/2, at a.mp4") > 1
    assert "reading: 1/2, at b\\x1b[2J.mp4" in said
    assert not any("\x1b" in line for line in said)


@pytest.mark.parametrize("name", ["sheet", "sheet.mp4", "sheet.PNG"])
def test_a_contact_sheet_is_a_picture(captioned, name, tmp_path, capsys):
    code = main(["data", "inspect", str(captioned), f"--out={tmp_path / name}"])
    captured = capsys.readouterr()
    if name == "sheet.PNG":
        with Image.open(tmp_path / name) as sheet:
            assert (code, sheet.format) == (0, "PNG")
    else:
        assert code == 1
        assert f"{name}: must end in .png or .jpg" in captured.err
        assert not captured.out
