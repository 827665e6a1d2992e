"""`dit-video verify-resume`: compares a run that is killed and resumed with one that is not, bit for bit."""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

from dit_video.cli.arguments import experiment_of
from dit_video.progress import Terminal, headed
from dit_video.verify.resume import verify_resume


def main(arguments: argparse.Namespace) -> int:
    experiment_of(arguments)  # a wrong field is an error here and not in a process's log
    console, folder = Terminal(stderr=arguments.json), Path(tempfile.mkdtemp(prefix="verify_resume_"))
    verdict = verify_resume(
        _training(arguments),
        folder,
        num_kills=arguments.kills,
        num_steps=arguments.num_steps,
        seed=arguments.seed,
        show=console.print,
    )
    inside = sum(kill.inside_save for kill in verdict.kills)
    first, second = verdict.seconds
    console.print(
        f"{len(verdict.kills)} kills, {inside} of them inside a save; {first:.0f} s undisturbed, {second:.0f} s killed",
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(verdict), indent=1))
    if verdict.difference is not None:
        console.print(headed("differs", "bold red", f": {verdict.difference}"))
        console.print(f"both runs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    if not verdict.kills:
        console.print("it was done before it could be killed: give more --num_steps")
        return 1
    console.print(f"equal bit for bit: {verdict.num_lines} lines of metrics, {verdict.num_arrays} arrays")
    return 0


def _training(arguments: argparse.Namespace) -> list[str]:
    """Command line of the training: a checkpoint between any two kills, and every step logged."""
    save_every = max(1, arguments.num_steps // (arguments.kills + 2))
    return [
        *(sys.executable, "-m", "dit_video", "train", "--random_frozen"),
        *(f"--config={arguments.config}", *arguments.overrides),
        f"--config.schedule.num_steps={arguments.num_steps}",
        f"--config.schedule.save_every={save_every}",
        "--config.schedule.log_every=1",
    ]
