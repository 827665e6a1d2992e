"""Actions of strangers' videos: a file beside each video, .npz, .jsonl, .csv or .parquet, a row for each frame."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dit_video.config.array_file import read_arrays
from dit_video.data.tracks import Tracks, TrackSpace
from dit_video.data.video_set import Entry
from dit_video.ingest.source_files import SourceFile
from dit_video.ingest.tables import read_rows
from dit_video.video.actions import ActionSpace

# What arrays of actions, and of their names, are called.
_ARRAYS, _NAMES = ("actions", "action"), ("action_names", "names", "buttons")
_MAX_BYTES = 1 << 28
_STEM = "{stem}"


class Leads(enum.StrEnum):
    """What row f of a file is: what led to frame f, as in sets of ours, or what was done on seeing frame f, which leads
    to the next one.
    """

    TO = "to"
    FROM = "from"


@dataclass(frozen=True, kw_only=True)
class ActionFiles:
    """Where the actions of videos are.

    Attributes:
        pattern: path of the file of actions from a video's folder; `{stem}` is the video's name without its suffix.
        leads: which frame a row belongs to.
        columns: of a table, or the array of a .npz; one of whole numbers is discrete actions, one of words their names.
    """

    pattern: str
    leads: Leads
    columns: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.pattern or PurePosixPath(self.pattern).is_absolute():
            raise ValueError(f"--actions={self.pattern}: must be a path from a video's folder, as {_STEM}_actions.npz")

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON, for the manifest."""
        return {"pattern": self.pattern, "leads": self.leads.value, "columns": list(self.columns)}

    def path(self, video: SourceFile) -> Path:
        """The file of actions of a video."""
        return (video.source / video.name).parent / self.pattern.replace(_STEM, PurePosixPath(video.name).stem)


@dataclass(frozen=True, kw_only=True)
class ActedVideos:
    """Videos with their actions.

    Attributes:
        entries: those of which there are none are not stored, with the reason.
        of: actions by key.
    """

    entries: list[Entry]
    space: TrackSpace
    of: Mapping[str, Tracks] = field(default_factory=dict)


def with_actions(entries: Sequence[Entry], items: Sequence[SourceFile], files: ActionFiles) -> ActedVideos:
    """Reads the actions of all stored videos.

    Raises:
        ValueError: no video has any, they are not of one kind, or a source is a tar.
    """
    source_of = {item.key: item for item in items}
    paths = {entry.file: files.path(source_of[entry.file]) for entry in entries if entry.stored}
    taken = {str(path.resolve()): key for key, path in paths.items()}
    raw: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
    found: list[Entry] = []
    for entry in entries:
        item = source_of[entry.file]
        if not item.source.is_dir():
            raise ValueError(f"--actions: {item.source} is no folder; unpack it, and give that")
        if entry.stored:
            try:
                raw[entry.file] = _aligned(entry, *_read(paths[entry.file], files.columns), files.leads)
            except (ValueError, FileNotFoundError) as error:
                entry = replace(entry, stored=None, split=None, reason=f"without actions: {error}")
        elif (of := taken.get(str((item.source / item.name).resolve()))) is not None:
            entry = replace(entry, reason=f"the actions of {of}")
        found.append(entry)
    if not raw:
        reasons = [entry.reason for entry in found if entry.reason.startswith("without actions")]
        raise ValueError(f"--actions={files.pattern}: no video has actions: {reasons[0] if reasons else 'no videos'}")
    space = TrackSpace(actions=_space(raw))
    unknown = space.actions.unknown(1)
    of = {}
    for key, (actions, names) in raw.items():
        if names and not space.actions.continuous and names != space.actions.names:
            numbers = np.array([space.actions.names.index(name) for name in names], np.int32)
            actions = numbers[actions]
        of[key] = Tracks(space.actions.checked(np.concatenate([unknown, actions.astype(unknown.dtype)])))
    digests = {key: space.sha256(tracks) for key, tracks in of.items()}
    found = [replace(e, tracks_sha256=digests.get(e.file, "")) if e.stored else e for e in found]
    return ActedVideos(entries=found, space=space, of=of)


def _aligned(
    entry: Entry, actions: np.ndarray, names: tuple[str, ...], leads: Leads
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The actions between the frames of a video: one fewer than it has."""
    if entry.left_out or entry.doubled or "frames" in entry.notes:
        raise ValueError("frames of the video were left out or doubled, and its actions are not theirs")
    if len(actions) not in (entry.frames, entry.frames - 1):
        raise ValueError(f"{len(actions)} rows for {entry.frames} frames; there must be one for each, or one fewer")
    if len(actions) == entry.frames:
        actions = actions[1:] if leads is Leads.TO else actions[:-1]
    return actions, names


def _space(raw: Mapping[str, tuple[np.ndarray, tuple[str, ...]]]) -> ActionSpace:
    """The space that all actions are of."""
    widths = {actions.shape[1:] for actions, _ in raw.values()}
    if len(widths) > 1:
        key = next(
            key for key, (actions, _) in raw.items() if actions.shape[1:] != next(iter(raw.values()))[0].shape[1:]
        )
        raise ValueError(f"--actions: videos have {' and '.join(map(str, widths))} numbers a frame, such as {key}")
    (width,) = widths
    named = list(dict.fromkeys(names for _, names in raw.values() if names))
    if width:
        if len(named) > 1:
            raise ValueError(f"--actions: files name their numbers differently: {named[0]} and {named[1]}")
        names = named[0] if named else tuple(f"action_{number}" for number in range(width[0]))
        return ActionSpace(names=names, continuous=True)
    if named and len(named[0]) and all(names for _, names in raw.values()):
        return ActionSpace(names=tuple(dict.fromkeys(name for names in named for name in names)))
    highest = max(int(actions.max(initial=0)) for actions, _ in raw.values())
    return ActionSpace(names=tuple(str(number) for number in range(highest + 1)))


def _read(path: Path, columns: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Whole numbers [n] or floats [n A] of a file, and the names that it has for them."""
    if not path.is_file():
        raise ValueError(f"no file {path.name} beside it")
    return _read_npz(path, columns) if path.suffix.lower() == ".npz" else _read_table(path, columns)


def _read_npz(path: Path, columns: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    choices = columns or _ARRAYS
    try:
        arrays, there = read_arrays(path, {*choices, *_NAMES}, max_bytes=_MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    name = next((name for name in choices if name in arrays), None)
    if name is None:
        raise ValueError(f"{path.name}: has no array {' or '.join(choices)}, but {', '.join(there)}")
    actions, named = arrays[name], next((arrays[name] for name in _NAMES if name in arrays), np.zeros(0, str))
    # "Button.TURN_LEFT" and the like are of enumerations.
    names = tuple(str(word).rpartition(".")[2].lower() for word in named.ravel()) if named.dtype.kind == "U" else ()
    if actions.ndim == 1 and actions.dtype.kind in "iu":
        used = names if names and int(actions.max(initial=0)) < len(names) and len(set(names)) == len(names) else ()
        return _whole(actions, path), used
    if actions.ndim not in (1, 2) or actions.dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: {name} is {actions.dtype} of shape {actions.shape}, not one row for each frame")
    numbers = actions.reshape(len(actions), -1).astype(np.float32)
    return _finite(numbers, path), names if len(names) == numbers.shape[1] else ()


def _read_table(path: Path, columns: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    there, rows = read_rows(path, columns or None)
    chosen = columns or [name for name in _ARRAYS if name in there][:1]
    if missing := [name for name in chosen if name not in there] or (not chosen and ["action"]):
        raise ValueError(
            f"{path.name}: has no column {missing[0]!r}, but {', '.join(there)}; name it: --action_columns"
        )
    cells = []
    for where, row in rows:
        if absent := [name for name in chosen if name not in row]:
            raise ValueError(f"{where}: {absent[0]} is empty")
        cells.append([row[name] for name in chosen])
    if len(chosen) == 1 and cells and not all(_is_number(cell) for (cell,) in cells):
        words = sorted({cell for (cell,) in cells})
        return np.array([words.index(cell) for (cell,) in cells], np.int32), tuple(words)
    try:
        numbers = np.array(cells, np.float64)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if len(chosen) == 1 and (numbers == np.rint(numbers)).all():
        return _whole(numbers[:, 0].astype(np.int64), path), ()
    return _finite(numbers.astype(np.float32), path), tuple(chosen)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _whole(actions: np.ndarray, path: Path) -> np.ndarray:
    if len(actions) and (actions.min() < 0 or actions.max() > 1 << 16):
        raise ValueError(f"{path.name}: action {actions.min()} or {actions.max()} is no number of an action")
    return actions.astype(np.int32)


def _finite(numbers: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(numbers).all():
        row = int(np.argwhere(~np.isfinite(numbers))[0][0])
        raise ValueError(f"{path.name}: row {row} has a number that is not finite")
    return numbers
