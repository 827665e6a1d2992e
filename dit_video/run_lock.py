"""One training in a run folder at a time: who has it is written in RUN/lock.json.

The file is made by the one call that fails where it exists. A process that was killed leaves it behind: it is stale,
and the next run takes it over, once no process of this host has that pid and that start time. Of another host nobody
can tell that. So the holder touches the file every REFRESH_SECONDS, and who finds a lock of another host waits: a
holder that lives is soon seen to, and a lock that nobody has touched for GONE_SECONDS is of a host that is gone.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dit_video import processes

LOCK = "lock.json"

REFRESH_SECONDS = 20.0
GONE_SECONDS = 180.0
_POLL_SECONDS = 1.0


class RunInUse(ValueError):
    """Another process trains in this folder."""


@contextlib.contextmanager
def hold(workdir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The run folder is this process's own; given back on every way out but a kill.

    Args:
        say: told of a lock that is waited for, and of a stale one that is taken over.

    Raises:
        RunInUse: naming host, pid and since when.

    A process that was halted for so long that another has taken the folder over ends at once when it goes on.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / LOCK
    mine = json.dumps(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "refresh_seconds": REFRESH_SECONDS,
        },
        indent=1,
    )
    while not _create(path, mine):
        theirs = _read(path)
        if theirs is None:
            continue
        _refuse_unless_stale(path, theirs, say)
        if _remove(path, theirs):
            say(f"{path}: taken over from a process that is gone (pid {json.loads(theirs)['pid']})")
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, mine, done, say), name="run_lock", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        # Somebody who removed it by hand may have let another run in.
        if _read(path) == mine:
            path.unlink()


def _keep(path: Path, mine: str, done: threading.Event, say: Callable[[str], None]) -> None:
    """Touches the lock until `done`."""
    while not done.wait(REFRESH_SECONDS):
        try:
            if (theirs := _read(path)) not in (mine, None):
                # Two that write here would spoil what both have learnt, and the other one has begun.
                say(f"{path}: another run has taken this folder over: {theirs}; this one ends at once")
                processes.leave(1)
            os.utime(path)
        except OSError:
            continue  # removed by hand, or a store that does not answer now


def _refuse_unless_stale(path: Path, text: str, say: Callable[[str], None]) -> None:
    try:
        lock = json.loads(text)
        host, pid, started, since = lock["host"], int(lock["pid"]), lock["process_started"], lock["since"]
        refreshed = "refresh_seconds" in lock  # version 0.1 did not
    except (ValueError, TypeError, KeyError):
        # Killed while it was writing, or writing right now: nobody can tell.
        raise RunInUse(f"{path}: not a lock that can be read; if no training runs in this folder, remove it") from None
    here = host == socket.gethostname()
    if here and not _is_alive(pid, started):
        return
    if not here and refreshed and not _is_touched(path, f"process {pid} on {host}", say):
        return
    raise RunInUse(
        f"{path.parent}: process {pid} on {host} trains here since {since}; stop it or use another --workdir"
        + ("" if here else f". If it is gone, which cannot be seen from {socket.gethostname()}, remove {path}")
    )


def _is_touched(path: Path, holder: str, say: Callable[[str], None]) -> bool:
    """Waits until the lock of another host is touched, or until nobody has done so for GONE_SECONDS."""
    try:
        first = path.stat().st_mtime_ns
        told = False
        while (age := _now(path.parent) - path.stat().st_mtime_ns / 1e9) <= GONE_SECONDS:
            if path.stat().st_mtime_ns != first:
                return True
            if not told:
                say(f"{path}: {holder} has this folder; waiting for a sign of life, {GONE_SECONDS - age:.0f} s at most")
                told = True
            time.sleep(_POLL_SECONDS)
    except FileNotFoundError:
        return False  # it was given back, or another has taken it over
    return False


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which need not be that of this host."""
    probe = folder / f"{LOCK}.{socket.gethostname()}.{os.getpid()}.now"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


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
