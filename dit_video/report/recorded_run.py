"""A run as its folder records it, for a report: experiment, metrics, cards, pictures, time; no weights are read."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.config.components import flatten
from dit_video.config.json_file import read_object
from dit_video.config.names import FORMAT
from dit_video.config.old_records import upgrade
from dit_video.config.user_file import ExperimentError
from dit_video.evaluation.card import read_card
from dit_video.run.folder import DATA, EXPERIMENT_FILE
from dit_video.training.events import Event, read_events
from dit_video.training.goodput import Activity, read_goodput
from dit_video.training.tracker import read_record

PLAN_FILE = "plan.json"
"""Where `dit-video plan --out` puts what a run was expected to take."""

_MEDIA = re.compile(r"step_(\d+)_(?:(ema|raw)_)?(.+)\.(mp4|png|jsonl)")


@dataclasses.dataclass(frozen=True)
class Medium:
    """A file of samples or pictures that a run has written.

    Attributes:
        name: what it shows, as "samples" or "nearest".
    """

    path: Path
    step: int
    name: str

    @property
    def suffix(self) -> str:
        return self.path.suffix


@dataclasses.dataclass(frozen=True)
class CardFile:
    """An evaluation card and where it lies."""

    path: Path
    content: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """What the folder of a run has to say.

    Attributes:
        name: on the page; no two runs have the same.
        record: experiment.json.
        metrics: lines of metrics.jsonl.
        plan: what `dit-video plan --out` wrote; None where there is none.
        notes: files that could not be read, and why.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    events: Sequence[Event]
    seconds: Mapping[Activity, float]
    cards: Sequence[CardFile]
    media: Sequence[Medium]
    plan: Mapping[str, Any] | None
    notes: Sequence[str]

    @property
    def experiment(self) -> Mapping[str, Any]:
        return self.record["experiment"]

    @property
    def task(self) -> Mapping[str, Any]:
        return self.experiment["task"]

    @property
    def fields(self) -> dict[str, Any]:
        """Leaves of the experiment by dotted path."""
        return {path: value for path, value in flatten(self.experiment).items() if path != "format"}

    @property
    def held_out(self) -> str | None:
        """Digest of the held-out videos; None where the record does not say."""
        data = self.record.get(DATA) or {}
        return data.get("source", {}).get("split_digest", {}).get("held_out")

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.metrics), default=0)

    def lines(self, kind: str) -> Iterable[Mapping[str, Any]]:
        """Lines of the metrics that have the key `kind`: "loss", "evaluation" or "rates"."""
        return (line for line in self.metrics if kind in line)


def read_runs(folders: Sequence[Path]) -> list[RecordedRun]:
    """Reads the folders of runs, in their order.

    Raises:
        ExperimentError: a folder is none of a run.
    """
    return [read_run(folder, name) for folder, name in zip(folders, _names(folders))]


def read_run(folder: Path, name: str) -> RecordedRun:
    """Reads what the folder of a run records; files that are damaged are left out and noted."""
    notes: list[str] = []
    return RecordedRun(
        name=name,
        folder=folder,
        record=_record(folder),
        metrics=list(read_record(folder)),
        events=read_events(folder),
        seconds=read_goodput(folder),
        cards=list(_cards(folder, notes)),
        media=sorted(_media(folder), key=lambda medium: (medium.name, medium.step)),
        plan=_plan(folder / PLAN_FILE, notes),
        notes=notes,
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / EXPERIMENT_FILE
    if not path.is_file():
        raise ExperimentError(
            f"{folder}: not a run folder (no {EXPERIMENT_FILE}); `dit-video train --workdir` makes one"
        )
    try:
        record = read_object(path)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    experiment = record.get("experiment")
    if not isinstance(experiment, dict) or not isinstance(experiment.get("task"), dict):
        raise ExperimentError(f"{path}: damaged: it records no experiment; bring the file back")
    # One of a component that no class of today is says of itself what it can.
    with contextlib.suppress(ExperimentError):
        if experiment.get("format", 1) != FORMAT:
            record["experiment"] = upgrade(experiment)
    return record


def _cards(folder: Path, notes: list[str]) -> Iterable[CardFile]:
    for path in sorted((*folder.glob("evaluation/*.json"), *folder.glob("cards/*.json"))):
        try:
            yield CardFile(path, read_card(path))
        except ValueError as error:
            # A run that has no FVD writes what it measured, without a value.
            if "has no metric" not in str(error):
                notes.append(str(error))


def _media(folder: Path) -> Iterable[Medium]:
    for path in (*folder.glob("samples/*"), *folder.glob("evaluation/*")):
        if parts := _MEDIA.fullmatch(path.name):
            yield Medium(path, int(parts[1]), parts[3])


def _plan(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return read_object(path)
    except ValueError as error:
        notes.append(str(error))
        return None


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart; a folder that is named twice is numbered."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return names
