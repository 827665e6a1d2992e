"""What arguments of several commands mean: the experiment, devices, features and sizes that they name."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from dit_video import __version__
from dit_video.config.overrides import override
from dit_video.config.user_file import call_file, packaged
from dit_video.data.video_set import file_digest
from dit_video.distributed.processes import is_first
from dit_video.evaluation.features import Extractor, FromFile
from dit_video.evaluation.i3d import I3DLogits
from dit_video.evaluation.protocol import ResizeRule
from dit_video.experiment import Experiment, load
from dit_video.progress import Terminal
from dit_video.run.folder import EXPERIMENT_FILE, read_experiment
from dit_video.run.places import located
from dit_video.storage.mirror import local_copy


def like_of(arguments: argparse.Namespace) -> Experiment | None:
    """The experiment of --config, whose classes a recorded run may be made of; None without --config."""
    return None if arguments.like is None else named(arguments.like)


def use_fake_devices(number: int) -> None:
    """Makes JAX see `number` CPU devices and no others. To be called before JAX computes anything."""
    jax.config.update("jax_platforms", "cpu")
    # Later flags win, so a number that the user's shell sets does not stand in the way.
    flag = f"--xla_force_host_platform_device_count={number}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """The experiment that --config and the overrides name."""
    return named(arguments.config, arguments.overrides)


def named(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of FILE.py[:arg], of a run folder or of its experiment.json, with overrides.

    Says so where the file is one that came with this package. Of a run, paths are as they lead from here.
    """
    if (run := run_of(name)) is not None:
        experiment = located(read_experiment(run), run / EXPERIMENT_FILE)
        return override(experiment, overrides) if overrides else experiment
    if (file := packaged(name)) is not None:
        console = Terminal(stderr=True, quiet=not is_first())
        console.print(f"{name.partition(':')[0]}: not in this folder; taking that of dit_video {__version__}, {file}")
    return load(name, overrides)


def run_of(name: str) -> Path | None:
    """The run folder that a name means, its copy here where it is in a bucket; None where it names a file to run."""
    path = Path(name)
    if path.name == EXPERIMENT_FILE:
        path = path.parent
    folder = local_copy(path, EXPERIMENT_FILE)
    return folder if folder.is_dir() else None


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
