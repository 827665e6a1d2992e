"""Odd-state benchmark: whatever stands in the place of a lock, record or folder of a run, every command ends well.

A command ends well where it works (exit code 0), or says with exit code 1 what in the run is wrong, in time.
Each case is a copy of a small finished run and a process of its own, forked from one that has imported everything.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.progress import counted
from tools.kill_bench import training

WORKS, REFUSED, WRONG, TRACEBACK, HANG = "works", "clear error", "other ending", "traceback", "hang"
OUTCOMES = (WORKS, REFUSED, WRONG, TRACEBACK, HANG)
HEADS = ("in the place of", "cases", *OUTCOMES, "slowest case")
SECONDS = 60.0
STATES = (
    *("empty", "garbage", "in the future", "a link to nothing", "a link to itself", "a pipe", "a folder", "a file"),
    *("unreadable", "gone"),
)
RECORDS = ("metrics.jsonl", "events.jsonl", "goodput.jsonl", "saves.jsonl")
STEPS = ("checkpoints", "checkpoints/2", "checkpoints/4", "checkpoints/4/_CHECKPOINT_METADATA")
SIDES = ("checkpoints_damaged", "evaluation", "samples", "tensorboard", "earlier_records")
EXPERIMENT, STATISTICS, LOCK = "experiment.json", "latent_statistics.json", "lock.json"
PLACES = (LOCK, EXPERIMENT, *RECORDS, STATISTICS, *STEPS, *SIDES)
# Of another machine, PID namespace or boot; of this one and gone.
_ELSEWHERE = '{"host": "elsewhere", "namespace": "x", "boot": "x", "pid": 1, "process_started": null, "since": "then", '
LOCKS = {"of another host": _ELSEWHERE + '"refresh_seconds": 20}', "of version 0.1": _ELSEWHERE.rstrip(", ") + "}"}
# What is typed, and what the command reads of a run.
COMMANDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "show": (("show", "--config={run}", "--json"), (EXPERIMENT,)),
    "diff": (("diff", "{run}", "{config}"), (EXPERIMENT,)),
    "inspect": (("inspect", "{run}", "--verify"), (EXPERIMENT, *RECORDS[1:3], *STEPS, *SIDES[:1])),
    "report": (("report", "{run}", "--out={out}/report.html"), (EXPERIMENT, *RECORDS, *SIDES[1:3])),
    "export": (
        ("export", "--workdir={run}", "--out={out}/exported", "--format=safetensors"),
        (EXPERIMENT, STATISTICS, *STEPS),
    ),
    "train": (("train", "--config={config}", "--workdir={run}"), PLACES),
}
# Of linux/capability.h: the right of root to read and write what its mode forbids.
_VERSION_3, _OVERRIDE = 0x20080522, 0b110


def measure(commands: Sequence[str] = tuple(COMMANDS), states: Sequence[str] = STATES) -> dict[str, Any]:
    """How many cases of each place ended how, and each that did not end well."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        template = _finished_run(folder)
        _prepare()
        cases = [
            (place, state, command)
            for command in commands
            for place in COMMANDS[command][1]
            for state in (*states, *(LOCKS if place == LOCK else ()))
        ]
        outcomes: dict[str, Counter[str]] = {place: Counter() for place in PLACES}
        slowest = dict.fromkeys(PLACES, 0.0)
        faults = {}
        for number, (place, state, command) in enumerate(counted(cases, "states", total=len(cases), unit="cases")):
            here = folder / f"case{number}"
            shutil.copytree(template, here / "run")
            put(state, here / "run" / place)
            ending, said, seconds = _end(here, COMMANDS[command][0], folder / "smallest.py")
            outcomes[place][ending] += 1
            slowest[place] = max(slowest[place], seconds)
            if ending not in (WORKS, REFUSED):
                faults[f"{command}: {state} in the place of {place}"] = f"{ending}: {said[-400:]}"
            shutil.rmtree(here)
    return {
        "outcomes": {place: dict(counts) for place, counts in outcomes.items()},
        "slowest_s": slowest,
        "faults": faults,
    }


def rows(measured: Mapping[str, Any]) -> list[list[object]]:
    return [
        [place, sum(counts.values()), *(counts.get(o, 0) for o in OUTCOMES), f"{measured['slowest_s'][place]:.1f} s"]
        for place, counts in measured["outcomes"].items()
        if counts
    ]


def put(state: str, path: Path) -> None:
    """Puts something odd in the place of a file or folder of a run, which may be there."""
    if state == "in the future" and path.exists():
        then = time.time() + 1e8
        os.utime(path, (then, then))
        return
    if state == "unreadable" and path.exists():
        path.chmod(0)
        return
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    match state:
        case "gone":
            pass
        case "empty":
            path.touch()
        case "in the future":
            path.write_text("{}")
            os.utime(path, (time.time() + 1e8,) * 2)
        case "unreadable":
            path.touch(mode=0)
        case "a link to nothing":
            path.symlink_to("nowhere")
        case "a link to itself":
            path.symlink_to(path.name)
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
            (path / "inside").touch()
        case "a file":
            path.write_text("{}\n")
        case "garbage":
            path.write_bytes(bytes(range(256)) * 64)
        case _:
            path.write_text(LOCKS[state])


def _finished_run(folder: Path) -> Path:
    """A run of four steps, which the config smallest.py beside it is of."""
    run = folder / "template"
    command = [*training(folder, num_steps=4, save_every=2), f"--workdir={run}"]
    subprocess.run(command, check=True, capture_output=True)
    return run


def _prepare() -> None:
    """Imports what commands import, and shortens what they wait for: what fails here fails for ever."""
    from dit_video.cli import diff, export, inspect, report, show, train
    from dit_video.run import lock
    from dit_video.storage import failures

    del diff, export, inspect, report, show, train
    lock.GONE_SECONDS, lock._POLL_SECONDS = 0.3, 0.01
    failures.READ_PAUSES = ()


def _end(here: Path, words: Sequence[str], config: Path) -> tuple[str, str, float]:
    """How a command ends that is given a run, what it said, and the seconds that it took."""
    (here / "out").mkdir()
    filled = [word.format(run=here / "run", out=here / "out", config=config) for word in words]
    log = here / "log"
    began = time.monotonic()
    if (child := os.fork()) == 0:
        _run(filled, log)
    code = _wait(child, began + SECONDS)
    said, seconds = log.read_text(errors="replace"), time.monotonic() - began
    if code is None:
        return HANG, said, seconds
    if "Traceback" in said:
        return TRACEBACK, said, seconds
    named = re.search(r"(error|damaged): (.|\n)*" + re.escape(str(here / "run")), said)
    return WORKS if code == 0 else REFUSED if code == 1 and named else WRONG, f"{code}: {said}", seconds


def _run(words: Sequence[str], log: Path) -> None:
    """Runs a command in this process, which it ends, with all that it says in a file."""
    from dit_video.cli.main import main

    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        give_up_override()
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    finally:
        os._exit(code)


def _wait(child: int, until: float) -> int | None:
    """The exit code of a process; None where it has to be killed."""
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def give_up_override() -> None:
    """Makes modes of files count for this process though it is root's; for others they do already."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for index in (0, 1):  # effective and permitted, of the first 32 rights
        sets[index] &= ~_OVERRIDE
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
