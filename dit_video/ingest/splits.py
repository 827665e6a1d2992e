"""The split of a set: every file, and every group of files, stands on one side, the same whenever it is made again."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from dit_video.data.record import Split
from dit_video.data.video_set import Entry, SplitBy
from dit_video.ingest.label_table import split_of

# Names that a warning shows of many.
_MOST_NAMED = 3


def mark_duplicates(entries: Sequence[Entry]) -> list[Entry]:
    """Deduplication: keeps the first of files with equal bytes.

    A copy on the other side of the split would be a held-out clip that was trained on.
    """
    first: dict[str, str] = {}
    marked = []
    for entry in entries:
        if entry.stored:
            original = first.setdefault(entry.sha256, entry.file)
            if original != entry.file:
                entry = replace(entry, reason=f"a copy of {original}", stored=None, split=None)
        marked.append(entry)
    return marked


def assign_splits(entries: Sequence[Entry], held_out_fraction: float) -> list[Entry]:
    """Assigns the stored entries to splits.

    Where an entry has a split by labels or folders, it keeps it, and all of its group take it. The others follow the
    name of their source, where some are named after one side (train) and some after the other (test); else the number
    in [0, 1) that the sha256 of their group's name is, or of their own bytes where they have no group.

    Raises:
        ValueError: labels or folders put one group on both sides.
    """
    sides = _sides_of_sources(entries)
    entries = [_by_source(entry, sides) for entry in entries]
    units: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.stored:
            units.setdefault(_unit(entry), []).append(entry)
    named = {unit: _named_side(members) for unit, members in units.items()}
    free = [unit for unit, side in named.items() if side is None]
    position = {unit: _position(units[unit][0]) for unit in free}
    held_out = {unit for unit in free if position[unit] < held_out_fraction}
    # A handful may all fall on one side; a set that cannot be evaluated, or trained on, helps nobody.
    if len(free) == len(units) and held_out_fraction > 0:
        ranked = sorted(free, key=lambda unit: position[unit])
        if not held_out and len(free) > 1:
            held_out = {ranked[0]}
        elif len(held_out) == len(free):
            held_out -= set(ranked[-1:])
    own = {unit: Split.HELD_OUT if unit in held_out else Split.TRAIN for unit in free}
    side = {unit: own.get(unit, named[unit]) for unit in units}
    return [replace(entry, split=side[_unit(entry)] if entry.stored else None) for entry in entries]


def _unit(entry: Entry) -> str:
    """What is not divided: a group, or a file."""
    return f"group {entry.group}" if entry.group is not None else f"file {entry.file}"


def _position(entry: Entry) -> float:
    digest = entry.sha256 if entry.group is None else hashlib.sha256(entry.group.encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def _named_side(members: Sequence[Entry]) -> Split | None:
    first = {entry.split: entry for entry in reversed(members) if entry.split is not None}
    if len(first) > 1:
        train, held_out = (first[split].file for split in (Split.TRAIN, Split.HELD_OUT))
        raise ValueError(
            f"--group: {members[0].group!r} is on both sides of the split: {train} is {Split.TRAIN}, {held_out} is "
            f"{Split.HELD_OUT}, by its table or folders; move one of them, leave it out, or give no --group"
        )
    return next(iter(first), None)


def _sides_of_sources(entries: Sequence[Entry]) -> dict[str, Split | None]:
    """Split by source that the names of sources say: folders or tars of both sides; else none."""
    sides = {entry.source: split_of(entry.source.split(".")[0]) for entry in entries}
    return sides if set(Split) <= set(sides.values()) else {}


def _by_source(entry: Entry, sides: Mapping[str, Split | None]) -> Entry:
    if entry.split_by in (SplitBy.LABELS, SplitBy.FOLDERS):
        return entry
    if not sides:
        return replace(entry, split=None, split_by=SplitBy.DIGEST)
    return replace(entry, split=sides[entry.source] or Split.TRAIN, split_by=SplitBy.SOURCES)


def split_warnings(entries: Sequence[Entry]) -> list[str]:
    """Warnings of clips that are trained on though a name says that they are of a test set, and of an empty side."""
    trained = [entry for entry in entries if entry.split is Split.TRAIN and entry.split_by is not SplitBy.LABELS]
    named: dict[str, int] = {}
    for entry in trained:
        parts = [entry.source, *PurePosixPath(entry.file).parts[:-1]]
        word = next((part for part in parts if split_of(part.split(".")[0]) is Split.HELD_OUT), None)
        if word is not None:
            named[word] = named.get(word, 0) + 1
    warnings = [
        f"{count} {'clip' if count == 1 else 'clips'} of {word} are trained on; were these a test set, put the others "
        "into a folder train beside it, or name the split of each in a table (--labels, --split)"
        for word, count in named.items()
    ]
    sides = _sides_of_sources(entries)
    beside = [source for source, side in sides.items() if side is None]
    if beside:
        warnings.append(f"{_few(beside)}: beside sources named after splits: their clips are trained on")
    if not any(entry.split is Split.TRAIN for entry in entries):
        warnings.append("all clips are held out, none is trained on")
    return warnings


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")


def group_warnings(entries: Sequence[Entry], group: str | None) -> list[str]:
    """Warnings of videos that `--group` gives no group."""
    videos = [entry for entry in entries if entry.sha256]
    alone = [entry.file for entry in videos if entry.group is None]
    if group is None or not alone:
        return []
    return [
        f"--group {group}: {len(alone)} of {len(videos)} files have no group, such as {alone[0]!r}; each stands alone"
    ]


def group_by(pattern: str) -> Callable[[str], str | None]:
    """A function that takes the group of a file from its path within its source.

    Args:
        pattern: a regular expression, searched for in the path; the group is what its first pair of parentheses
            matches, without these all that it matches; None where it matches nothing.

    Raises:
        ValueError: no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--group {pattern}: no column, and no regular expression ({error})") from None

    def group(name: str) -> str | None:
        match = compiled.search(name)
        return (match[1 if compiled.groups else 0] if match else None) or None

    return group
