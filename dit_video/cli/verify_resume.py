"""dit-video verify-resume"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from dit_video.cli.arguments import add_config, command, experiment_of
from dit_video.verify.resume import verify_resume

EXAMPLES = """  dit-video verify-resume --config=experiments/quickstart.py:vae
  dit-video verify-resume --config=experiments/mine.py --kills=20 --num_steps=100

Trains the experiment twice, for a few steps: undisturbed, and killed by SIGKILL at random moments, inside saves too,
and gone on with by the same command. Compares every line of metrics and every array of the last checkpoint bit for
bit, prints the first difference and exits with 1 where there is one."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "verify-resume", "prove that a run that is killed goes on exactly", EXAMPLES)
    add_config(parser)
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="how often to kill (5)")
    parser.add_argument("--num_steps", type=int, default=40, metavar="N", help="length of the run (40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is killed (0)")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    for name in ("kills", "num_steps"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}={getattr(arguments, name)}: must be at least 1")
    experiment_of(arguments)  # a wrong field is an error here and not in a process's log
    console, folder = Console(), Path(tempfile.mkdtemp(prefix="verify_resume_"))
    verdict = verify_resume(
        _training(arguments),
        folder,
        num_kills=arguments.kills,
        num_steps=arguments.num_steps,
        seed=arguments.seed,
        show=lambda message: console.print(message, highlight=False),
    )
    inside = sum(kill.inside_save for kill in verdict.kills)
    first, second = verdict.seconds
    console.print(
        f"{len(verdict.kills)} kills, {inside} of them inside a save; {first:.0f} s undisturbed, {second:.0f} s killed",
        highlight=False,
    )
    if verdict.difference is not None:
        console.print(f"[bold red]differs[/]: {verdict.difference}", highlight=False)
        console.print(f"both runs are kept in {folder}", highlight=False)
        return 1
    shutil.rmtree(folder)
    if not verdict.kills:
        console.print("it was done before it could be killed: give more --num_steps", highlight=False)
        return 1
    console.print(
        f"equal bit for bit: {verdict.num_lines} lines of metrics, {verdict.num_arrays} arrays", highlight=False
    )
    return 0


def _training(arguments: argparse.Namespace) -> list[str]:
    """The command that trains, with a checkpoint between any two kills and each step on record at once."""
    save_every = max(1, arguments.num_steps // (arguments.kills + 2))
    return [
        *(sys.executable, "-m", "dit_video.cli.main", "train", "--random_frozen"),
        *(f"--config={arguments.config}", *arguments.overrides),
        f"--config.schedule.num_steps={arguments.num_steps}",
        f"--config.schedule.save_every={save_every}",
        "--config.schedule.log_every=1",
    ]
