"""Lock of a run folder, RUN/lock.json: one process trains in a folder at a time.

The file is created with O_EXCL, which fails where it exists. A process that was killed leaves it behind. Such a lock is
stale, and the next run takes it over: on the same host as soon as no process has its pid and start time; on another
host, where that cannot be seen, when nobody has touched the file for GONE_SECONDS. Its holder touches it every
REFRESH_SECONDS.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from dit_video.distributed import processes
from dit_video.storage.bucket import BucketLock, address
from dit_video.storage.failures import raised_by_stores

LOCK = "lock.json"

REFRESH_SECONDS = 20.0
GONE_SECONDS = 180.0
_POLL_SECONDS = 1.0


class RunInUse(ValueError):
    """Another process trains in this folder."""


@runtime_checkable
class Lock(Protocol):
    """A lock file, in a run folder or of a run in a bucket: one of several processes can create it.

    Attributes:
        where: path or address of the lock.
        run: path or address of the run.
    """

    where: str
    run: str

    def create(self, text: str) -> bool:
        """Creates it with this content; False where there is one already."""
        ...

    def read(self) -> str | None:
        """Its content; None where there is none."""
        ...

    def touch(self) -> None: ...

    def remove(self, text: str) -> bool:
        """Removes it if it is still this one; of several that try, one succeeds."""
        ...

    def sign(self) -> object:
        """A value that changes when the holder touches the lock; None where there is none."""
        ...

    def age(self) -> float:
        """Seconds for which nobody has touched it, as far as that can be known."""
        ...


@contextlib.contextmanager
def acquire(run: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Locks a run for this process; released on every way out but a kill.

    A process that was halted for so long that another has taken the folder over ends at once when it goes on.

    Args:
        run: its folder, or gs://bucket/run.
        warn: called with a message where a lock is waited for, and where a stale one is taken over.

    Raises:
        RunInUse: another process trains there; names host, pid and since when.
    """
    where = address(run)
    lock: Lock = FileLock(run) if where is None else BucketLock(where, LOCK)
    mine = json.dumps(
        {
            # Nobody else writes the same: a bucket may take a lock and its answer be lost.
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "refresh_seconds": REFRESH_SECONDS,
        },
        indent=1,
    )
    while not lock.create(mine):
        theirs = lock.read()
        if theirs is None:
            continue
        if theirs == mine:
            break
        _refuse_unless_stale(lock, theirs, warn)
        if lock.remove(theirs):
            warn(f"{lock.where}: taken over from a process that is gone (pid {json.loads(theirs)['pid']})")
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lock, mine, done, warn), name="run_lock", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        # Somebody who removed it by hand may have let another run in. What cannot be removed is stale soon.
        with contextlib.suppress(*raised_by_stores()):
            lock.remove(mine)


def _keep(lock: Lock, mine: str, done: threading.Event, warn: Callable[[str], None]) -> None:
    """Touches the lock until `done`."""
    while not done.wait(REFRESH_SECONDS):
        # Removed by hand, or a store that does not answer now.
        with contextlib.suppress(*raised_by_stores()):
            if (theirs := lock.read()) not in (mine, None):
                # Two that write here would spoil what both have learnt, and the other one has begun.
                warn(f"{lock.where}: another run has taken this folder over: {theirs}; this one ends at once")
                processes.leave(1)
            lock.touch()


def _refuse_unless_stale(lock: Lock, text: str, warn: Callable[[str], None]) -> None:
    try:
        found = json.loads(text)
        host, pid, started, since = found["host"], int(found["pid"]), found["process_started"], found["since"]
        refreshed = "refresh_seconds" in found  # version 0.1 did not
    except (ValueError, TypeError, KeyError):
        # Killed while it was writing, or writing right now: nobody can tell.
        raise RunInUse(
            f"{lock.where}: not a lock that can be read; if no training runs in this folder, remove it"
        ) from None
    # Hosts of one name may meet in a bucket, or in containers.
    here = host == socket.gethostname() and found.get("boot") in (None, _boot())
    if here and not _is_alive(pid, started):
        return
    if not here and refreshed and not _is_touched(lock, f"process {pid} on {host}", warn):
        return
    raise RunInUse(
        f"{lock.run}: process {pid} on {host} trains here since {since}; stop it or use another --workdir"
        + ("" if here else f". If it is gone, which cannot be seen from {socket.gethostname()}, remove {lock.where}")
    )


def _is_touched(lock: Lock, holder: str, warn: Callable[[str], None]) -> bool:
    """Waits until the lock of another host is touched, or until nobody has done so for GONE_SECONDS."""
    first = lock.sign()
    if (left := GONE_SECONDS - lock.age()) > 0:
        warn(f"{lock.where}: {holder} has this folder; waiting for a sign of life, {left:.0f} s at most")
    until = time.monotonic() + left
    while (now := lock.sign()) is not None:  # else it was given back, or another has taken it over
        if now != first:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return False


class FileLock:
    """Lock file in the folder of a run."""

    def __init__(self, workdir: Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / LOCK
        self.where, self.run = str(self._path), str(workdir)

    def create(self, text: str) -> bool:
        """False where the file is there already."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, text.encode())
        except OSError:
            self._path.unlink()  # a full disk must not lock the run
            raise
        finally:
            os.close(descriptor)
        return True

    def read(self) -> str | None:
        """What is in the lock, None where there is none; one that is being written is waited for."""
        for _ in range(20):
            try:
                if text := self._path.read_text(encoding="utf-8"):
                    return text
            except FileNotFoundError:
                return None
            time.sleep(0.05)
        return ""

    def touch(self) -> None:
        os.utime(self._path)

    def remove(self, text: str) -> bool:
        """Removes the lock if it is still this one. Of several that try, one succeeds: a rename is atomic."""
        if self.read() != text:
            return False
        grabbed = self._path.with_name(f"{LOCK}.{os.getpid()}")
        try:
            self._path.rename(grabbed)
        except FileNotFoundError:
            return False
        found = grabbed.read_text(encoding="utf-8")
        grabbed.unlink()
        if found != text:
            # Another was faster and holds the folder by now: what was grabbed is its lock.
            self.create(found)
            return False
        return True

    def sign(self) -> int | None:
        """When it was last touched, in nanoseconds by the clock of the file system; None where there is no lock."""
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def age(self) -> float:
        """Seconds since it was touched, by the clock of the file system, which need not be that of this host."""
        probe = self._path.with_name(f"{LOCK}.{socket.gethostname()}.{os.getpid()}.now")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        touched = self.sign()
        return 0.0 if touched is None else now - touched / 1e9


def _boot() -> str | None:
    """Another one for every host and every time it was started; None where the system has no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


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
