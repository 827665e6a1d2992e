"""Laws of strangers' actions: a row leads to its frame or from it, as is said; a video without is left out by name."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from sample_videos import waves

from dit_video.cli.main import main
from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.ingest.action_files import ActionFiles, Leads, _read
from dit_video.ingest.array_files import ACTIONS
from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding
from dit_video.video.encode import encode_mp4

T = 6
PRESSED = np.array([2, 0, 1, 1, 2, 0])


def videos(folder: Path, num: int = 1) -> Path:
    folder.mkdir()
    for number in range(num):
        (folder / f"{number}.mp4").write_bytes(encode_mp4(waves(number, T, 16, 16), 10.0))
    return folder


def made(folder: Path, out: Path, pattern: str, leads: Leads = Leads.TO, columns: tuple[str, ...] = ()):
    files = ActionFiles(pattern=pattern, leads=leads, columns=columns)
    one = Transcoding(num_workers=1)
    return ingest([folder], out, actions=files, held_out_fraction=0.0, transcoding=one)


def actions(out: Path) -> dict[str, np.ndarray]:
    return {record.key: record.actions for record in VideoSet(directory=str(out)).open(Split.TRAIN)}


def test_a_row_leads_to_its_frame_or_from_it(tmp_path):
    folder = videos(tmp_path / "in")
    np.savez(folder / "0_actions.npz", actions=PRESSED, action_names=["Key.NOOP", "Key.LEFT", "Key.RIGHT"])
    for leads, expected in ((Leads.TO, [-1, 0, 1, 1, 2, 0]), (Leads.FROM, [-1, 2, 0, 1, 1, 2])):
        manifest = made(folder, tmp_path / leads, "{stem}_actions.npz", leads)
        assert manifest.tracks.actions.names == ("noop", "left", "right")
        assert actions(tmp_path / leads)["0.mp4"].tolist() == expected
        assert [(e.file, e.reason) for e in manifest.skipped()] == [("0_actions.npz", "the actions of 0.mp4")]


def test_tables_of_all_kinds_are_read(tmp_path):
    """Words are discrete actions by name, numbers in columns continuous ones; of T frames there may be T - 1 rows."""
    folder = videos(tmp_path / "in", 1)
    words = ["stay", "go", "go", "stay", "jump"]
    lines = [json.dumps({"frame": n, "action": word}) for n, word in enumerate(words)]
    (folder / "0.jsonl").write_text("\n".join(lines))
    manifest = made(folder, tmp_path / "words", "{stem}.jsonl")
    assert manifest.tracks.actions.names == ("go", "jump", "stay")
    assert actions(tmp_path / "words")["0.mp4"].tolist() == [-1, 2, 0, 0, 2, 1]
    steering = np.linspace(-1, 1, T)
    columns = {"angle": steering, "throttle": steering**2, "other": ["x"] * T}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "0.parquet")
    manifest = made(folder, tmp_path / "wheel", "{stem}.parquet", columns=("angle", "throttle"))
    assert (manifest.tracks.actions.names, manifest.tracks.actions.continuous) == (("angle", "throttle"), True)
    found = actions(tmp_path / "wheel")["0.mp4"]
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], np.stack([steering, steering**2], 1)[1:].astype(np.float32))


@pytest.mark.parametrize(
    ("text", "columns", "numbers", "names"),
    [
        ("action\n2\n0\n", (), [2, 0], ()),
        ("action\n2.0\n0\n", (), [2, 0], ()),
        ("action\n0.5\n0\n", (), [[0.5], [0]], ("action",)),
        ("x,y\n2,0\n1,3\n", ("x", "y"), [[2, 0], [1, 3]], ("x", "y")),
        ("x,y\n2,0\n1,3\n", ("y",), [0, 3], ()),
    ],
)
def test_one_column_of_whole_numbers_is_discrete_and_all_else_continuous(tmp_path, text, columns, numbers, names):
    (tmp_path / "0.csv").write_text(text)
    found, named = _read(tmp_path / "0.csv", columns)
    assert (found.tolist(), named) == (numbers, names)
    assert found.dtype == (np.int32 if found.ndim == 1 else np.float32)


def test_a_video_without_actions_of_its_own_is_left_out_and_named(tmp_path):
    folder = videos(tmp_path / "in", 4)
    np.savez(folder / "0.npz", action=PRESSED)
    np.savez(folder / "1.npz", action=PRESSED[:3])
    (folder / "2.npz").write_bytes(b"PK broken")
    reasons = {entry.file: entry.reason for entry in made(folder, tmp_path / "out", "{stem}.npz").skipped()}
    assert reasons["1.mp4"] == "without actions: 3 rows for 6 frames; there must be one for each, or one fewer"
    assert "no readable .npz" in reasons["2.mp4"]
    assert "no file 3.npz beside it" in reasons["3.mp4"]
    assert list(actions(tmp_path / "out")) == ["0.mp4"]


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.array([0, -5, 0, 0, 0, 0]), "action -5"), (np.full((T, 2), np.inf), "not finite"),
        (np.zeros((T, 2, 2)), "not one row"), (np.array(["a"] * T), "not one row"),
    ],
)  # fmt: skip
def test_what_is_no_action_is_named(array, named, tmp_path):
    np.savez(tmp_path / "0.npz", action=array)
    with pytest.raises(ValueError, match=named):
        _read(tmp_path / "0.npz", ())


def test_the_command_asks_what_a_row_leads_to(tmp_path, capsys):
    folder = videos(tmp_path / "in")
    np.savez(folder / "0.npz", action=PRESSED)
    command = ["data", "ingest", str(folder), "--out", str(tmp_path / "out"), "--actions", "{stem}.npz"]
    assert main(command) == 1
    assert "--action_leads" in capsys.readouterr().err
    assert main([*command, "--action_leads", "to", "--num_workers", "1"]) == 0
    assert main([*command, "--action_leads", "to", "--add"]) == 1
    assert "is not extended" in capsys.readouterr().err


def test_arrays_of_videos_and_actions_are_a_source(tmp_path):
    video = np.stack([waves(number, T, 16, 16) for number in range(2)])
    acted = np.random.default_rng(0).standard_normal((2, T, 3)).astype(np.float32)
    np.savez(tmp_path / "robot.npz", video=video, action=acted, caption=["lift it", "drop it"], reward=np.zeros(2))
    manifest = made(tmp_path / "robot.npz", tmp_path / "out", ACTIONS)
    assert {entry.caption for entry in manifest.stored(Split.TRAIN)} == {"lift it", "drop it"}
    for key, found in actions(tmp_path / "out").items():
        np.testing.assert_array_equal(found[1:], acted[int(key[:4]), 1:])
    np.savez(tmp_path / "other.npz", picture=video)
    with pytest.raises(ValueError, match="has no array video or videos or frames, but picture"):
        made(tmp_path / "other.npz", tmp_path / "other", ACTIONS)
    np.savez(tmp_path / "short.npz", video=video, action=acted[:1])
    with pytest.raises(ValueError, match="1 actions of 2 videos"):
        made(tmp_path / "short.npz", tmp_path / "short", ACTIONS)
