"""What a user's file is written with: names from one place, experiments that come along, and examples that run."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dit_video
from dit_video.cli.main import main
from dit_video.config.names import PUBLIC
from dit_video.config.user_file import packaged, packaged_experiments
from dit_video.experiment import Experiment
from dit_video.run.checks import check_fields
from tools.public_names import STUB, stub

ROOT = Path(__file__).parent.parent


def test_type_checkers_know_the_public_names():
    assert STUB.read_text() == stub(), "write it again: python -m tools.public_names"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_what_it_names(name):
    value = getattr(dit_video, name)
    assert inspect.getmodule(value) is importlib.import_module(PUBLIC[name])


def test_a_star_imports_them_all():
    names: dict[str, object] = {}
    exec("from dit_video import *", names)
    assert names.keys() - {"__builtins__"} == set(PUBLIC)


def test_no_other_name_is_public():
    with pytest.raises(AttributeError, match="no public name Denoize"):
        dit_video.Denoize  # noqa: B018 (it is asked for)


def test_experiments_are_written_with_public_names_alone():
    for file in (ROOT / "experiments").glob("*.py"):
        assert "from dit_video." not in file.read_text(), file


def test_the_example_of_the_readme_is_an_experiment():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(block, names)
    experiment = names["get_config"]()
    assert isinstance(experiment, Experiment)
    check_fields(experiment)


def test_an_experiment_of_the_package_is_taken_where_there_is_none_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    word = "--config=experiments/quickstart.py:vae"
    assert main(["show", word, "--json"]) == 0
    said = capsys.readouterr()
    assert "experiments/quickstart.py: not in this folder; taking that of dit_video" in said.err
    Path("experiments").mkdir()
    text = (ROOT / "experiments/quickstart.py").read_text()
    Path("experiments/quickstart.py").write_text(text.replace("batch_size=4", "batch_size=6"))
    assert main(["show", word, "--json"]) == 0
    mine = capsys.readouterr()
    assert mine.err == ""
    assert mine.out.replace('"batch_size": 6', '"batch_size": 4') == said.out
    assert packaged("experiments/nothing.py") is None
    assert main(["show", "--config=experiments/nothing.py"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_all_experiments_are_listed_with_what_they_train(capsys):
    files = {f"experiments/{file.name}" for file in (ROOT / "experiments").glob("*.py")}
    assert {one.name for one in packaged_experiments()} == files
    assert all(one.summary and one.argument for one in packaged_experiments())
    assert main(["experiments"]) == 0
    out = capsys.readouterr().out
    assert all(file in out for file in files)


def test_no_message_names_this_package_as_if_it_were_on_an_index():
    files = [*(ROOT / "dit_video").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = re.compile(r"dit[-_]video\[|install (-\S+ )*dit[-_]video")
    assert not [(str(file), line) for file in files for line in file.read_text().splitlines() if named.search(line)]


@pytest.mark.slow
def test_a_wheel_alone_runs_every_experiment_that_help_names(tmp_path):
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", "build", "*.egg-info", "docs", "tests", "tools")
    shutil.copytree(ROOT, source, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "-q", "--no-input"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *built], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    (tmp_path / "empty").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n" + (
        "import dit_video; from dit_video.cli.main import main; print(dit_video.__file__); sys.exit(main(sys.argv[1:]))"
    )
    for one in packaged_experiments():
        command = [sys.executable, "-c", code, "show", f"--config={one.name}", "--json"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / "installed") in done.stdout.splitlines()[0]
        assert str(tmp_path / "installed") in done.stderr, "the experiment is that of the wheel"
