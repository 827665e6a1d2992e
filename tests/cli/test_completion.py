"""What `--print-completion` prints is a script of that shell, with which it completes what was typed."""

import subprocess

import pytest

from dit_video.cli.main import COMMANDS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script for bash, in a file."""
    import contextlib
    import io

    path, printed = tmp_path_factory.mktemp("completion") / "dit-video.bash", io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    path.write_text(printed.getvalue())
    return path


def completed(script, *words: str, folder=None) -> list[str]:
    """What bash offers for the last of these words."""
    typed = " ".join(f"'{word}'" for word in ("dit-video", *words))
    asked = f"""
source '{script}'
COMP_WORDS=({typed}); COMP_CWORD={len(words)}
function=$(complete -p dit-video | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function dit-video '{words[-1]}' ''
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.split()


def test_commands_options_and_choices_are_completed(script):
    commands = [module.__name__.split(".")[-1].replace("_", "-") for module in COMMANDS]
    assert set(completed(script, "verify")) == {name for name in commands if name.startswith("verify")}
    assert completed(script, "train", "--workd") == ["--workdir"]
    assert completed(script, "export", "--dtype", "bf") == ["bfloat16"]


def test_commands_of_a_command_are_completed(script):
    assert completed(script, "data", "in") == ["ingest", "inspect"]
    assert completed(script, "data", "record", "--st") == ["--steps"]


def test_paths_are_completed(script, tmp_path):
    (tmp_path / "runs_of_mine").mkdir()
    assert completed(script, "sample", "--workdir", "runs_", folder=tmp_path) == ["runs_of_mine"]
