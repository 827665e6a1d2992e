"""Arguments that several commands share."""

import argparse
import os
from pathlib import Path

import jax

from dit_video.config.user_file import call_file
from dit_video.data.video_set import file_digest
from dit_video.evaluation.features import Extractor, FromFile
from dit_video.evaluation.i3d import I3DLogits, ResizeRule
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
    parser.add_argument(
        "--workdir", required=required, type=Path, metavar="RUN", help="folder of the run, or gs://bucket/run"
    )


def local_path(text: str) -> Path:
    """A path to write to, which is no address of a bucket: that would become a folder named "gs:"."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: is written here; give a path, and copy that afterwards")
    return Path(text)


def add_like(parser: argparse.ArgumentParser) -> None:
    """--config of commands that open a run."""
    parser.add_argument(
        "--config",
        dest="like",
        metavar="FILE.py[:arg]",
        help="where the run is made of classes of your own: an experiment file that is too. It is run; the experiment "
        "is that of the run",
    )


def like_of(arguments: argparse.Namespace) -> Experiment | None:
    """The experiment whose classes a run may be made of."""
    return None if arguments.like is None else load(arguments.like)


def use_fake_devices(number: int) -> None:
    """Makes JAX see so many CPU devices and nothing else; only before anything has been computed."""
    jax.config.update("jax_platforms", "cpu")
    # Later flags win, so a number that the user's shell sets does not stand in the way.
    flag = f"--xla_force_host_platform_device_count={number}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """The experiment that --config and the overrides name."""
    return load(arguments.config, arguments.overrides)


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """What clips are compared by: --resize, --extractor."""
    parser.add_argument(
        "--resize",
        choices=[rule.value for rule in ResizeRule],
        default=ResizeRule.TF1.value,
        help="how I3D's frames get to 224x224 (default tf1, as the published FVD; half_pixel: as the PyTorch ports)",
    )
    parser.add_argument(
        "--extractor",
        metavar="FILE.py[:arg]",
        help="features other than I3D's: a file with get_extractor(arg) -> Extractor (docs/fvd.md shows one)",
    )


def extractor_of(arguments: argparse.Namespace) -> Extractor:
    """The extractor that --extractor or --resize names."""
    if arguments.extractor is None:
        return I3DLogits(resize=ResizeRule(arguments.resize))
    made = call_file("--extractor", arguments.extractor, "get_extractor", Extractor)
    return FromFile(made, file_digest(arguments.extractor.partition(":")[0]))


def parse_size(option: str, text: str) -> tuple[int, int]:
    """(height, width) from H,W."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"{option}={text}: must be height,width such as 64,64")
    return int(parts[0]), int(parts[1])
