"""Kill and disk-full benchmark: each run must end as the undisturbed run does, bit for bit."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.folder import FOLDER
from dit_video.verify.resume import Verdict, compare_runs, verify_resume

# The smallest experiment that goes through everything: a process lives for seconds, and most of them it starts.
EXPERIMENT = """
from dit_video.data.dataset import Data
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.evaluation.evaluators import Reconstruction
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.video_vae import VideoVAEConfig

def get_config(arg=""):
    return Experiment(
        task=Autoencode(
            vae=VideoVAEConfig(
                channels=8, multipliers=(1, 1), strides=((2, 4, 4), (2, 2, 2)), num_blocks=1, num_decoder_blocks=1,
                latent_channels=4,
            )
        ),
        data=Data(
            source=MovingDigits(
                directory="{folder}/digits", num_train=24, num_held_out=8, size=16, num_frames=9, digit_size=10
            ),
            clips=ClipTransform(num_frames=9, size=(16, 16)),
            batch_size=4,
            num_threads=1,
        ),
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Schedule(num_steps={num_steps}, log_every=1, save_every={save_every}),
        evaluators={{"reconstruction": Reconstruction(every=20, num_clips=4, batch_size=4, num_shown=2)}},
    )
"""
KILLS_PER_RUN = 10
KILL_HEADS = ("runs", "kills", "inside a save", "exact resumes", "lines of metrics", "arrays", "total")
QUOTA_HEADS = ("what the run said",)
_QUOTA = 4 << 20
_SAID = "not written|at risk any more|cannot be written|waited in memory"


def measure_kills(num_kills: int, show: Callable[[str], None]) -> dict[str, Any]:
    """Kills runs with other moments each, until there were `num_kills`."""
    verdicts: list[Verdict] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = training(Path(folder), num_steps=60, save_every=5)
        while (done := sum(len(verdict.kills) for verdict in verdicts)) < num_kills:
            run = Path(folder) / f"run_{len(verdicts)}"
            kills = min(KILLS_PER_RUN, num_kills - done)
            verdicts.append(verify_resume(command, run, num_kills=kills, num_steps=60, seed=len(verdicts)))
            last = verdicts[-1]
            show(f"run {len(verdicts)}: {len(last.kills)} kills, {last.difference or 'equal bit for bit'}")
            if not last.kills:
                raise ValueError("a run was done before it could be killed")
    return {
        "runs": len(verdicts),
        "kills": sum(len(verdict.kills) for verdict in verdicts),
        "inside_a_save": sum(kill.inside_save for verdict in verdicts for kill in verdict.kills),
        "exact": sum(len(verdict.kills) for verdict in verdicts if verdict.difference is None),
        "lines": sum(verdict.num_lines for verdict in verdicts),
        "arrays": sum(verdict.num_arrays for verdict in verdicts),
        "total_s": round(time.monotonic() - began),
        "differences": [verdict.difference for verdict in verdicts if verdict.difference],
    }


def kill_rows(measured: Mapping[str, Any]) -> list[list[object]]:
    names = ("runs", "kills", "inside_a_save", "exact", "lines", "arrays")
    return [[*(measured[name] for name in names), f"{measured['total_s']} s"]]


def measure_quota() -> dict[str, Any]:
    """Trains in a folder that is a file system, filled up after the first checkpoint, which has space again later.

    Needs the right to mount.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = training(folder, num_steps=400, save_every=20)
        undisturbed, disturbed = folder / "undisturbed", folder / "quota"
        subprocess.run([*command, f"--workdir={undisturbed}"], check=True, capture_output=True)
        with _mounted(disturbed):
            log = folder / "log"
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.Popen([*command, f"--workdir={disturbed}"], stdout=file, stderr=subprocess.STDOUT)
            _until(process, lambda: (disturbed / FOLDER / "20").is_dir())
            filler = disturbed / "filler"
            filler.write_bytes(bytes(_free(disturbed)))
            _until(process, lambda: "not written" in log.read_text() and "cannot be written" in log.read_text())
            with Checkpoints(disturbed) as checkpoints:
                during = checkpoints.steps
            filler.unlink()
            code = process.wait()
            lines = [line for line in log.read_text().splitlines() if re.search(_SAID, line)]
            difference, num_lines, num_arrays = compare_runs(undisturbed, disturbed)
    return {
        "code": code,
        "kept": during,
        "said": [line.replace(name, "") for line in lines],
        "lines": num_lines,
        "arrays": num_arrays,
        "difference": difference,
    }


def compared(measured: Mapping[str, Any]) -> str:
    """How the run on the disk that filled up and the undisturbed one compare."""
    equal = f"equal to the undisturbed run: {measured['lines']} lines of metrics, {measured['arrays']} arrays"
    return measured["difference"] or equal


def training(folder: Path, *, num_steps: int, save_every: int) -> list[str]:
    """The command that trains the smallest experiment; a --workdir is to be added."""
    path = folder / "smallest.py"
    path.write_text(EXPERIMENT.format(folder=folder, num_steps=num_steps, save_every=save_every))
    return [sys.executable, "-m", "dit_video", "train", f"--config={path}"]


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_QUOTA}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_bsize


def _until(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    while not reached():
        if process.poll() is not None:
            raise ValueError(
                f"training ended with exit code {process.returncode} before its disk was full, or free again"
            )
        time.sleep(0.02)
