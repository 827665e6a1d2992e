"""Options of `dit-video experiments`."""

import argparse

from dit_video.cli.usage.arguments import command

EXAMPLES = """  dit-video experiments
  dit-video show --config=experiments/quickstart.py

They come with this package and work in any folder; a file of the same name in the folder that you are in wins."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "experiments", "list the experiments that come with this package", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print them as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.experiments import main

    return main(arguments)
