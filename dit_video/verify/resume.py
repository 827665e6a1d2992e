"""Verify exact resume on a user's experiment: a run killed and resumed equals an undisturbed one, bit for bit.

The experiment is trained twice by the command that users type: once undisturbed, and once killed by SIGKILL, which no
program can answer, at random moments and while a checkpoint is being written, and gone on with. All that the two runs
leave behind is then compared bit for bit: every line of metrics but the clock's, and the digest of every array of the
last checkpoint, with the position in the data.
"""

import dataclasses
import itertools
import json
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.folder import FOLDER
from dit_video.training.tracker import read_record

# A half-written checkpoint of a small network is there for some tens of milliseconds.
_POLL_SECONDS = 0.01
_NUM_LAST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Kill:
    """A SIGKILL: the last recorded step of the run, and whether a checkpoint was half-written on disk."""

    step: int
    inside_save: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of the comparison of two runs.

    Attributes:
        difference: the first one found, in words; None where all is equal.
        num_lines: of metrics in either run.
        num_arrays: whose digests were compared.
        seconds: of the undisturbed run, and of all sessions of the other.
    """

    kills: tuple[Kill, ...]
    difference: str | None
    num_lines: int
    num_arrays: int
    seconds: tuple[float, float]


def verify_resume(
    command: Sequence[str],
    folder: Path,
    *,
    num_kills: int,
    num_steps: int,
    seed: int = 0,
    show: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Trains in `folder` undisturbed and with `num_kills` kills, and compares.

    Args:
        command: trains `num_steps` steps and records each at once; a --workdir is added to it.
        seed: of the moments of the kills.
        show: is called with messages on progress.

    Raises:
        ValueError: a run fails without being killed; with its last lines.
    """
    undisturbed, disturbed = folder / "undisturbed", folder / "killed"
    began = time.monotonic()
    _Session(command, undisturbed).finish()
    first = time.monotonic() - began
    show(f"undisturbed: {num_steps} steps in {first:.0f} s")
    moments, kills = random.Random(seed), []
    began = time.monotonic()
    for number in range(num_kills):
        # Beyond what is on record: a step that is there already would be reached before anything is done.
        recorded = last_step(disturbed)
        session = _Session(command, disturbed)
        # Every other one while a checkpoint is being written: that is short, and chance would hardly find it.
        wants_save = number % 2 == 0
        target = moments.randint(min(recorded + 1, num_steps), num_steps)
        if not session.run_until(lambda s, t=target, w=wants_save: s.is_saving() if w else last_step(disturbed) >= t):
            break  # it was done sooner
        kill = session.kill()
        show(f"kill {number + 1} of {num_kills}: after step {kill.step}{', inside a save' if kill.inside_save else ''}")
        kills.append(kill)
    _Session(command, disturbed).finish()
    second = time.monotonic() - began
    difference, num_lines, num_arrays = compare_runs(undisturbed, disturbed)
    return Verdict(tuple(kills), difference, num_lines, num_arrays, (first, second))


def compare_runs(one: Path, other: Path) -> tuple[str | None, int, int]:
    """Compares two runs: their first difference in words, or None; numbers of lines and arrays compared."""
    lines = [[line for line in read_record(run) if "rates" not in line] for run in (one, other)]
    difference = next(
        (
            f"metrics: {_short(a)} undisturbed, {_short(b)} killed"
            for a, b in itertools.zip_longest(*lines)
            if json.dumps(a) != json.dumps(b)
        ),
        None,
    )
    ends = [_end(run) for run in (one, other)]
    names = sorted(ends[0].keys() | ends[1].keys())
    difference = difference or next(
        (
            f"last checkpoint: {name} is {ends[0].get(name)} undisturbed, {ends[1].get(name)} killed"
            for name in names
            if ends[0].get(name) != ends[1].get(name)
        ),
        None,
    )
    return difference, len(lines[0]), len(names) - 2


def _end(run: Path) -> Mapping[str, Any]:
    """Step, data position and digest of every array of the last checkpoint."""
    with Checkpoints(run) as checkpoints:
        metadata = checkpoints.metadata()
        step = checkpoints.latest
    digests = {f"{item}/{name}": value for item, tree in metadata["digests"].items() for name, value in tree.items()}
    return {"step": step, "next batch": metadata["next_batch"]} | digests


def last_step(run: Path) -> int:
    """Last recorded step of a run; 0 where there is none."""
    return max((line["step"] for line in read_record(run)), default=0)


class _Session:
    """A training process in a folder."""

    def __init__(self, command: Sequence[str], workdir: Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self._workdir, self._log = workdir, workdir.with_suffix(".log")
        with open(self._log, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen([*command, f"--workdir={workdir}"], stdout=log, stderr=subprocess.STDOUT)
        self._before = self._half_written()

    def finish(self) -> None:
        """Waits until the run is done."""
        self._process.wait()
        self._check()

    def run_until(self, reached: Callable[["_Session"], bool]) -> bool:
        """Waits until `reached()`; False where the run is done before."""
        while self._process.poll() is None:
            if reached(self):
                return True
            time.sleep(_POLL_SECONDS)
        self._check()
        return False

    def kill(self) -> Kill:
        self._process.kill()
        self._process.wait()
        return Kill(last_step(self._workdir), self.is_saving())

    def is_saving(self) -> bool:
        """Whether this session has a half-written checkpoint on disk."""
        return bool(self._half_written() - self._before)

    def _half_written(self) -> set[str]:
        return {path.name for path in (self._workdir / FOLDER).glob("*.orbax-checkpoint-tmp*")}

    def _check(self) -> None:
        if self._process.returncode != 0:
            last = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_NUM_LAST_LINES:]
            raise ValueError(
                f"training ended with exit code {self._process.returncode} and was not killed by this command; its "
                "last lines:\n" + "\n".join(last)
            )


def _short(line: Mapping[str, Any] | None) -> str:
    return "nothing" if line is None else json.dumps(line)[:200]
