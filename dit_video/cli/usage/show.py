"""Options of `dit-video show`."""

import argparse

from dit_video.cli.usage.arguments import add_config, command

EXAMPLES = """  dit-video show --config=experiments/quickstart.py:vae
  dit-video show --config=experiments/grid_dit.py --config.data.batch_size=256
  dit-video show --config=experiments/grid_dit.py --json > resolved.json
  dit-video show --config=experiments/grid_dit.py --check        does it fit its data: classes, captions, clips"""


def add_parser(subparsers) -> None:
    parser = command(
        subparsers, "show", "print a resolved experiment, its parameters and FLOPs, without touching a device", EXAMPLES
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print the experiment as JSON and nothing else")
    parser.add_argument("--check", action="store_true", help="compare it with its data instead, as train does first")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.show import main

    return main(arguments)
