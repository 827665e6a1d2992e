"""Options of `dit-video watch`."""

import argparse

from dit_video.cli.usage.arguments import command, path, whole

EXAMPLES = """  dit-video watch runs/grid_dit
  dit-video watch runs/a runs/b --port=8000

The page of `dit-video report`, kept current while the runs train. Needs the extra web. It is served on 127.0.0.1 alone,
to whoever opens the address that is printed; of another machine forward the port: ssh -L 8000:127.0.0.1:8000 HOST."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "watch", "the page of `report` in a browser, kept current while runs train", EXAMPLES)
    parser.add_argument("workdirs", nargs="+", type=path, metavar="RUN", help="folder of a run on this machine")
    parser.add_argument("--port", type=whole(0), default=0, metavar="N", help="port on 127.0.0.1 (any that is free)")
    parser.add_argument("--title", default="dit_video watch", help="heading of the page")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.watch import main

    return main(arguments)
