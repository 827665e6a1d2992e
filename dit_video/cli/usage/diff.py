"""Options of `dit-video diff`."""

import argparse

from dit_video.cli.usage.arguments import command, path_text

EXAMPLES = """  dit-video diff experiments/quickstart.py experiments/grid_dit.py
  dit-video diff runs/a runs/b
  dit-video diff runs/a experiments/quickstart.py:dit"""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "diff", "print the fields in which two experiments or runs differ", EXAMPLES)
    parser.add_argument("a", type=path_text, metavar="A", help="experiment file (FILE.py[:arg]) or run folder")
    parser.add_argument("b", type=path_text, metavar="B", help="likewise")
    parser.add_argument("--json", action="store_true", help="print the fields with both values whole, as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.diff import main

    return main(arguments)
