"""RUN/experiment.json: the resolved experiment and the identity of its data, recorded, read and compared."""

import dataclasses
import importlib.metadata
import os
import platform
import reprlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dit_video import experiment as experiments
from dit_video.checkpoint.identity import Identity
from dit_video.config import components
from dit_video.config.components import diff
from dit_video.config.json_file import check_kinds, in_short, read_object, write_json
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import check_identity
from dit_video.data.record import Split
from dit_video.distributed import processes
from dit_video.experiment import Experiment
from dit_video.run.places import PLACES, places_now
from dit_video.run.shown import SHOWN

EXPERIMENT_FILE = "experiment.json"
# Fields of it: the identity of the data (`Data.identity`), and the changes of these so far.
DATA, DATA_CHANGES = "data", "data_changes"
# The run's name in its checkpoints, and the fingerprints that its experiment had before it was changed with leave, or
# before another version of this package computed them.
RUN_ID, FINGERPRINT, EARLIER_FINGERPRINTS = "run_id", "fingerprint", "earlier_fingerprints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllowedChanges:
    """What may be another than what a run folder was started with, when training goes on in it.

    Attributes:
        experiment: its fields that decide what is learnt (`experiment.fingerprint`).
        data: the records behind the same experiment; from the next batch on, batches are then others.
    """

    experiment: bool = False
    data: bool = False


def read_experiment(workdir: Path, like: Experiment | None = None) -> Experiment:
    """The experiment that a run folder was started with.

    Args:
        like: an experiment with the classes of the user's own that it is made of.

    Raises:
        ExperimentError: no run folder, or a record that cannot be read.
    """
    path = workdir / EXPERIMENT_FILE
    if not path.is_file():
        raise ExperimentError(
            f"{workdir}: not a run folder (no {EXPERIMENT_FILE}); `dit-video train --workdir` makes one"
        )
    return experiments.read(path, like)


def record(experiment: Experiment, workdir: Path, overrides: Sequence[str], *, allow_change: bool) -> None:
    """Writes experiment.json, where the folder has none or has one of the same experiment.

    Args:
        overrides: words of the command line that changed the experiment's file.
        allow_change: the folder's experiment may be another one, which is then replaced.

    Raises:
        ExperimentError: names the fields that changed, or the field that is not read as it was written.
    """
    again = experiments.from_json(components.record(experiment), experiment)
    for name, (before, after) in diff(experiment, again).items():
        raise ExperimentError(f"config.{name}={before!r}: a record of it reads as {after!r}; change the field's type")
    path, kept = workdir / EXPERIMENT_FILE, {}
    if path.is_file():
        before = read_experiment(workdir, experiment)
        content = _read(path)
        kept = {name: content[name] for name in (RUN_ID, DATA, DATA_CHANGES, SHOWN) if name in content}
        if earlier := [f for f in _fingerprints(content) if f != experiments.fingerprint(experiment)]:
            kept[EARLIER_FINGERPRINTS] = earlier
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
            FINGERPRINT: experiments.fingerprint(experiment),
            "overrides": list(overrides),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "environment": environment(),
            PLACES: places_now(workdir),
            "experiment": components.record(experiment),
            **kept,
        },
    )


def _fingerprints(content: Mapping[str, Any]) -> list[str]:
    """All fingerprints that a record knows of its run, the present one last."""
    earlier = content.get(EARLIER_FINGERPRINTS)
    known = [*(earlier if isinstance(earlier, list) else ()), content.get(FINGERPRINT)]
    return list(dict.fromkeys(f for f in known if isinstance(f, str)))


def identity(workdir: Path, run_on_record: Callable[[], str | None]) -> Identity:
    """Identity of the run in a folder whose experiment is recorded, by every process; a run without one is given one.

    Args:
        run_on_record: the run that its checkpoints name; asked where the record names none.
    """
    path = workdir / EXPERIMENT_FILE
    content = processes.from_first(lambda: read_object(path))
    run_id = content.get(RUN_ID)
    if not isinstance(run_id, str):
        there = run_on_record()
        run_id = processes.from_first(lambda: there or secrets.token_hex(8))
        processes.from_first(lambda: write_json(path, {**content, RUN_ID: run_id}))
    *earlier, fingerprint = _fingerprints(content)
    return Identity(run_id, fingerprint, tuple(earlier))


def check_data(data: dict[str, Any], workdir: Path, *, allow_change: bool) -> None:
    """Compares data with those that the run folder was started with; one without a record of these takes any.

    Args:
        data: what `Data.identity` says of those to go on with.
        allow_change: the records may be others; the classes never, for a label would mean another one.

    Raises:
        ExperimentError: says what is different.
    """
    old = _read(workdir / EXPERIMENT_FILE).get(DATA)
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
    """Records the identity of the data that the run is trained on from batch `next_batch` on, and a change of it."""
    path = workdir / EXPERIMENT_FILE
    content = _read(path)
    old = content.get(DATA)
    if old == data:
        return
    if old is not None:
        content[DATA_CHANGES] = [*content.get(DATA_CHANGES, []), {"batch": next_batch, "old": old, "new": data}]
    write_json(path, {**content, DATA: data})


def data_changes(workdir: Path) -> list[dict[str, Any]]:
    """Changes of the data of a run so far: {"batch": first one of the new data, "old": identity, "new": identity}."""
    return _read(workdir / EXPERIMENT_FILE).get(DATA_CHANGES, [])


def _read(path: Path) -> dict[str, Any]:
    """The record of a run, with what it says of its data checked.

    Raises:
        ExperimentError: names the field and what to do.
    """
    try:
        content = read_object(path)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    try:
        if content.get(DATA) is not None:
            check_identity(content[DATA])
        check_kinds(content, {DATA_CHANGES: list} if DATA_CHANGES in content else {})
        for change in content.get(DATA_CHANGES, []):
            if not isinstance(change, dict):
                raise ValueError(f"{DATA_CHANGES}: holds {reprlib.repr(change)}, not an object")
            check_kinds(change, {"batch": int})
            for side in ("old", "new"):
                check_identity(change.get(side))
    except ValueError as error:
        raise ExperimentError(
            f"{path}: damaged: {error}. Bring the file back; or take {DATA} and {DATA_CHANGES} out of it, and the run "
            "goes on with the data that its experiment names now, unchecked"
        ) from error
    return content


def describe_change(change: dict[str, Any]) -> list[str]:
    """A change of data (`data_changes`) in lines of text."""
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
    """Versions of software, devices and CPU cores, for records and evaluation cards."""
    packages = ("dit-video", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av")
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "cores": str(os.cpu_count()),
    }
