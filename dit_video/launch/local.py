"""Local multi-process launch: N processes of one program on this machine, started and ended together."""

import collections
import contextlib
import dataclasses
import os
import queue
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dit_video.config.bounds import at_least
from dit_video.distributed.process_settings import COORDINATOR, NUM_PROCESSES, PROCESS_ID

# Exit code of a program that stopped early and saved: not a failure, and the others are given time to do the same.
STOPPED = 3
_NUM_LAST_LINES = 20
# For what a process wrote before it ended to come out of the pipe.
_DRAIN_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """Processes on this machine, which join by the variables that `dit_video.distributed.process_settings` reads.

    GPUs of the machine are shared out evenly, in order.

    Attributes:
        fake_devices: CPU devices of each process, to try out a mesh; None: what the machine has.
        grace_seconds: after one process failed, from SIGTERM to SIGKILL for the others.
    """

    num_processes: int
    fake_devices: int | None = None
    grace_seconds: float = 10.0

    def __post_init__(self):
        at_least(self, 1, "num_processes", "fake_devices")
        at_least(self, 0, "grace_seconds")

    def environments(self) -> list[dict[str, str]]:
        """Environment variables of each process, in addition to those of this one.

        Raises:
            ValueError: the machine's GPUs cannot be shared out evenly.
        """
        shared = {
            COORDINATOR: f"127.0.0.1:{_free_port()}",
            NUM_PROCESSES: str(self.num_processes),
            # Lines come when they are written, not when a pipe's buffer is full.
            "PYTHONUNBUFFERED": "1",
        }
        if self.fake_devices is not None:
            shared |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(self.fake_devices)}
        gpus = [] if self.fake_devices is not None or os.environ.get("JAX_PLATFORMS") == "cpu" else _gpus()
        environments = []
        for index, share in enumerate(shared_out(gpus, self.num_processes)):
            own = {PROCESS_ID: str(index)}
            if share:
                own["CUDA_VISIBLE_DEVICES"] = ",".join(share)
            environments.append(shared | own)
        return environments


def shared_out(gpus: Sequence[str], num_processes: int) -> list[Sequence[str]]:
    """Divides the GPUs evenly among processes, neighbours together; empty parts where there are none.

    Raises:
        ValueError: they do not divide.
    """
    if len(gpus) % num_processes:
        raise ValueError(
            f"num_processes={num_processes}: the {len(gpus)} GPUs of this machine ({','.join(gpus)}) cannot be shared "
            "out evenly; choose a divisor, or GPUs by CUDA_VISIBLE_DEVICES"
        )
    share = len(gpus) // num_processes
    return [gpus[index * share : (index + 1) * share] for index in range(num_processes)]


def written_out(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> str:
    """The commands as shell lines, one for each process."""
    lines = []
    for environment in environments:
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        lines.append(f"{variables} {shlex.join(command)}\n")
    return "".join(lines)


@dataclasses.dataclass(frozen=True)
class ExitStatus:
    """Exit code and message of a local launch.

    Attributes:
        exit_code: 0, or `STOPPED`, or that of the process that failed first; 128 + N where signal N ended it.
        message: which process failed, how, and its last lines; None where none failed.
    """

    exit_code: int
    message: str | None


class _LocalProcess:
    """A local process; its output is passed to `write` line by line, prefixed with its index."""

    def __init__(
        self, index: int, command: Sequence[str], environment: Mapping[str, str], write: Callable[[str], None]
    ):
        self.index = index
        self.last_lines: collections.deque[str] = collections.deque(maxlen=_NUM_LAST_LINES)
        # A session of its own: a Ctrl-C of the terminal comes once, from here, and not a second time from the terminal;
        # a second one would end the process without saving.
        self.popen = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(write,), daemon=True)
        self._reader.start()

    def _read(self, write: Callable[[str], None]) -> None:
        assert self.popen.stdout is not None, "Popen was called with stdout=PIPE"
        with self.popen.stdout as lines:
            for line in lines:
                self.last_lines.append(line)
                write(f"[{self.index}] {line}")

    def drain(self) -> None:
        """Waits until its output was passed on; with a limit, because a child of it may keep the pipe open."""
        self._reader.join(_DRAIN_SECONDS)

    @property
    def exit_code(self) -> int:
        """Exit code as a shell reports it, of a process that has ended."""
        code = self.popen.returncode
        return 128 - code if code < 0 else code

    @property
    def ending(self) -> str:
        code = self.popen.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def run_together(
    command: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    grace_seconds: float,
    write: Callable[[str], None],
) -> ExitStatus:
    """Runs one process for each environment until all have ended. SIGINT and SIGTERM go on to every one.

    A process that ends with anything but 0 or `STOPPED`, or by a signal, ends the others: SIGTERM, then SIGKILL. They
    could only wait for it in a collective operation.

    Args:
        write: is given what the processes write, in whole lines, from several threads.
    """
    lock = threading.Lock()

    def write_line(line: str) -> None:
        with lock:
            write(line)

    # One queue for both kinds of news, so that a signal can come at any time, even before all processes are there.
    news: queue.SimpleQueue[_LocalProcess | int] = queue.SimpleQueue()
    processes: list[_LocalProcess] = []
    with _signals_to(news), _none_left(processes):
        for index, environment in enumerate(environments):
            process = _LocalProcess(index, command, environment, write_line)
            processes.append(process)
            threading.Thread(target=_report_end, args=(process, news), daemon=True).start()
        failed = _until_all_ended(processes, news, grace_seconds, write_line)
    for process in processes:
        process.drain()
    if failed is None:
        return ExitStatus(max(process.exit_code for process in processes), None)
    last_lines = "".join(f"  {line}" for line in failed.last_lines) or "  (it wrote nothing)\n"
    return ExitStatus(
        failed.exit_code, f"process {failed.index} of {len(processes)} {failed.ending}; its last lines:\n{last_lines}"
    )


def _until_all_ended(
    processes: Sequence[_LocalProcess],
    news: "queue.SimpleQueue[_LocalProcess | int]",
    grace_seconds: float,
    write: Callable[[str], None],
) -> _LocalProcess | None:
    """Forwards signals until every process has ended; returns the one that failed first, if one did."""
    failed, deadline = None, None
    living = list(processes)
    while living:
        try:
            event = news.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            deadline = None
            for process in living:
                process.popen.kill()
            continue
        if isinstance(event, int):
            for process in living:
                process.popen.send_signal(event)
            continue
        living.remove(event)
        if failed is None and event.exit_code not in (0, STOPPED):
            failed = event
            if living:
                write(f"process {event.index} {event.ending}; ending the others\n")
                deadline = time.monotonic() + grace_seconds
            for process in living:
                process.popen.terminate()
    return failed


def _report_end(process: _LocalProcess, news: "queue.SimpleQueue[_LocalProcess | int]") -> None:
    process.popen.wait()
    news.put(process)


@contextlib.contextmanager
def _signals_to(news: "queue.SimpleQueue[_LocalProcess | int]") -> Iterator[None]:
    # SimpleQueue.put may be called within a signal handler; that of Queue may not.
    before = {s: signal.signal(s, lambda number, _: news.put(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _none_left(processes: Sequence[_LocalProcess]) -> Iterator[None]:
    """Context in which no process outlives the block."""
    try:
        yield
    finally:
        for process in processes:
            process.popen.kill()
            process.popen.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _gpus() -> list[str]:
    """GPUs of this machine, as CUDA_VISIBLE_DEVICES names them. JAX is not asked: it would take their memory."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
