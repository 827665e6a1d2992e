"""Options of `dit-video encode`."""

import argparse
import enum

from dit_video.cli.usage.arguments import add_config, command, whole

EXAMPLES = """  dit-video encode --config=experiments/quickstart.py
  dit-video encode --config=experiments/grid_dit.py --clips_per_video=4
  dit-video encode --config=experiments/text_dit.py --only=text --caption="a fox in the snow"

Reads config.data.source. Latents are made with the codec of config.task.codec.run and go to
config.data.cache.directory; embeddings of captions are made with the encoders of config.task.text and go to
config.data.signals.text.directory, each caption once, and those that are there already are left as they are. A cache
carries what it was made with: the digests of codec or encoders, the preprocessing, and for latents the digest of the
source; training refuses another."""


class Part(enum.Enum):
    """What is written."""

    LATENTS = "latents"
    TEXT = "text"


def add_parser(subparsers) -> None:
    summary = "write the latents and embedded captions of a data set, so training need not encode"
    parser = command(subparsers, "encode", summary, EXAMPLES)
    add_config(parser)
    parser.add_argument(
        "--only", choices=[part.value for part in Part], help="one of the two (default: all that the experiment reads)"
    )
    parser.add_argument(
        "--clips_per_video", type=whole(1), default=1, metavar="N", help="windows taken from each video (default 1)"
    )
    parser.add_argument(
        "--caption", action="append", default=[], metavar="TEXT", help="embed this one too; repeated, each of them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that is there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.encode import main

    return main(arguments)
