"""Options of `dit-video report`."""

import argparse
from pathlib import Path

from dit_video.cli.usage.arguments import command, local_path, run_path

EXAMPLES = """  dit-video report runs/grid_dit
  dit-video report runs/a runs/b runs/c --out=compared.html --title="learning rates"

One file for a colleague: it opens from disk, without a network and without this program. What was trained and in which
fields the runs differ, curves to zoom into, FVD cards drawn beside their yardsticks, samples side by side across steps
and runs, held-out error by noise level, time, events, and plan against measured where RUN/plan.json is
(`dit-video plan --out=RUN/plan.json`). Values of unlike protocols never share an axis."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "report", "one page of one or many runs, to open offline or give away", EXAMPLES)
    parser.add_argument("workdirs", nargs="+", type=run_path, metavar="RUN", help="folder of a run, or gs://bucket/run")
    parser.add_argument("--out", type=local_path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--title", default="dit_video report", help="heading of the page")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.report import main

    return main(arguments)
