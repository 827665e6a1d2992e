"""Opening the weights of a run that a command names."""

import argparse

from rich.console import Console

from dit_video.cli.arguments import like_of
from dit_video.run.open_run import OpenRun, open_run


def open_weights(arguments: argparse.Namespace, console: Console, *, needs_data: bool = True) -> OpenRun:
    """The run and the weights that the arguments name; `needs_data` as of `open_run`."""
    return open_run(
        arguments.workdir,
        step=arguments.step,
        ema=not arguments.raw,
        like=like_of(arguments),
        overrides=arguments.overrides,
        needs_data=needs_data,
        console=console,
    )
