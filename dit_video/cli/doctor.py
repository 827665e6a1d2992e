"""`dit-video doctor`: devices, versions, disk, a two-step train on each device; what is wrong and what to do."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement
from rich.filesize import decimal

from dit_video import __version__
from dit_video.config.extras import install
from dit_video.config.user_file import ExperimentError
from dit_video.progress import Terminal
from dit_video.run.checks import check_open_files
from dit_video.run.compilation_cache import keep_compiled_programs
from dit_video.run.folder import environment
from dit_video.storage.user_cache import user_cache
from dit_video.verify.devices import DeviceCheck, check_device

PACKAGE = "dit-video"
# Less is soon full of checkpoints: one of a small run takes some hundred megabytes.
_LEAST_FREE = 10 << 30


def main(arguments: argparse.Namespace) -> int:
    keep_compiled_programs()
    disks = [_disk("the folder that you are in", Path.cwd()), _disk("the cache", user_cache())]
    checks = _checked(jax.local_devices())
    wrong = [
        *requirements(importlib.metadata.requires(PACKAGE) or ()),
        *idle_accelerators({device.platform for device in jax.devices()}, Path("/dev")),
        *(f"{disk['what']}, {disk['path']}: {disk['wrong']}" for disk in disks if disk["wrong"]),
        *_limits(),
        *(f"{check.device}: {check.failed}; it cannot be trained on as it is" for check in checks if check.failed),
    ]
    found = {
        "version": __version__,
        "environment": environment(),
        "disks": disks,
        "devices": [dataclasses.asdict(check) for check in checks],
        "wrong": wrong,
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        Terminal().print("\n".join(_lines(found)))
    return 1 if wrong else 0


def _lines(found: dict[str, Any]) -> Iterable[str]:
    versions = ", ".join(f"{name} {value}" for name, value in found["environment"].items() if name != "devices")
    yield f"versions  {versions}"
    for disk in found["disks"]:
        yield f"disk      {disk['what']}, {disk['path']}: {decimal(disk['free'])} free"
    for check in found["devices"]:
        verdict = check["failed"] or f"two train steps in {check['seconds']:.1f} s, compilation included"
        yield f"device    {check['device']}: {verdict}"
    yield from (f"wrong     {line}" for line in found["wrong"])
    if not found["wrong"]:
        yield "nothing is wrong; `dit-video demo` goes the whole way in minutes"


def _checked(devices: Sequence[jax.Device]) -> list[DeviceCheck]:
    checks: list[DeviceCheck] = []
    for device in devices:
        checks.append(check_device(device, checks[0] if checks else None))
    return checks


def requirements(listed: Iterable[str]) -> list[str]:
    """What is installed in another version than this package needs; extras are not asked for.

    Args:
        listed: requirements as a package states them.
    """
    wrong = []
    for requirement in map(Requirement, listed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed: pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(
                f"{requirement.name} {installed}: must be {requirement.specifier}: pip install '{requirement}'"
            )
    return wrong


def idle_accelerators(platforms: set[str], dev: Path) -> list[str]:
    """Accelerators that the operating system has and JAX does not see.

    Args:
        platforms: of JAX's devices.
        dev: /dev.
    """
    wrong = []
    if (dev / "nvidiactl").exists() and "gpu" not in platforms:
        wrong.append(f"there is an NVIDIA GPU and JAX sees none: {install('cuda')}, and unset JAX_PLATFORMS")
    if ((dev / "accel0").exists() or (dev / "vfio" / "0").exists()) and "tpu" not in platforms:
        wrong.append(f"there is a TPU and JAX sees none: {install('tpu')}, and end other programs that hold it")
    return wrong


def _disk(what: str, path: Path) -> dict[str, Any]:
    """What is free where a folder is, or will be, and whether it can be written."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    wrong = None
    if not os.access(there, os.W_OK):
        wrong = "cannot be written; go to another folder, or set XDG_CACHE_HOME to one that can"
    elif free < _LEAST_FREE:
        wrong = f"only {decimal(free)} are free; a run needs {decimal(_LEAST_FREE)} and more for its checkpoints"
    return {"what": what, "path": str(path), "free": free, "wrong": wrong}


def _limits() -> list[str]:
    try:
        check_open_files()
    except ExperimentError as error:
        return [str(error)]
    return []
