"""The command line: a user's mistake is one message that names the field and the remedy, and an exit code."""

import argparse
import json
import re
from pathlib import Path

import pytest

from dit_video.cli.main import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = f"--config={ROOT}/experiments/quickstart.py"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *words: str) -> str:
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return re.sub(r"\s+", " ", captured.err)


@pytest.mark.parametrize(
    ("words", "named", "remedy"),
    [
        (["--config.optimizer.learning_rte=1"], "config.optimizer.learning_rte", "did you mean 'learning_rate'"),
        (["--config.optimizer.decay=cosin"], "config.optimizer.decay='cosin'", "must be one of constant, cosine"),
        (["--config.data.batch_size=0"], "Data.batch_size=0", "must be at least 1"),
        (["--config.data.clips.num_frames=8"], "(8, 32, 32)", "nearest are 5 and 9"),
        (["--config.task.codec.run=nowhere"], "config.task.codec.run='nowhere'", "train its VAE first"),
        (["--config.mesh.fsdp=3"], "MeshShape", "change config.mesh"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_field_is_named_with_its_remedy(capsys, words, named, remedy):
    message = fails(capsys, "train", QUICKSTART, "--workdir=run", *words)
    assert named in message
    assert remedy in message
    assert not Path("run").exists(), "nothing may be written before the experiment is known to be right"


def test_a_missing_experiment_names_the_file(capsys):
    assert "nothing.py: no such file" in fails(capsys, "show", "--config=nothing.py")


def test_a_missing_data_folder_names_the_command_that_makes_it(capsys):
    Path("mine.py").write_text(
        "from dit_video import experiment\nfrom dit_video.data.sources import VideoSet\nimport dataclasses\n"
        "def get_config():\n"
        f"    base = experiment.load('{ROOT}/experiments/quickstart.py:vae')\n"
        "    data = dataclasses.replace(base.data, source=VideoSet(directory='nowhere'), batch_size=8)\n"
        "    return dataclasses.replace(base, data=data)\n"
    )
    message = fails(capsys, "train", "--config=mine.py", "--workdir=run")
    assert "nowhere" in message
    assert "dit-video data ingest" in message
    assert not Path("run").exists()


def test_a_folder_that_is_no_run_is_named(capsys):
    Path("empty").mkdir()
    for command in ("evaluate", "export --out=x", "sample --out=x.gif"):
        name, *rest = command.split()
        assert "empty: not a run folder" in fails(capsys, name, "--workdir=empty", *rest)


@pytest.mark.parametrize("words", [["train", QUICKSTART, "--workdir=x", "--nonsense"], ["train"], ["nonsense"]])
def test_wrong_usage_exits_with_2(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


@pytest.mark.parametrize("words", [["data", "record", "--wrong"], ["data", "inspect", "a", "--wrong"], ["train"]])
def test_wrong_usage_names_the_help_of_the_command_that_was_typed(capsys, words):
    with pytest.raises(SystemExit):
        main(words)
    named = [word for word in words[:2] if word.islower()]
    assert f"; see dit-video {' '.join(named)} --help" in capsys.readouterr().err


def test_the_program_alone_helps(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert "dit-video demo" in alone
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out == alone


def test_every_help_teaches_by_example(capsys):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for module in COMMANDS:
        module.add_parser(commands)
    for name, command in commands.choices.items():
        text = command.format_help()
        assert f"dit-video {name}" in text.partition("examples:")[2], f"{name} --help has no example"


def test_diff_prints_changed_leaves_only(capsys):
    experiment = f"{ROOT}/experiments/quickstart.py"
    assert main(["diff", f"{experiment}:dit", f"{experiment}:dit"]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["diff", f"{experiment}:vae", f"{experiment}:dit"]) == 0
    out = capsys.readouterr().out
    assert "config.data.batch_size" in out
    assert "null" not in out, "a field that a side has not got is none of it"
    assert main(["diff", f"{experiment}:vae", f"{experiment}:dit", "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)
    assert changed["config.data.batch_size"] == [4, 32]
    assert set(changed) == {line.split("│")[1].strip() for line in out.splitlines() if "config." in line}
    assert "config.data.clips.size" not in out
