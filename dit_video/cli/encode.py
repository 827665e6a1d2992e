"""dit-video encode"""

import argparse

from rich.console import Console

from dit_video import trained_codec
from dit_video.cli.arguments import add_config, command, experiment_of

EXAMPLES = """  dit-video encode --config=experiments/quickstart.py
  dit-video encode --config=experiments/grid_dit.py --clips_per_video=4

Reads config.data.source, encodes with the codec of config.task.codec.run, writes config.data.cache.directory. The cache
carries the codec's digest, its statistics, the preprocessing and the digest of the source; training refuses another."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "encode", "write the latents of a data set, so training need not encode", EXAMPLES)
    add_config(parser)
    parser.add_argument(
        "--clips_per_video", type=int, default=1, metavar="N", help="windows taken from each video (default 1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that is there")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    trained_codec.encode(
        experiment_of(arguments),
        clips_per_video=arguments.clips_per_video,
        overwrite=arguments.overwrite,
        console=Console(),
    )
    return 0
