"""dit-video encode"""

import argparse
import enum

from rich.console import Console

from dit_video.cli.arguments import add_config, command, experiment_of
from dit_video.config.user_file import ExperimentError
from dit_video.experiment import Experiment
from dit_video.run import text
from dit_video.run.latents import encode

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
        "--clips_per_video", type=int, default=1, metavar="N", help="windows taken from each video (default 1)"
    )
    parser.add_argument(
        "--caption", action="append", default=[], metavar="TEXT", help="embed this one too; repeated, each of them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that is there")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    console, experiment = Console(), experiment_of(arguments)
    read = [part for part in Part if _reads(experiment, part)]
    parts = read if arguments.only is None else [Part(arguments.only)]
    if not parts:
        raise ExperimentError(
            "config.data.cache is None and config.data.signals has no text cache: this experiment trains on video "
            "and has none to write"
        )
    if arguments.caption and Part.TEXT not in parts:
        raise ExperimentError(
            f"--caption={arguments.caption[0]!r}: this writes no embeddings; see config.data.signals.text"
        )
    for name, cache in (("cache", experiment.data.cache), ("signals.text", text.text_cache(experiment.data))):
        if cache is not None and "://" in cache.directory:
            raise ExperimentError(f"config.data.{name}.directory={cache.directory}: is written here; give a folder")
    if Part.TEXT in parts:
        text.encode_text(experiment, captions=arguments.caption, overwrite=arguments.overwrite, console=console)
    if Part.LATENTS in parts:
        encode(experiment, clips_per_video=arguments.clips_per_video, overwrite=arguments.overwrite, console=console)
    return 0


def _reads(experiment: Experiment, part: Part) -> bool:
    return (experiment.data.cache if part is Part.LATENTS else text.text_cache(experiment.data)) is not None
