"""One training in a run folder at a time, with real processes that are really killed."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from dit_video.cli.main import main
from dit_video.run import lock as run_lock
from dit_video.run.lock import LOCK, RunInUse, acquire

HOLDER = """
import sys
from pathlib import Path
from dit_video.run import lock as run_lock
from dit_video.run.lock import RunInUse, acquire
run_lock.REFRESH_SECONDS = float(sys.argv[2])
sys.stdin.readline()
try:
    with acquire(Path(sys.argv[1]), lambda note: print(note, file=sys.stderr)):
        print("in", flush=True)
        sys.stdin.readline()
except RunInUse:
    print("refused", flush=True)
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes that take the lock of tmp_path on a line of input, and give it back on the next."""
    started = []

    def start(refresh: float = run_lock.REFRESH_SECONDS) -> subprocess.Popen:
        words = [sys.executable, "-c", HOLDER, str(tmp_path), str(refresh)]
        started.append(subprocess.Popen(words, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def write_lock(folder: Path, **changes) -> None:
    """A lock as this process would have it, with some fields changed."""
    with acquire(folder, print):
        text = (folder / LOCK).read_text()
    (folder / LOCK).write_text(json.dumps(json.loads(text) | changes))


def test_the_second_is_refused_with_host_pid_and_since_when(tmp_path, holder):
    first = holder()
    assert go(first) == "in"
    before = (tmp_path / LOCK).read_text()
    expected = rf"process {first.pid} on {re.escape(socket.gethostname())} trains here since 20\d\d-\d\d-\d\dT"
    with pytest.raises(RunInUse, match=expected), acquire(tmp_path, print):
        pytest.fail("two hold it")
    assert (tmp_path / LOCK).read_text() == before
    first.communicate("\n")
    with acquire(tmp_path, print):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_killed_process_leaves_a_lock_that_is_taken_over_with_a_note(tmp_path, holder):
    """As a zombie: the first process of a container may never wait for its children."""
    first = holder()
    assert go(first) == "in"
    first.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    os.kill(first.pid, 0)
    notes = []
    with acquire(tmp_path, notes.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert [str(first.pid) in note for note in notes] == [True]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_every_way_out_gives_it_back(tmp_path, way):
    with pytest.raises(way), acquire(tmp_path, print):
        raise way
    assert list(tmp_path.iterdir()) == []


def test_a_pid_that_was_given_out_again_is_not_the_process_that_took_the_lock(tmp_path, holder):
    other = holder()
    write_lock(tmp_path, pid=other.pid, process_started="1")
    notes = []
    with acquire(tmp_path, notes.append):
        assert len(notes) == 1


def as_old_as(folder: Path, seconds: float) -> None:
    """Of another host, and last touched so long ago."""
    write_lock(folder, host="elsewhere", pid=2**22 + 1)
    then = (folder / LOCK).stat().st_mtime - seconds
    os.utime(folder / LOCK, (then, then))


def test_a_lock_of_another_host_that_nobody_touches_any_more_is_taken_over(tmp_path):
    as_old_as(tmp_path, run_lock.GONE_SECONDS + 1)
    notes = []
    with acquire(tmp_path, notes.append):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()
    assert ["taken over" in note for note in notes] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_waited_for_until_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    as_old_as(tmp_path, run_lock.GONE_SECONDS - 10)
    touched = threading.Event()
    threading.Timer(0.2, lambda: (touched.set(), os.utime(tmp_path / LOCK))).start()
    notes = []
    with pytest.raises(RunInUse, match=rf"on elsewhere trains here.*remove {re.escape(str(tmp_path / LOCK))}"):
        acquire(tmp_path, notes.append).__enter__()
    assert touched.is_set()
    assert ["waiting for a sign of life, 10 s at most" in note for note in notes] == [True]


def test_a_host_that_has_just_gone_is_waited_out(tmp_path, monkeypatch):
    """A scheduler starts the job elsewhere at once."""
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    as_old_as(tmp_path, run_lock.GONE_SECONDS - 0.3)
    with acquire(tmp_path, print):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()


def test_the_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "REFRESH_SECONDS", 0.01)
    with acquire(tmp_path, print):
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_lock_of_a_version_that_did_not_touch_it_stays_until_a_person_removes_it(tmp_path):
    as_old_as(tmp_path, 10 * run_lock.GONE_SECONDS)
    lock = json.loads((tmp_path / LOCK).read_text())
    del lock["refresh_seconds"]
    (tmp_path / LOCK).write_text(json.dumps(lock))
    with pytest.raises(RunInUse, match="on elsewhere trains here"):
        acquire(tmp_path, print).__enter__()
    (tmp_path / LOCK).unlink()
    with acquire(tmp_path, print):
        pass


def test_a_process_that_was_halted_and_has_lost_its_folder_ends(tmp_path, holder):
    first = holder(refresh=0.05)
    assert go(first) == "in"
    (tmp_path / LOCK).write_text("another run's")
    assert first.wait(timeout=10) == 1
    assert "another run has taken this folder over" in first.stderr.read()
    assert (tmp_path / LOCK).read_text() == "another run's"


def make(kind: str, path: Path) -> None:
    """Something where the lock of a run is."""
    match kind:
        case "empty":
            path.touch()
        case "link to nothing":
            path.symlink_to(path.with_name("elsewhere"))
        case "link to a file":
            path.with_name("elsewhere").write_text("precious")
            path.symlink_to(path.with_name("elsewhere"))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "precious").touch()
        case "one that nobody may read":
            path.touch(mode=0)
        case _:
            path.write_bytes(kind.encode())


LOCKED = '{"host": "%s", "pid": %s, "process_started": null, "since": "now", "refresh_seconds": 20}'
NO_LOCKS = [
    *("empty", "link to nothing", "link to a file", "pipe", "folder", "one that nobody may read"),
    *("{", "{}", "[]", "\0" * 100, "{" * 9999, "x" * (1 << 20)),
    *(LOCKED % (socket.gethostname(), pid) for pid in ("1e999", "0", "-1", "true", '"7"', "9" * 99, "9" * 9999)),
    LOCKED.replace('"%s"', "7") % 7,
]


@pytest.mark.parametrize("future", [False, True], ids=["now", "in the future"])
@pytest.mark.parametrize("kind", NO_LOCKS, ids=lambda kind: kind[:60])
def test_what_is_no_lock_is_waited_out_and_removed(kind, future, tmp_path, monkeypatch, messages):
    """F11: a kill between making and writing it, a dangling link, a pipe, and numbers beyond all."""
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(run_lock, "GONE_SECONDS", 0.03)
    make(kind, tmp_path / LOCK)
    if future:
        then = time.time() + 1e6
        os.utime(tmp_path / LOCK, (then, then), follow_symlinks=False)
    began = time.monotonic()
    with acquire(tmp_path, messages.append):
        assert 0.02 <= time.monotonic() - began < 5
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert ["waiting for a sign of life" in messages[0], "taken over from something" in messages[1]] == [True, True]
    left = {"link to a file": ["elsewhere"], "folder": [f"{LOCK}.bad"]}
    assert [path.name for path in tmp_path.iterdir()] == left.get(kind, [])


def test_what_is_no_lock_and_is_touched_is_somebody_s(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    (tmp_path / LOCK).touch()
    threading.Timer(0.1, lambda: os.utime(tmp_path / LOCK)).start()
    with pytest.raises(RunInUse, match="not a lock that can be read, and somebody touches it"):
        acquire(tmp_path, print).__enter__()


def test_what_becomes_a_lock_while_it_is_waited_for_is_one(tmp_path, monkeypatch):
    """Where files have no second name it is empty for a moment."""
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    write_lock(tmp_path)
    lock = (tmp_path / LOCK).read_text()
    (tmp_path / LOCK).write_text("")

    def fill() -> None:
        with (tmp_path / LOCK).open("r+") as file:
            file.write(lock)

    threading.Timer(0.1, fill).start()
    with pytest.raises(RunInUse, match=rf"process {os.getpid()} on .* trains here since"):
        acquire(tmp_path, print).__enter__()


@pytest.mark.parametrize("place", ["namespace", "boot", "host"])
def test_a_process_that_could_not_be_seen_is_not_taken_for_dead(place, tmp_path, monkeypatch, messages):
    """F2: two containers of one host with one hostname have other numbers for their processes."""
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.01)
    write_lock(tmp_path, **{"pid": 2**22 + 1, place: "another"})
    threading.Timer(0.1, lambda: os.utime(tmp_path / LOCK)).start()
    with pytest.raises(RunInUse, match="trains here since"):
        acquire(tmp_path, print).__enter__()
    monkeypatch.setattr(run_lock, "GONE_SECONDS", 0.1)
    with acquire(tmp_path, messages.append):
        assert "taken over from a process that is gone" in messages[-1]


def test_a_lock_of_a_version_without_namespaces_is_of_this_one(tmp_path, messages):
    write_lock(tmp_path, pid=2**22 + 1)
    lock = json.loads((tmp_path / LOCK).read_text())
    del lock["namespace"]
    (tmp_path / LOCK).write_text(json.dumps(lock))
    with acquire(tmp_path, messages.append):
        assert "taken over" in messages[0]


def test_a_lock_that_was_removed_by_hand_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "REFRESH_SECONDS", 0.01)
    with acquire(tmp_path, print):
        before = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).unlink()
        until = time.monotonic() + 10
        while not (tmp_path / LOCK).exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert (tmp_path / LOCK).read_text() == before
    assert list(tmp_path.iterdir()) == []


def test_where_files_have_no_second_name_one_of_two_gets_in(tmp_path, monkeypatch):
    def no_links(*names, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    with acquire(tmp_path, print):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(RunInUse, match="trains here since"):
            acquire(tmp_path, print).__enter__()
    assert list(tmp_path.iterdir()) == []


# Ends a process before its n-th change of a folder, for every n; after each, another must get in, in bounded time.
KILLS = """
import errno, itertools, os, shutil, signal, sys, time
from pathlib import Path
from dit_video.run import lock as run_lock
folder = Path(sys.argv[1])
run_lock.GONE_SECONDS, run_lock._POLL_SECONDS = 0.03, 0.01
CHANGES = ("open", "os.link", "os.rename", "os.remove", "os.utime")

def no_links(*names, **options):
    raise OSError(errno.EPERM, "no links")

def work():
    with run_lock.acquire(folder, lambda note: None):
        assert (folder / "lock.json").read_text().count(f'"pid": {os.getpid()}') == 1
        (folder / "work").touch()

def work_and_be_killed(n):
    left = itertools.count()
    def hook(event, arguments):
        if event in CHANGES and str(folder) in str(arguments[:2]) and next(left) == n:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    work()
    os._exit(0)

for link, stale in itertools.product((os.link, no_links), (False, True)):
    os.link = link
    for n in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if stale:
            with run_lock.acquire(folder, lambda note: None):
                text = (folder / "lock.json").read_text()
            (folder / "lock.json").write_text(text.replace(str(os.getpid()), str(2**22 + 1)))
        if (child := os.fork()) == 0:
            work_and_be_killed(n)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        began = time.monotonic()
        work()
        assert time.monotonic() - began < 2
        left = {path.name.partition("partial-")[0] for path in folder.iterdir()}
        assert left <= {"work", ".lock.json."}, left
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
    print(n)
"""


def test_a_kill_at_any_change_of_the_folder_blocks_nobody(tmp_path):
    """F11: two of 29 kills did; here with and without a stale lock to take over, and links."""
    run = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path / "run")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [int(number) > 5 for number in run.stdout.split()] == 4 * [True], run.stdout


def test_a_lock_that_another_run_has_got_meanwhile_is_left_to_it(tmp_path):
    with acquire(tmp_path, print):
        (tmp_path / LOCK).write_text("another run's")
    assert (tmp_path / LOCK).read_text() == "another run's"


@pytest.mark.slow
def test_of_many_that_find_a_stale_lock_one_gets_in(tmp_path, holder):
    dead = holder()
    dead.kill()
    dead.wait()
    write_lock(tmp_path, pid=dead.pid)
    rivals = [holder() for _ in range(6)]
    for rival in rivals:
        rival.stdin.write("\n")
        rival.stdin.flush()
    assert sorted(rival.stdout.readline().strip() for rival in rivals) == ["in"] + 5 * ["refused"]


def test_train_refuses_a_folder_in_use_and_leaves_it_as_it_was(tmp_path, holder, monkeypatch, capsys):
    from test_whole_way import EXPERIMENT

    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    assert go(holder()) == "in"
    words = ["train", "--config=tiny.py:vae", f"--workdir={tmp_path}", "--config.data.batch_size=8"]
    assert main(words) == 1
    assert "trains here since" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.py", "digits", LOCK}
