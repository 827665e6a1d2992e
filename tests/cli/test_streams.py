"""Surroundings of a process that other programs leave to chance: streams, locale, open files, a home."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video.cli.main import main

PREPARE = "from dit_video.cli import streams; streams.prepare(); "


def started(program: str, shell: str = "", **variables: str) -> subprocess.CompletedProcess:
    """A Python process that a shell starts after `shell`."""
    words = ["bash", "-c", f'{shell} exec "$0" -c "$1"', sys.executable, program]
    return subprocess.run(words, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_goes_to_no_file_where_streams_are_closed(closed, tmp_path):
    """F15. The first file that is opened would have the number of the stream that is closed."""
    file = tmp_path / "checkpoint"
    program = PREPARE + (
        f"import os, sys; file = open({str(file)!r}, 'w'); print('printed'); print('said', file=sys.stderr); "
        "sys.stdin.read(0); os.write(1, b'by a library'); os.write(2, b'by another'); file.write('weights')"
    )
    assert started(program, f"exec {closed};").returncode == 0
    assert file.read_text() == "weights"


def test_a_name_that_a_terminal_cannot_show_is_escaped():
    """F15: after a training it was an error to print where it is."""
    run = started(PREPARE + "print('runs/\\u00e4')", PYTHONIOENCODING="ascii")
    assert (run.returncode, run.stdout) == (0, "runs/\\xe4\n")


def test_as_many_files_may_be_open_as_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    program = PREPARE + "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert started(program, "ulimit -S -n 40;").stdout.split() == [str(least), str(hard)]
    assert started(program, "ulimit -n 40;").stdout.split() == ["40", "40"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.mark.parametrize("words", [["train", "--config=x.py"], ["inspect"], ["sample", "--out=a.mp4"]])
@pytest.mark.parametrize("name", ["", os.fsdecode(b"runs/\xe4")], ids=["empty", "not UTF-8"])
def test_a_run_without_a_name_and_one_in_another_encoding_are_refused_in_a_line(words, name, tmp_path, capsys):
    """F15: `--workdir=` trained in the current folder, and letters outside of the locale came to a traceback."""
    with pytest.raises(SystemExit) as stopped:
        main([*words, name if words == ["inspect"] else f"--workdir={name}"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert ("is empty" if not name else "set PYTHONUTF8=1") in message


HOMELESS = """
import os, sys
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
os.getuid = lambda: {uid}
from dit_video.storage.user_cache import user_cache
print(user_cache())
"""


def test_a_user_without_a_home_has_a_cache_that_nobody_else_writes(tmp_path):
    """F15: no HOME and no entry in passwd, as of a container that is run as some number."""
    uid = 2**31 - 7
    mine = tmp_path / f"dit_video-{uid}"

    def cache() -> Path:
        run = started(HOMELESS.format(uid=uid), TMPDIR=str(tmp_path))
        assert run.returncode == 0, run.stderr
        return Path(run.stdout.strip())

    # Its owner is who runs this test, so to that user it is a stranger's.
    mine.mkdir()
    assert cache() != mine
    assert cache().parent == tmp_path
    mine.rmdir()
    if os.getuid() == 0:
        mine.mkdir(mode=0o700)
        os.chown(mine, uid, uid)
        assert cache() == mine
        mine.chmod(0o777)
        assert cache() != mine
