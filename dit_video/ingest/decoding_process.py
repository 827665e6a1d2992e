"""Sandboxed decoding of untrusted video files in worker processes with limits on memory and time.

What a hostile file can do to a decoder, crash it, keep it busy, take all memory (2.7 KB of mp4 whose tables claim
80 million samples take 4.8 GB as soon as they are opened), happens to a process that has limits and no other work,
and is a reason beside the file's name in the end. Requests and answers are lines of JSON, so that a decoder that was
taken over can hand nothing back but facts.
"""

import json
import os
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from dit_video.ingest.probe import Facts, probe, storable
from dit_video.video.files import NO_SPACE
from dit_video.video.pictures import VideoError

# Frames of 8K, 17 in the decoder and 40 in the encoder, are 3 GB.
MAX_PROCESS_BYTES = 4 << 30
# Of a file: a base, and what a still picture that fills minutes per MiB takes to encode. Time of the processor, so that
# it does not depend on what else the machine does.
MAX_SECONDS, MAX_SECONDS_PER_MIB = 600, 60

_Facts = TypeVar("_Facts", bound=Facts)
_FUNCTIONS = {function.__name__: function for function in (storable, probe)}
# By our own path: the package may lie where only this process looks.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from dit_video.ingest import decoding_process as d; d.serve{limits}"


class DecodingProcesses:
    """Pool of decoding processes; safe to call from as many threads as there are processes."""

    def __init__(self, processes: "Sequence[_DecodingProcess]"):
        self._processes = processes
        self._idle: queue.SimpleQueue[_DecodingProcess] = queue.SimpleQueue()
        for process in processes:
            self._idle.put(process)

    def run(self, function: Callable[..., _Facts], *arguments: Path | int | None) -> _Facts:
        """Calls `storable` or `probe` in a process.

        Raises:
            VideoError: as the function does, or the file took the process with it; says how.
            OSError: there is no room for what the function writes.
        """
        process = self._idle.get()
        try:
            return cast(_Facts, process.run(function.__name__, arguments))
        finally:
            self._idle.put(process)

    def stop(self) -> None:
        """Ends what is being decoded: nobody waits for it any more."""
        for process in self._processes:
            process.kill()


def at_once(num_workers: int | None) -> int:
    """How many files are worked on at once: as many as are asked for, else one per core."""
    return num_workers or os.cpu_count() or 1


@contextmanager
def decoding_processes(
    count: int, *, max_bytes: int = MAX_PROCESS_BYTES, max_seconds: int = MAX_SECONDS
) -> Iterator[DecodingProcesses]:
    """Starts a pool of decoding processes that ends with the block.

    Args:
        max_bytes: of memory, of each.
        max_seconds: of processor time for a file, to which MAX_SECONDS_PER_MIB are added.
    """
    processes = [_DecodingProcess((max_bytes, max_seconds)) for _ in range(count)]
    try:
        yield DecodingProcesses(processes)
    finally:
        for process in processes:
            process.end()


class _DecodingProcess:
    """A decoding process, restarted after a file that killed it."""

    def __init__(self, limits: tuple[int, int]):
        self._limits = limits
        self._started: subprocess.Popen[str] | None = None

    def run(self, name: str, arguments: tuple[Path | int | None, ...]) -> Any:
        process = self._started = self._started or self._start()
        assert process.stdin is not None, "Popen was called with stdin=PIPE"
        assert process.stdout is not None, "Popen was called with stdout=PIPE"
        plain = [os.fspath(a) if isinstance(a, Path) else a for a in arguments]
        try:
            process.stdin.write(json.dumps([name, plain]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self.end()
            raise VideoError(_ending(code, str(arguments[0]), self._limits[1]))
        answer = json.loads(line)
        if "refused" in answer:
            raise VideoError(answer["refused"])
        if "failed" in answer:
            raise OSError(*answer["failed"])
        return answer["facts"]

    def kill(self) -> None:
        if self._started is not None:
            self._started.kill()

    def end(self) -> None:
        if self._started is not None:
            self._started.kill()
            self._started.communicate()
            self._started = None

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, limits=self._limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # OpenBLAS would take memory for every core.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )


def budget(path: str | os.PathLike, max_seconds: int = MAX_SECONDS) -> int:
    """Seconds of processor time that decoding a file may take."""
    return max_seconds + MAX_SECONDS_PER_MIB * (os.stat(path).st_size >> 20)


def _ending(code: int, path: str, max_seconds: int) -> str:
    if code == -signal.SIGXCPU:
        return (
            f"takes more than {budget(path, max_seconds)} s of processor time to decode, the budget of its size "
            f"({max_seconds} s, and {MAX_SECONDS_PER_MIB} s for each MiB)"
        )
    if code < 0:
        return f"it crashes the decoder ({signal.Signals(-code).name})"
    return f"the decoder ended with exit code {code}"


def serve(max_bytes: int, max_seconds: int) -> None:
    """Main loop of a decoding process: answers every line of standard input on standard output."""
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))
    # Ctrl-C goes to the whole group of processes; it is for the one that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A library may print; what it prints is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        name, plain = json.loads(line)
        arguments = [Path(a) if isinstance(a, str) else a for a in plain]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = budget(arguments[0], max_seconds)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds, hard))
        print(json.dumps(_answer(_FUNCTIONS[name], arguments, max_bytes)), file=answers, flush=True)


def _answer(function: Callable[..., Facts], arguments: list[Any], max_bytes: int) -> dict[str, Any]:
    try:
        return {"facts": function(*arguments)}
    except VideoError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"takes more than {max_bytes >> 20} MiB to decode"}
    except OSError as error:
        if error.errno in NO_SPACE:
            return {"failed": [error.errno, error.strerror]}
        return {"refused": f"cannot be read: {error.strerror}"}
