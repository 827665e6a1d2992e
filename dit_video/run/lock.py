"""Lock of a run folder, RUN/lock.json: one process trains in a folder at a time.

A process that was killed leaves its lock behind. Such a lock is stale, and the next run takes it over: on the same host
and in the same PID namespace as soon as no process has its pid and start time; elsewhere (another host, or another
container of this one), where that cannot be seen, when nobody has touched the file for GONE_SECONDS. Its holder touches
it every REFRESH_SECONDS. What is no lock (empty, garbage, a link, a pipe) is stale after GONE_SECONDS too.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from dit_video.config.json_file import check_kinds, parse_object
from dit_video.distributed import processes
from dit_video.storage.bucket import BucketLock, address
from dit_video.storage.failures import raised_by_stores
from dit_video.storage.file_lock import FileLock

LOCK = "lock.json"

REFRESH_SECONDS = 20.0
GONE_SECONDS = 180.0
"""For how long a lock must not have been touched to be stale; nothing is waited for longer."""

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
        """Its content; None where there is none, empty where it is no file that can be read."""
        ...

    def touch(self) -> None: ...

    def remove(self, text: str) -> bool:
        """Removes it if it is still this one; of several that try, one succeeds."""
        ...

    def sign(self) -> object:
        """A value that changes when the holder touches the lock; None where there is none."""
        ...

    def age(self) -> float:
        """Seconds for which nobody has touched it, as far as that can be known; 0 where that is in the future."""
        ...


@dataclasses.dataclass(frozen=True)
class _Holder:
    """The process that a lock names.

    Attributes:
        refreshed: whether it touches its lock, which version 0.1 did not.
    """

    host: str
    boot: str | None
    namespace: str | None
    pid: int
    process_started: str | None
    since: str
    refreshed: bool

    @classmethod
    def read(cls, text: str) -> "_Holder | None":
        """None where `text` is no lock, as of a process that was killed while it wrote one."""
        try:
            found = parse_object(text.encode())
            optional = (str, type(None))
            check_kinds(found, {"host": str, "pid": int, "process_started": optional, "since": str})
            if not 0 < found["pid"] < 2**31:
                return None
        except ValueError:
            return None
        return cls(
            host=found["host"],
            # Those before had no namespace, and version 0.1 no boot.
            boot=found.get("boot"),
            namespace=found.get("namespace"),
            pid=found["pid"],
            process_started=found["process_started"],
            since=found["since"],
            refreshed="refresh_seconds" in found,
        )

    @property
    def is_here(self) -> bool:
        """Whether it could be seen from here. Hosts of one name may meet in a bucket, or in containers."""
        machine = self.boot in (None, _boot()) and self.namespace in (None, _pid_namespace())
        return machine and self.host == socket.gethostname()


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
    lock: Lock = FileLock(run, LOCK) if where is None else BucketLock(where, LOCK)
    fields = _process_fields(os.getpid())
    mine = json.dumps(
        {
            # Nobody else writes the same: a bucket may take a lock and its answer be lost.
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "namespace": _pid_namespace(),
            "pid": os.getpid(),
            "process_started": None if fields is None else fields[_STARTED],
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "refresh_seconds": REFRESH_SECONDS,
        },
        indent=1,
    )
    until = time.monotonic() + GONE_SECONDS
    while not lock.create(mine):
        theirs = lock.read()
        if theirs == mine:
            break
        if theirs is None:
            # Given back just now.
            if time.monotonic() > until:
                raise RunInUse(f"{lock.where}: other runs take and give it back all the time; use another --workdir")
            time.sleep(_POLL_SECONDS / 20)
            continue
        whose = _refuse_unless_stale(lock, theirs, warn)
        if lock.remove(theirs):
            warn(f"{lock.where}: taken over from {whose}")
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
        # A store that does not answer now is asked again.
        with contextlib.suppress(*raised_by_stores()):
            theirs = lock.read()
            # Removed by hand, or by a run that was killed while it took another's over.
            if theirs is None and lock.create(mine):
                continue
            if theirs not in (mine, None):
                # Two that write here would spoil what both have learnt, and the other one has begun.
                warn(f"{lock.where}: another run has taken this folder over: {theirs}; this one ends at once")
                processes.leave(1)
            lock.touch()


def _refuse_unless_stale(lock: Lock, text: str, warn: Callable[[str], None]) -> str:
    """Raises RunInUse unless a lock with this content is stale; else whose it was, in words."""
    holder = _Holder.read(text)
    if holder is None:
        # Killed while it was writing, or writing right now: nobody can tell.
        if _is_touched(lock, "something that is no lock", warn) and lock.read() == text:
            raise RunInUse(f"{lock.where}: not a lock that can be read, and somebody touches it; use another --workdir")
        return f"something that was no lock and that nobody has touched for {GONE_SECONDS:.0f} s"
    named = f"process {holder.pid} on {holder.host}"
    is_stale = (
        not _is_alive(holder.pid, holder.process_started)
        if holder.is_here
        else holder.refreshed and not _is_touched(lock, named, warn)
    )
    if is_stale:
        return f"a process that is gone (pid {holder.pid})"
    unseen = f". If it is gone, which cannot be seen from here, remove {lock.where}"
    raise RunInUse(
        f"{lock.run}: {named} trains here since {holder.since}; stop it or use another --workdir"
        + ("" if holder.is_here else unseen)
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


def _boot() -> str | None:
    """Another one for every host and every time it was started; None where the system has no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _pid_namespace() -> str | None:
    """Name of the PID namespace (container) of this process; None where the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _is_alive(pid: int, started: str | None) -> bool:
    """Whether the process that wrote a lock on this host still runs; a pid is given out again."""
    if not _exists(pid):
        return False
    fields = _process_fields(pid)
    if fields is None:
        return True
    # Who was killed stays as a zombie until its parent asks, which the first process of a container may never do. A
    # last thread of it may still wait for a disk.
    is_zombie = fields[_STATE] in ("Z", "X") and int(fields[_NUM_THREADS]) <= 1
    return not is_zombie and started in (None, fields[_STARTED])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


# Of `_process_fields`, numbered from 3 in proc(5). A process starts at a number of clock ticks since boot.
_STATE, _NUM_THREADS, _STARTED = 3 - 3, 20 - 3, 22 - 3


def _process_fields(pid: int) -> list[str] | None:
    """What proc(5) says of a process, from its state on; None where the system has no /proc or the process is gone."""
    try:
        # After the name of the program, which may hold blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
