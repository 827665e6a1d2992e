"""`dit-video new`: a file to start from, of an experiment of this package, of a run, on data of one's own."""

import json
from pathlib import Path

import pytest
from sample_videos import waves

from dit_video import experiment as experiments
from dit_video.cli.main import main
from dit_video.config.components import flatten
from dit_video.experiment import load
from dit_video.run.folder import record
from dit_video.video.encode import encode_mp4

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_is_an_experiment_for_every_command(capsys):
    """Its folder, its experiment.json and a file that is written of it name one experiment."""
    experiment = load("experiments/quickstart.py:vae", ["--config.seed=7"])
    Path("runs/a").mkdir(parents=True)
    record(experiment, Path("runs/a"), [], allow_change=False)
    assert main(["new", "again.py", "--from=runs/a"]) == 0
    assert load("again.py") == experiment
    printed = []
    for name in ("runs/a", "runs/a/experiment.json", "again.py"):
        capsys.readouterr()
        assert main(["show", f"--config={name}", "--config.schedule.num_steps=5", "--json"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] == printed[2]
    assert printed[0]["schedule"]["num_steps"] == 5
    assert main(["diff", "runs/a/experiment.json", "again.py"]) == 0
    assert "no difference" in capsys.readouterr().out


def test_a_start_on_data_of_one_s_own_knows_its_classes(video_set, capsys):
    video_set.rename("mine")
    assert main(["new", "mine.py", "--from=quickstart", "--data=mine"]) == 0
    said = capsys.readouterr().out
    leaves = flatten(load("mine.py"))
    assert leaves["data.source.class"] == "VideoSet"
    assert leaves["data.source.directory"] == "mine"
    assert leaves["data.cache.directory"] == "mine_latents"
    assert leaves["task.condition.num_classes"] == len(load("mine.py").data.source.info().class_names)
    assert "mine_latents" in said
    assert main(["new", "other.py", "--from=quickstart", "--data=nowhere"]) == 0
    assert "nowhere" in capsys.readouterr().out
    assert experiments.load("other.py").data.source.directory == "nowhere"


def test_a_start_on_data_without_classes_is_conditioned_on_none(tmp_path, capsys):
    Path("videos").mkdir()
    for index in range(4):
        Path("videos", f"{index}.mp4").write_bytes(encode_mp4(waves(index, 9, 32, 32), 10.0))
    assert main(["data", "ingest", "videos", "--out=mine", "--held_out_fraction=0"]) == 0
    assert main(["new", "mine.py", "--from=quickstart", "--data=mine"]) == 0
    assert "has no classes, so condition=None and guidance 1" in capsys.readouterr().out
    task = load("mine.py").task
    assert (task.condition, task.guidance.scale) == (None, 1.0)
    assert main(["show", "--config=mine.py"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine.py", "--from=nothing"], "--from=nothing: is no file and no run here; of this package there are"),
        (["mine.txt", "--from=quickstart"], "an experiment is a Python file; name it mine.py"),
        (["there.py", "--from=quickstart"], "there.py: is there already"),
        (["mine.py", "--from=quickstart:vea"], "must be vae or dit"),
    ],
)
def test_what_cannot_be_written_says_why(words, message, capsys):
    Path("there.py").touch()
    assert main(["new", *words]) == 1
    assert message in capsys.readouterr().err
    assert not Path("mine.py").exists()
