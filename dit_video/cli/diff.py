"""dit-video diff"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dit_video import experiment as experiments
from dit_video import run_folder
from dit_video.cli.arguments import command
from dit_video.experiment import Experiment

EXAMPLES = """  dit-video diff experiments/quickstart.py experiments/grid_dit.py
  dit-video diff runs/a runs/b
  dit-video diff runs/a experiments/quickstart.py:dit"""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "diff", "print the fields in which two experiments or runs differ", EXAMPLES)
    parser.add_argument("a", metavar="A", help="experiment file (FILE.py[:arg]) or run folder")
    parser.add_argument("b", metavar="B", help="likewise")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    changed = experiments.diff(_open(arguments.a), _open(arguments.b))
    console = Console()
    if not changed:
        console.print("no difference")
        return 0
    table = Table("field", arguments.a, arguments.b)
    for path, (a, b) in changed.items():
        table.add_row(f"config.{path}", json.dumps(a), json.dumps(b))
    console.print(table)
    return 0


def _open(name: str) -> Experiment:
    return run_folder.read_experiment(Path(name)) if Path(name).is_dir() else experiments.load(name)
