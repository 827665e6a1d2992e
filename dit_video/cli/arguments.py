"""Arguments that several commands share."""

import argparse
from pathlib import Path

from dit_video.experiment import Experiment, load


def command(subparsers, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A sub-command whose help shows `examples`."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE.py[:arg]",
        help="experiment file, with the argument of its get_config; change fields with --config.PATH=VALUE",
    )


def add_workdir(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--workdir", required=required, type=Path, metavar="RUN", help="folder of the run")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Which weights of a run: --workdir, --step, --raw."""
    add_workdir(parser)
    parser.add_argument("--step", type=int, help="checkpoint to open (default: the latest)")
    parser.add_argument("--raw", action="store_true", help="use the raw weights instead of their moving average")


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """The experiment that --config and the overrides name."""
    return load(arguments.config, arguments.overrides)
