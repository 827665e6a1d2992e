"""Options that several commands share.

What a person types is read here and in the other modules of this folder, which import nothing that takes time: a
command is imported when it is run.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from dit_video.config.paths import expanded
from dit_video.distributed.process_settings import AUTO, COORDINATOR, JOIN_TIMEOUT, NUM_PROCESSES, PROCESS_ID
from dit_video.evaluation.protocol import ResizeRule


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors name the help of the command that was typed; so do the parsers of its commands."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}; see {self.prog} --help")


def typed_command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was typed; of a command that has commands, of that one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return typed_command(action.choices[getattr(arguments, action.dest)], arguments)
    return parser


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
        type=path_text,
        metavar="FILE.py[:arg]",
        help="experiment file, with the argument of its get_config, or a run; change fields with --config.PATH=VALUE",
    )


def add_workdir(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--workdir", required=required, type=run_path, metavar="RUN", help="folder of the run, or gs://bucket/run"
    )


def whole(least: int) -> Callable[[str], int]:
    """Type of options that are whole numbers from `least` on."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text.strip(), re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least {least}")
        return int(text)

    return parse


def number(least: float) -> Callable[[str], float]:
    """Type of options that are finite numbers from `least` on."""

    def parse(text: str) -> float:
        value = _float(text)
        if not value >= least or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text}: must be a number, at least {least:g}")
        return value

    return parse


def positive(text: str) -> float:
    """Type of options that are finite numbers above 0."""
    value = _float(text)
    if not value > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def path(text: str) -> Path:
    """Type of options that are paths, with ~ and $VARIABLES, or addresses of buckets."""
    # What the shell has written out itself may hold a dollar sign.
    if os.path.lexists(text):
        return Path(text)
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_path(text: str) -> Path:
    """Type of options that are folders of runs: a `path` in characters that checkpoints can be called by."""
    folder = path(text)
    try:
        os.path.abspath(folder).encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text}: is no text in the encoding of this shell ({sys.getfilesystemencoding()}); set PYTHONUTF8=1, or "
            "name the folder otherwise"
        ) from None
    return folder


def path_text(text: str) -> str:
    """Type of options that are a `path` with something behind a colon, or one of several things."""
    return text if "://" in text else os.fspath(path(text))


def local_path(text: str) -> Path:
    """Type of options that are paths to write to, which no address of a bucket is: it would become a folder "gs:"."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: is written here; give a path, and copy that afterwards")
    return path(text)


def add_like(parser: argparse.ArgumentParser) -> None:
    """--config of commands that open a run."""
    parser.add_argument(
        "--config",
        dest="like",
        type=path_text,
        metavar="FILE.py[:arg]",
        help="where the run is made of classes of your own: an experiment file that is too. It is run; the experiment "
        "is that of the run",
    )


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """What clips are compared by: --resize, --extractor."""
    parser.add_argument(
        "--resize",
        choices=[rule.value for rule in ResizeRule],
        help="how I3D's frames get to 224x224 (default tf1, as the published FVD; half_pixel: as the PyTorch ports)",
    )
    parser.add_argument(
        "--extractor",
        type=path_text,
        metavar="FILE.py[:arg]",
        help="features other than I3D's: a file with get_extractor(arg) -> Extractor (docs/fvd.md shows one)",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """--workdir, --config, --step and --raw; --config.PATH=VALUE changes fields of the run's experiment."""
    add_workdir(parser)
    add_like(parser)
    parser.add_argument("--step", type=whole(0), help="checkpoint to open (default: the latest)")
    parser.add_argument("--raw", action="store_true", help="use the raw weights instead of their moving average")
    parser.set_defaults(config=None, overrides=())


def add_processes(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --num_processes, --process_id, --join_timeout."""
    group = parser.add_argument_group(
        "several processes",
        "The same command on each host. `dit-video launch` does it all; srun, mpirun and GKE are recognised; "
        f"{COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID} stand in for the flags.",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help=f"where process 0 listens; `{AUTO}` on the VMs of a TPU pod",
    )
    group.add_argument("--num_processes", type=whole(1), metavar="N", help="how many there are")
    group.add_argument("--process_id", type=whole(0), metavar="I", help="which of them this is, from 0")
    group.add_argument(
        "--join_timeout",
        type=whole(1),
        default=JOIN_TIMEOUT,
        metavar="SECONDS",
        help=f"how long to wait until all have come (default {JOIN_TIMEOUT})",
    )
