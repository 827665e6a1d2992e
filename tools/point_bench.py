"""Kill-point benchmark: SIGKILL at each change of a run folder, one training after the other; each must go on exactly.

A change is a call of Python that opens a file there to write, or makes, renames, links, touches or removes something;
TensorStore's own writes are not among them (`kills` comes between those). All processes are forked from one that has
imported everything and used no device, and share a compilation cache.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.verify.resume import compare_runs
from tools.kill_bench import training
from tools.reliability_page import ROOT

HEADS = ("changes of the run folder", "killed at", "exact resumes", "lines of metrics", "arrays", "total")
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.utime", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def measure(num_points: int | None = None) -> dict[str, Any]:
    """How many of `num_points` kills, evenly spaced, were gone on from exactly; None: at every change."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tools.point_bench", folder, str(num_points or 0)]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "compiled"),
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout)


def rows(measured: Mapping[str, Any]) -> list[list[object]]:
    names = ("changes", "killed", "exact", "lines", "arrays")
    return [[*(measured[name] for name in names), f"{measured['total_s']} s"]]


def _measure_here(folder: Path, num_points: int | None) -> dict[str, Any]:
    import dit_video.cli.train  # noqa: F401  so that each process has it

    began = time.monotonic()
    words = training(folder, num_steps=4, save_every=2)[3:]
    undisturbed = folder / "undisturbed"
    counted = folder / "changes"
    if code := _train(words, undisturbed, None, counted):
        raise ValueError(f"the undisturbed run ended with exit code {code}: {(folder / 'log').read_text()}")
    changes = int(counted.read_text())
    totals = {"killed": 0, "exact": 0, "lines": 0, "arrays": 0}
    codes, differences = {}, {}
    for point in _spread(changes, num_points):
        run = folder / f"killed_at_{point}"
        totals["killed"] += _train(words, run, point, counted) == -signal.SIGKILL
        if code := _train(words, run, None, counted):
            differences[point] = f"exit code {code}: {(folder / 'log').read_text()[-400:]}"
        codes[point] = code
    # After all processes are forked: comparing starts a device.
    for point in (point for point, code in codes.items() if code == 0):
        difference, num_lines, num_arrays = compare_runs(undisturbed, folder / f"killed_at_{point}")
        totals["lines"] += num_lines
        totals["arrays"] += num_arrays
        totals["exact"] += difference is None
        if difference is not None:
            differences[point] = difference
    total = round(time.monotonic() - began)
    return {"changes": changes, **totals, "differences": differences, "total_s": total}


def _spread(changes: int, num_points: int | None) -> Sequence[int]:
    """Numbers of changes, each in an equal part of all."""
    if num_points is None or num_points >= changes:
        return range(changes)
    return [changes * index // num_points for index in range(num_points)]


def _train(words: Sequence[str], run: Path, kill_at: int | None, counted: Path) -> int:
    """Trains in a process of its own, killed before change number `kill_at`; its exit code, or minus the signal."""
    if (child := os.fork()) == 0:
        _train_here(words, run, kill_at, counted)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _train_here(words: Sequence[str], run: Path, kill_at: int | None, counted: Path) -> None:
    code = 70
    try:
        log = os.open(run.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        changes = itertools.count()
        _before_each_change(run, lambda: next(changes) == kill_at and os.kill(os.getpid(), signal.SIGKILL))
        from dit_video.cli.main import main

        code = main([*words, f"--workdir={run}"])
        counted.write_text(str(next(changes)))
    finally:
        os._exit(code)


def _before_each_change(folder: Path, act: Any) -> None:
    place = os.fspath(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and _is_within(path, place):
                act()
        elif event in _CHANGES and any(_is_within(path, place) for path in arguments[:2]):
            act()

    sys.addaudithook(hook)


def _is_within(path: Any, place: str) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(place)


if __name__ == "__main__":
    print(json.dumps(_measure_here(Path(sys.argv[1]), int(sys.argv[2]) or None)))
