"""Laws of recording: a set is a function of world, policy and seed, however many processes make it, killed or not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pools import InThisProcess

from dit_video.cli.main import main
from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.data.video_set import UNFINISHED
from dit_video.ingest import recording
from dit_video.ingest.recording import Recording, record
from dit_video.video.decode import decode_frames
from dit_video.worlds.corridor import Corridor

SMALL = Recording(environment="corridor", num_steps=40, episode_steps=8, size=16)
ROOT = Path(__file__).parents[2]


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "array_record" in path.name}


@pytest.fixture
def here(monkeypatch):
    """Episodes are recorded in this process."""
    monkeypatch.setattr(recording, "ProcessPoolExecutor", InThisProcess)


@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "ProcessPoolExecutor", InThisProcess)
        return folder, record(SMALL, folder, num_workers=2, held_out_fraction=0.3)


def test_frames_and_poses_are_those_that_follow_from_the_actions(corridor):
    folder, manifest = corridor
    about = manifest.settings
    assert (about["made_by"], about["environment"], about["environment_version"]) == ("record", "corridor", "1")
    assert manifest.tracks.pose == ("x", "y", "angle")
    examples = [example for split in Split for example in VideoSet(directory=str(folder)).open(split)]
    assert sum(example.num_frames - 1 for example in examples) == 40
    world = Corridor(size=16)
    for example in examples:
        shown = [world.reset(about["episodes"][example.key]["seed"])]
        shown += [world.step(int(action)) for action in example.actions[1:]]
        assert example.actions[0] == -1
        np.testing.assert_array_equal(example.poses, np.stack([o.pose for o in shown]).astype(np.float32))
        video = decode_frames(example.video, list(range(example.num_frames)))
        error = np.abs(video.astype(float) - np.stack([o.frame for o in shown])).mean()
        assert error < 12, "of H.264 with half the colours"


def test_the_split_is_of_whole_episodes(corridor):
    _, manifest = corridor
    held_out = {entry.file for entry in manifest.stored(Split.HELD_OUT)}
    assert held_out
    assert held_out.isdisjoint(entry.file for entry in manifest.stored(Split.TRAIN))
    assert {entry.frames for entry in manifest.entries} == {9}


@pytest.mark.slow
def test_two_processes_record_what_one_does(corridor, tmp_path):
    folder, manifest = corridor
    again = record(SMALL, tmp_path / "set", num_workers=2, held_out_fraction=0.3)
    assert again == manifest
    assert shards(folder) == shards(tmp_path / "set")


@pytest.mark.slow
def test_a_killed_recording_goes_on(corridor, tmp_path):
    """A process of its own is killed in the middle; what it has recorded stays, and its workers end with it."""
    whole, out = corridor[0], tmp_path / "set"
    command = [sys.executable, "-m", "dit_video", "data", "record", "corridor", f"--out={out}", "--steps=40"]
    command += ["--episode_steps=8", "--size=16", "--held_out_fraction=0.3", "--num_workers=1"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    journal = out / UNFINISHED / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 2):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(journal.read_bytes().splitlines())
    assert kept > 2
    deadline = time.monotonic() + 30
    while _lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(process.pid), "a worker outlived its parent"
    assert subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    assert shards(out) == shards(whole)
    assert not (out / UNFINISHED).exists()


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


PLAYER = """
def get_policy(arg=""):
    return lambda about, rng: lambda frame: about.actions.names.index(arg or "forward")
"""


def test_a_policy_of_ones_own_and_what_a_set_says_of_its_actions(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("player.py").write_text(PLAYER)
    options = ["--steps", "12", "--episode_steps", "4", "--size", "16", "--policy", "player.py:turn_left"]
    assert main(["data", "record", "corridor", "--out", "set", *options, "--repeat", "2", "--json"]) == 0
    recorded = capsys.readouterr().out
    assert main(["data", "inspect", "set", "--json"]) == 0
    assert capsys.readouterr().out == recorded
    said = json.loads(recorded)["actions"]
    assert said["names"] == ["noop", "forward", "back", "turn_left", "turn_right"]
    counts = [sum(said["frames"][split].get(name, 0) for split in said["frames"]) for name in said["names"]]
    assert counts == [0, 0, 0, 12, 0]
    assert main(["data", "inspect", "set"]) == 0
    assert "turn_left" in capsys.readouterr().out
    manifest = VideoSet(directory="set").manifest()
    assert (manifest.settings["repeat"], manifest.entries[0].fps) == (2, 5.0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["corridor", "--policy=best"], "--policy=best: must be sticky"), (["nowhere"], "environment of Gymnasium"),
        (["corridor", "--policy=there.py"], "there.py"), (["corridor", "--size=9"], "size=9 must be even"),
        (["corridor", "--held_out_fraction=1"], "held_out_fraction=1"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_named_before_anything_is_made(options, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "record", *options, "--out=set", "--steps=5"]) == 1
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
