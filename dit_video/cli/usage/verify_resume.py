"""Options of `dit-video verify-resume`."""

import argparse

from dit_video.cli.usage.arguments import add_config, command, whole

EXAMPLES = """  dit-video verify-resume --config=experiments/quickstart.py:vae
  dit-video verify-resume --config=experiments/mine.py --kills=20 --num_steps=100

Trains the experiment twice, for a few steps: undisturbed, and killed by SIGKILL at random moments, inside saves too,
and gone on with by the same command. Compares every line of metrics and every array of the last checkpoint bit for
bit, prints the first difference and exits with 1 where there is one."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "verify-resume", "prove that a run that is killed goes on exactly", EXAMPLES)
    add_config(parser)
    parser.add_argument("--kills", type=whole(1), default=5, metavar="N", help="how often to kill (5)")
    parser.add_argument("--num_steps", type=whole(1), default=40, metavar="N", help="length of the run (40)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the moments at which it is killed (0)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.verify_resume import main

    return main(arguments)
