"""Options of `dit-video doctor`."""

import argparse

from dit_video.cli.usage.arguments import command

EXAMPLES = """  dit-video doctor
  dit-video doctor --json > doctor.json                          to send along with a question

Looks at versions, devices, disk and limits, trains two steps on each device, and says what is wrong and what to do.
Exits with 1 where something is."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "doctor", "look whether this machine can train, and say what to do", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print what was found as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.doctor import main

    return main(arguments)
