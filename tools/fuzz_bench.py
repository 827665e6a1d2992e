"""Fuzzing benchmark: hostile and damaged files, made from good ones, each read under limits.

A case is a function of its family and number. It is read in a process with limits of memory and time, which ends in
one of five ways: the file is read, it is refused with an error that names it, or (a fault of ours) the process ends
otherwise, or passes a limit. That process is `python -m tools.fuzz_bench FAMILY`.
"""

import dataclasses
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dit_video.progress import counted
from tools.hostile_files import FAMILIES, Family
from tools.reliability_page import ROOT, line, record, recorded
from tools.stranger_files import STRANGER_FAMILIES

# Ways in which a case ends. The last three are faults.
GOOD, REFUSED, CRASH, HANG, OVER = "good", "clear error", "crash", "hang", "over memory"
OUTCOMES = (GOOD, REFUSED, CRASH, HANG, OVER)
HEADS = ("family", "cases", *OUTCOMES, "slowest case", "most memory", "limits of a case")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """A fuzzing benchmark: kind of file, number of cases, and limits of a case.

    Attributes:
        seconds: of wall time, after which a case is a hang.
        num_bytes: of memory, in the process that reads.
    """

    family: Family
    num_cases: int
    seconds: float
    num_bytes: int


# Tables of the page, and the families of each.
TABLES = {"fuzz": FAMILIES, "strangers": STRANGER_FAMILIES}
# Seconds are hundreds of times those of a good file, for a machine that does other things as well.
BENCHES = {
    name: Bench(family=family, num_cases=1000, seconds=30, num_bytes=family.num_bytes)
    for families in TABLES.values()
    for name, family in families.items()
}


def run(names: Sequence[str], num_cases: int | None) -> int:
    """Runs benches and records them; 1 where there was a fault."""
    faults = 0
    for name in names:
        bench = BENCHES[name] if num_cases is None else dataclasses.replace(BENCHES[name], num_cases=num_cases)
        result = measure(name, bench)
        print(line(row(name, result)))
        for case, what in result["faults"].items():
            print(f"  case {case}: {what}")
        faults += len(result["faults"])
        if num_cases is None or num_cases >= BENCHES[name].num_cases:
            keep(name, result)
    return 1 if faults else 0


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """Reads every case of a bench; how many ended how, what the worst took, and each fault by its case."""
    outcomes: Counter[str] = Counter()
    faults: dict[int, str] = {}
    slowest, most, started = 0.0, 0, time.monotonic()
    reader = Reader(name)
    try:
        for case in counted(range(bench.num_cases), name, total=bench.num_cases, unit="cases"):
            answer = reader.read(case, bench.seconds)
            outcomes[answer["outcome"]] += 1
            slowest, most = max(slowest, answer["seconds"]), max(most, answer["bytes"])
            if answer["outcome"] not in (GOOD, REFUSED):
                faults[case] = f"{answer['outcome']}: {answer['what']}"
    finally:
        reader.end()
    return {
        "cases": bench.num_cases,
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "slowest_s": round(slowest, 2),
        "most_mib": most >> 20,
        "limit_s": bench.seconds,
        "limit_mib": bench.num_bytes >> 20,
        "total_s": round(time.monotonic() - started),
        "faults": faults,
    }


class Reader:
    """A process that reads cases of one bench, started again after one that ended it."""

    def __init__(self, name: str):
        self._name = name
        self._process: subprocess.Popen[str] | None = None

    def read(self, case: int, seconds: float) -> dict[str, Any]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None, "Popen was called with stdin=PIPE"
        assert process.stdout is not None, "Popen was called with stdout=PIPE"
        process.stdin.write(f"{case}\n")
        process.stdin.flush()
        began = time.monotonic()
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if ready:
            outcome, what = CRASH, f"the process ended with code {process.wait()}"
        else:
            outcome, what = HANG, f"no answer within {seconds:.0f} s"
        self.end()
        return {"outcome": outcome, "what": what, "seconds": time.monotonic() - began, "bytes": 0}

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tools.fuzz_bench", self._name]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
        assert process.stdout is not None, "Popen was called with stdout=PIPE"
        # Good files are made before the first case, on no case's time.
        process.stdout.readline()
        return process


def serve(bench: Bench) -> int:
    """Answers each number of a case on standard input with how it ended, on standard output."""
    # A library may print; what it prints is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with tempfile.TemporaryDirectory() as folder:
        reader = bench.family.prepare(Path(folder))
        print("ready", file=answers, flush=True)
        resource.setrlimit(resource.RLIMIT_DATA, (bench.num_bytes, bench.num_bytes))
        for line in sys.stdin:
            path = reader.make(int(line))
            # From here on the kernel keeps a new highest number of resident pages.
            Path("/proc/self/clear_refs").write_text("5")
            began = time.monotonic()
            outcome, what = ending(reader.read, path)
            taken = peak_bytes()
            if taken > bench.num_bytes:
                outcome = OVER
            seconds = time.monotonic() - began
            answer = {"outcome": outcome, "what": what, "seconds": seconds, "bytes": taken}
            print(json.dumps(answer), file=answers, flush=True)
    return 0


def ending(read: Callable[[Path], None], path: Path) -> tuple[str, str]:
    """How reading a file ends, and with what words; anything else that it raises ends this process."""
    try:
        read(path)
    except (ValueError, FileNotFoundError) as error:
        named = str(path) in str(error) or str(path.parent) in str(error)
        return (REFUSED if named else CRASH), f"{type(error).__name__}: {error}"
    except MemoryError as error:
        return OVER, str(error)
    return GOOD, ""


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def keep(name: str, result: dict[str, Any]) -> None:
    """Records the result of one family, keeping those of the others of its table."""
    title, families = next(item for item in TABLES.items() if name in item[1])
    results = recorded(title) | {name: result}
    results = {known: results[known] for known in families if known in results}
    record(title, results, HEADS, [row(*item) for item in results.items()])


def row(name: str, result: dict[str, Any]) -> list[object]:
    numbers = [result["cases"], *(result[outcome] for outcome in OUTCOMES)]
    cost = [f"{result['slowest_s']} s", f"{result['most_mib']} MiB"]
    return [name, *numbers, *cost, f"{result['limit_s']:.0f} s, {result['limit_mib']} MiB"]


def read_one(name: str, case: int) -> None:
    """Reads a case in this process, whatever comes of it."""
    with tempfile.TemporaryDirectory() as folder:
        reader = BENCHES[name].family.prepare(Path(folder))
        reader.read(reader.make(case))


if __name__ == "__main__":
    sys.exit(serve(BENCHES[sys.argv[1]]))
