"""Options of `dit-video demo`."""

import argparse
from pathlib import Path

from dit_video.cli.usage.arguments import command, local_path

EXAMPLES = """  dit-video demo
  dit-video demo --workdir=somewhere_else

Chains the two runs of experiments/quickstart.py: moving digits are prepared, a video VAE learns them, latents are
encoded, a DiT learns those, is judged by FVD, sampled from and exported; report.html shows all of it on one page.
Started again, it goes on where it stopped."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "demo", "the whole way on embedded data, in minutes on two CPU cores", EXAMPLES)
    parser.add_argument(
        "--workdir", type=local_path, default=Path("runs/demo"), help="folder of everything (runs/demo)"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.demo import main

    return main(arguments)
