"""Classes and splits of video files from the sub-folders that they are in."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from dit_video.data.record import Split
from dit_video.ingest.label_table import Description, split_of

Folders = tuple[str, ...]


def from_folders(names: Sequence[str], *, one_is_class: bool = True) -> tuple[dict[str, Description], list[str]]:
    """Class labels and splits from sub-folders.

    Folders that all files share say nothing, but for the innermost where it is the only class folder. Folders named
    after a split to train on and others after one that is held out (train/, test/, val/), above the class folders or in
    each, are the splits; clips beside them are trained on. The first of the other folders is the class; files in no
    class folder have no label. Where all files are in one folder named after a split that is held out, all are.

    Args:
        names: paths within one source, with '/'.
        one_is_class: whether one folder that all files share is a class.

    Returns:
        Descriptions by name, and the folders beside those that are splits, whose clips are trained on.
    """
    all_folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    if not all_folders:
        return {}, []
    shared = _shared(list(all_folders.values()))
    folders = {name: parts[len(shared) :] for name, parts in all_folders.items()}
    level = _level_of_splits(list(folders.values()))
    splits: dict[str, Split | None] = dict.fromkeys(names)
    beside: list[str] = []
    if level is not None:
        splits = {name: _split_at(parts, level) for name, parts in folders.items()}
        others = [name for name, split in splits.items() if split is None]
        beside = sorted({"/".join(folders[name][: level + 1]) + "/" for name in others if folders[name]})
        splits |= dict.fromkeys(others, Split.TRAIN)
        folders = {name: parts[:level] + parts[level + 1 :] for name, parts in folders.items()}
    elif Split.HELD_OUT in map(split_of, shared):
        splits = dict.fromkeys(names, Split.HELD_OUT)
    labels = {name: parts[0] if parts else None for name, parts in folders.items()}
    if one_is_class and shared and not any(folders.values()) and split_of(shared[-1]) is None:
        labels = dict.fromkeys(names, shared[-1])
    return {name: Description(label=labels[name], split=splits[name]) for name in names}, beside


def _shared(folders: Sequence[Folders]) -> Folders:
    """The folders that all files share, from the outermost."""
    first, last = min(folders), max(folders)
    common = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[:common]


def _split_at(parts: Folders, level: int) -> Split | None:
    return split_of(parts[level]) if level < len(parts) else None


def _level_of_splits(folders: Sequence[Folders]) -> int | None:
    """How deep the folders named after splits are: the first level with both of them, or with nothing else."""
    for level in range(max(map(len, folders))):
        found = {_split_at(parts, level) for parts in folders}
        if set(Split) <= found or None not in found:
            return level
    return None
