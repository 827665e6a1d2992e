"""The record of a run in its folder: which experiment it is, and whether another may go on in it."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dit_video import experiment as experiments
from dit_video.experiment import Experiment, ExperimentError

RECORD = "experiment.json"


def read_experiment(workdir: Path) -> Experiment:
    """The experiment a run folder was started with."""
    path = workdir / RECORD
    if not path.is_file():
        raise ExperimentError(f"{workdir}: not a run folder (no {RECORD}); `dit-video train --workdir` makes one")
    return experiments.read(path)


def record(experiment: Experiment, workdir: Path, overrides: Sequence[str], allow_change: bool) -> None:
    """Writes experiment.json; refuses a folder that was started with another experiment."""
    path = workdir / RECORD
    if path.is_file():
        before = read_experiment(workdir)
        if experiments.fingerprint(before) != experiments.fingerprint(experiment) and not allow_change:
            changed = experiments.diff(before, experiment)
            lines = [f"  {name}: {short(a)} -> {short(b)}" for name, (a, b) in changed.items()]
            raise ExperimentError(
                f"{workdir} was started with another experiment:\n"
                + "\n".join(lines)
                + "\nuse another --workdir, or --allow_change to go on with the new one"
            )
    write_json(
        path,
        {
            "fingerprint": experiments.fingerprint(experiment),
            "overrides": list(overrides),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "environment": environment(),
            "experiment": experiments.to_json(experiment),
        },
    )


def environment() -> dict[str, str]:
    """Software and hardware, as they go into records and cards."""
    packages = ("dit-video", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av")
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "cores": str(os.cpu_count()),
    }


def write_json(path: Path, data: Any) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
