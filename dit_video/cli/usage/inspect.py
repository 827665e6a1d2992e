"""Options of `dit-video inspect`."""

import argparse

from dit_video.cli.usage.arguments import add_like, command, run_path

EXAMPLES = """  dit-video inspect runs/grid_dit                  steps, sizes, what is in them, digests of the weights
  dit-video inspect runs/grid_dit --verify         reads every array and compares it with the digest it was saved with,
                                                   and every shard of its data with their manifests
  dit-video inspect runs/grid_dit --verify --json > checkpoints.json

Also what went wrong in training and what was done about it, changes of the data, and where the time went.
Without --verify a step "looks good" where its metadata and its index of arrays are whole. Exits with 1 where a step is
damaged, and names it. Nothing is moved or changed: `dit-video train` sets aside what is damaged when it goes on."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "inspect", "list the checkpoints of a run and say which are damaged", EXAMPLES)
    parser.add_argument("workdir", type=run_path, metavar="RUN", help="folder of the run, or gs://bucket/run")
    add_like(parser)
    parser.add_argument("--verify", action="store_true", help="read all arrays and shards of data, and compare digests")
    parser.add_argument("--json", action="store_true", help="print the list as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.inspect import main

    return main(arguments)
