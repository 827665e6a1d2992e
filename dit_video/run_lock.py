"""One training in a run folder at a time: who has it is written in RUN/lock.json.

The file is made by the one call that fails where it exists. A process that was killed leaves it behind: it is stale,
and the next run takes it over, once no process of this host has that pid and that start time. Nobody can tell that
of another host, so its lock stays until a person removes it.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK = "lock.json"


class RunInUse(ValueError):
    """Another process trains in this folder."""


@contextlib.contextmanager
def hold(workdir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The run folder is this process's own; given back on every way out but a kill.

    Args:
        say: told of a stale lock that is taken over.

    Raises:
        RunInUse: naming host, pid and since when.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / LOCK
    mine = json.dumps(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        indent=1,
    )
    while not _create(path, mine):
        theirs = _read(path)
        if theirs is None:
            continue
        _refuse_unless_stale(path, theirs)
        if _remove(path, theirs):
            say(f"{path}: taken over from a process that is gone (pid {json.loads(theirs)['pid']})")
    try:
        yield
    finally:
        # Somebody who removed it by hand may have let another run in.
        if _read(path) == mine:
            path.unlink()


def _refuse_unless_stale(path: Path, text: str) -> None:
    try:
        lock = json.loads(text)
        host, pid, started, since = lock["host"], int(lock["pid"]), lock["process_started"], lock["since"]
    except (ValueError, TypeError, KeyError):
        # Killed while it was writing, or writing right now: nobody can tell.
        raise RunInUse(f"{path}: not a lock that can be read; if no training runs in this folder, remove it") from None
    here = host == socket.gethostname()
    if here and not _is_alive(pid, started):
        return
    raise RunInUse(
        f"{path.parent}: process {pid} on {host} trains here since {since}; stop it or use another --workdir"
        + ("" if here else f". If it is gone, which cannot be seen from {socket.gethostname()}, remove {path}")
    )


def _is_alive(pid: int, started: str | None) -> bool:
    """Whether the process that wrote a lock on this host still runs; a pid is given out again."""
    return _exists(pid) and (started is None or _process_started(pid) in (started, None))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _process_started(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process; None where the system has no /proc or the process is gone."""
    try:
        # After the name of the program, which may hold blanks and brackets: state, ..., start time (proc(5)).
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None


def _create(path: Path, text: str) -> bool:
    """False where the file is there already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, text.encode())
    except OSError:
        path.unlink()  # a full disk must not lock the run
        raise
    finally:
        os.close(descriptor)
    return True


def _read(path: Path) -> str | None:
    """What is in the lock, None where there is none; one that is being written is waited for."""
    for _ in range(20):
        try:
            if text := path.read_text(encoding="utf-8"):
                return text
        except FileNotFoundError:
            return None
        time.sleep(0.05)
    return ""


def _remove(path: Path, stale: str) -> bool:
    """Removes the lock if it is still this one. Of several that try, one succeeds: a rename is atomic."""
    grabbed = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.rename(grabbed)
    except FileNotFoundError:
        return False
    found = grabbed.read_text(encoding="utf-8")
    grabbed.unlink()
    if found != stale:
        # Another was faster and holds the folder by now: what was grabbed is its lock.
        _create(path, found)
        return False
    return True
