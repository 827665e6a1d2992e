"""`dit-video data shapes`: what it prints is what training does, and says where each video goes."""

import json
from pathlib import Path

import pytest
from sample_videos import waves

from dit_video.cli.main import main
from dit_video.video.encode import encode_mp4

# Of a network that is counted in a moment.
CONFIG = ["--config=experiments/any_frames.py", "--config.data.clips.size=(32, 32)", "--config.data.batch_size=32"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A set of squares, a wide one and a still."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "clips").mkdir()
    for name, (frames, height, width) in {
        "square0": (24, 32, 32),
        "square1": (24, 32, 32),
        "wide": (24, 24, 40),
        "still": (1, 32, 32),
    }.items():
        (folder / "clips" / f"{name}.mp4").write_bytes(encode_mp4(waves(ord(name[-1]), frames, height, width), 10.0))
    assert main(["data", "ingest", str(folder / "clips"), f"--out={folder / 'set'}", "--held_out_fraction=0"]) == 0
    return folder / "set"


@pytest.mark.slow
def test_shapes_are_chosen_and_said_with_what_they_cost(videos, capsys):
    capsys.readouterr()
    assert main(["data", "shapes", str(videos), "--num=3", "--json", *CONFIG]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(use["shape"], use["clips"]) for use in found["shapes"]] == [
        ([21, 32, 32], 2),
        ([21, 24, 40], 1),
        ([1, 32, 32], 1),
    ]
    assert found["programs"] == 3
    assert found["spread"] < 0.1
    assert found["lost"]["total"] < min(found["best_single_shape"]["total"], found["grid_by_hand"]["total"])
    assert found["shapes"][0]["batch_size"] == 32
    capsys.readouterr()
    assert main(["data", "shapes", str(videos), "--num=3", "--explain=wide.mp4", *CONFIG]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "wide.mp4: 24 frames of 24x40 at 10 a second; taken as they are, 24 frames" in shown
    assert "21x24x40 │ 0.0% │ 0.0% │ goes here: loses least" in shown


def test_a_file_that_is_not_there_is_said_with_those_that_are(videos, capsys):
    assert main(["data", "shapes", str(videos), "--num=1", "--explain=none.mp4", *CONFIG]) == 1
    assert "--explain=none.mp4: no training video has that name; there are: " in " ".join(
        capsys.readouterr().err.split()
    )
