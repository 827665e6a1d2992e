"""`dit-video train`: trains an experiment, or resumes its training."""

import argparse
import sys
from typing import Any

from dit_video import __version__
from dit_video.cli.arguments import experiment_of
from dit_video.cli.multi_process import Together
from dit_video.distributed import processes
from dit_video.progress import Terminal
from dit_video.run.folder import AllowedChanges
from dit_video.run.train import train
from dit_video.storage.bucket import address
from dit_video.storage.failures import Unfailing


def main(arguments: argparse.Namespace) -> int:
    with Together(arguments, stops_together=True):
        return _train(arguments)


def _train(arguments: argparse.Namespace) -> int:
    shown: Any = Unfailing(sys.stdout)
    console = Terminal(file=shown, quiet=not processes.is_first())
    # Before what takes seconds: JAX looks for devices, codecs and caches are read.
    console.print(f"dit-video {__version__}: training in {arguments.workdir}")
    outcome = train(
        experiment_of(arguments),
        arguments.workdir,
        overrides=arguments.overrides,
        init_from=arguments.init_from,
        allow=AllowedChanges(experiment=arguments.allow_change, data=arguments.allow_data_change),
        profile=arguments.profile,
        random_frozen=arguments.random_frozen,
        console=console,
    )
    if not outcome.finished:
        console.print(f"stopped at step {outcome.step} and saved; the same command goes on from there")
        return 3
    kept = address(arguments.workdir) or arguments.workdir
    console.print(f"done: step {outcome.step}; look at {kept}/curves.png and samples/")
    return 0
