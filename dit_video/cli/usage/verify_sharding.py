"""Options of `dit-video verify-sharding`."""

import argparse

from dit_video.cli.usage.arguments import add_config, command, whole

EXAMPLES = """  dit-video verify-sharding --config=experiments/quickstart.py
  dit-video verify-sharding --config=experiments/mine.py --config.task.network.num_heads=8

Trains on one and on several fake CPU devices, split in every way, from the same random weights, batch and codec, and
compares loss, every gradient and the losses of some steps. No data, no trained codec, no accelerator.
For a network of your own: what is split wrongly shows here and not as a worse model weeks later. Exit code 1 where
anything differs."""


def add_parser(subparsers) -> None:
    parser = command(
        subparsers, "verify-sharding", "prove that an experiment computes the same however it is split", EXAMPLES
    )
    add_config(parser)
    parser.add_argument("--num_steps", type=whole(1), default=10, metavar="N", help="steps of training to compare (10)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.verify_sharding import main

    return main(arguments)
