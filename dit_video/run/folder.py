"""The record of a run in its folder: which experiment and which data it is of, and whether others may go on in it."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dit_video import experiment as experiments
from dit_video.config import components
from dit_video.config.components import diff
from dit_video.config.json_file import in_short, read_object, write_json
from dit_video.config.user_file import ExperimentError
from dit_video.data.record import Split
from dit_video.experiment import Experiment

EXPERIMENT_FILE = "experiment.json"
# In it, beside the experiment: what its data are, and what they were before.
DATA, DATA_CHANGES = "data", "data_changes"


def read_experiment(workdir: Path, like: Experiment | None = None) -> Experiment:
    """The experiment a run folder was started with; `like` has the classes of the user's own that it is made of."""
    path = workdir / EXPERIMENT_FILE
    if not path.is_file():
        raise ExperimentError(
            f"{workdir}: not a run folder (no {EXPERIMENT_FILE}); `dit-video train --workdir` makes one"
        )
    return experiments.read(path, like)


def record(experiment: Experiment, workdir: Path, overrides: Sequence[str], allow_change: bool) -> None:
    """Writes experiment.json; refuses a folder that was started with another experiment, and one that cannot be read.

    Raises:
        ExperimentError: names the fields that changed, or the field that JSON does not give back.
    """
    again = experiments.from_json(components.record(experiment), experiment)
    for name, (before, after) in diff(experiment, again).items():
        raise ExperimentError(f"config.{name}={before!r}: a record of it reads as {after!r}; change the field's type")
    path, kept = workdir / EXPERIMENT_FILE, {}
    if path.is_file():
        before = read_experiment(workdir, experiment)
        said = read_object(path)
        kept = {name: said[name] for name in (DATA, DATA_CHANGES) if name in said}
        if experiments.fingerprint(before) != experiments.fingerprint(experiment) and not allow_change:
            changed = diff(before, experiment)
            lines = [f"  {name}: {' -> '.join(in_short(*values))}" for name, values in changed.items()]
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
            "experiment": components.record(experiment),
            **kept,
        },
    )


def check_data(data: dict[str, Any], workdir: Path, allow_change: bool) -> None:
    """Refuses to go on in a folder that was started with other data; a run of before data were recorded takes any.

    Args:
        data: what `Data.identity` says of those to go on with.

    Raises:
        ExperimentError: says what is different. Other classes are always refused: a label would mean another one.
    """
    old = read_object(workdir / EXPERIMENT_FILE).get(DATA)
    if old is None or old == data:
        return
    before, now = old["source"], data["source"]
    lines = _differences(old, data)
    if before["class_names"] != now["class_names"]:
        lines += [f"  classes: {' -> '.join(in_short(before['class_names'], now['class_names']))}"]
        remedy = "a label would mean another class than was learnt: bring the data back, or use another --workdir"
    elif allow_change:
        return
    else:
        held_out = Split.HELD_OUT.value
        same = before["split_digest"].get(held_out) == now["split_digest"].get(held_out)
        lines += [
            "order = f(seed, batch index, number of records): from the next batch on, batches are others",
            "held-out videos are unchanged: scores before and after can be compared"
            if same
            else "held-out videos are others: scores before and after cannot be compared",
        ]
        remedy = "bring the data back, or use --allow_data_change to go on with the new ones"
    raise ExperimentError("\n".join([f"{workdir} was started with other data:", *lines, remedy]))


def record_data(data: dict[str, Any], workdir: Path, next_batch: int) -> None:
    """Writes down the data that this run goes on with from `next_batch` on, and whether they are others than before."""
    path = workdir / EXPERIMENT_FILE
    said = read_object(path)
    old = said.get(DATA)
    if old == data:
        return
    if old is not None:
        said[DATA_CHANGES] = [*said.get(DATA_CHANGES, []), {"batch": next_batch, "old": old, "new": data}]
    write_json(path, {**said, DATA: data})


def data_changes(workdir: Path) -> list[dict[str, Any]]:
    """The changes of data that this run was allowed to go on with: the first batch of the new ones, old, and new."""
    return read_object(workdir / EXPERIMENT_FILE).get(DATA_CHANGES, [])


def describe_change(change: dict[str, Any]) -> list[str]:
    """A change of data in words."""
    return _differences(change["old"], change["new"])


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("source", "cache"):
        if old[name] != new[name]:
            before, now = ("none" if data is None else _described(data) for data in (old[name], new[name]))
            lines.append(f"  config.data.{name}: {before} -> {now}")
    return lines


def _described(data: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{number} {split} ({data['split_digest'].get(split, 'empty')[:8]})"
        for split, number in data["num_records"].items()
    )
    return f"{counts}, manifest {data['digest'][:8]}"


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
