"""Which weights of a run a command takes, and opening them."""

import argparse

from rich.console import Console

from dit_video.cli.arguments import add_like, add_workdir, like_of
from dit_video.run.open import OpenRun, open_run


def add_weights(parser: argparse.ArgumentParser) -> None:
    """--workdir, --config, --step and --raw; --config.PATH=VALUE changes fields of the run's experiment."""
    add_workdir(parser)
    add_like(parser)
    parser.add_argument("--step", type=int, help="checkpoint to open (default: the latest)")
    parser.add_argument("--raw", action="store_true", help="use the raw weights instead of their moving average")
    parser.set_defaults(config=None, overrides=())


def open_weights(arguments: argparse.Namespace, console: Console) -> OpenRun:
    """The run and the weights that the arguments name."""
    return open_run(
        arguments.workdir,
        step=arguments.step,
        ema=not arguments.raw,
        like=like_of(arguments),
        overrides=arguments.overrides,
        console=console,
    )
