"""What `dit-video launch` finds wrong with a command before it is started many times, perhaps on rented machines.

The command's experiment is read as the command itself will read it; nothing is computed and no device is touched.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from dit_video.cli.arguments import named
from dit_video.cli.usage.arguments import typed_command
from dit_video.cli.usage.evaluate import spelled_out
from dit_video.distributed.sharding import MESH_AXES, RULES
from dit_video.experiment import Experiment
from dit_video.storage import bucket


def parsed_command(words: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> argparse.Namespace:
    """The arguments of a command, its overrides among them.

    Args:
        words: what stands after `--`.
        commands: the parser of each command.

    Raises:
        ValueError: there is no such command, or it has no such argument.
        SystemExit: of its parser, which says what is missing or wrong.
    """
    name, *rest = spelled_out(words)
    if name not in commands or name == "launch":
        raise ValueError(
            f"{name}: after -- stands a dit-video command: {', '.join(c for c in commands if c != 'launch')}"
        )
    parsed, unknown = commands[name].parse_known_args(rest)
    # The first must begin an override; the value of an override may be a word of its own.
    options = [word for i, word in enumerate(unknown) if i == 0 or word.startswith("--")]
    for word in options:
        if not (hasattr(parsed, "config") and word.startswith("--config.")):
            raise ValueError(f"unknown argument {word}; see {typed_command(commands[name], parsed).prog} --help")
    parsed.overrides, parsed.command = unknown, name
    return parsed


def check_experiment(parsed: argparse.Namespace, num_devices: int | None) -> None:
    """Reads the experiment that a command names, and lays its mesh over the devices that it will have.

    Args:
        num_devices: of all hosts together; None where they are those of this machine.

    Raises:
        ValueError: there is no such file, a field is wrong, or the mesh or the batch does not fit the devices.
    """
    if getattr(parsed, "config", None) is None:
        return
    experiment = named(parsed.config, parsed.overrides)
    if num_devices is not None and parsed.command == "train":
        _check_fit(experiment, num_devices)


def _check_fit(experiment: Experiment, num_devices: int) -> None:
    sizes = dict(zip(MESH_AXES, experiment.mesh.resolve(num_devices)))
    ways = math.prod(sizes[axis] for axis in RULES["batch"])
    parts = experiment.num_microbatches
    for name, rows in experiment.data.batch_sizes.items():
        if rows % (ways * parts):
            raise ValueError(
                f"config.data.{name}={rows}: must be a multiple of data x fsdp = {ways} of {num_devices} devices times "
                f"num_microbatches = {parts}; change it, or give devices to other axes with config.mesh"
            )


def check_lasting(parsed: argparse.Namespace, volumes: Sequence[tuple[str, str]]) -> None:
    """Raises ValueError where a command on GKE writes to a pod's own disk, which is gone when the pod ends.

    Args:
        volumes: (claim, path) of what every host mounts.
    """
    workdir = getattr(parsed, "workdir", None)
    if workdir is None or bucket.address(workdir) is not None:
        return
    paths = [PurePosixPath(path) for _, path in volumes]
    if not any(PurePosixPath(workdir).is_relative_to(path) for path in paths):
        raise ValueError(
            f"--workdir={workdir}: lies on the disk of the pod, which is gone when the pod ends; put it under a volume "
            f"({', '.join(map(str, paths))}), or give gs://bucket/run"
        )
