"""What is said of each video file of the sources: by its folders, by a table, or by what lies beside it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dit_video.ingest import label_table
from dit_video.ingest.class_folders import from_folders
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.sidecars import describe, is_note, separate
from dit_video.ingest.source_files import SourceFile
from dit_video.ingest.splits import group_by

# Rows that name no file, of which a message shows the nearest name.
_MOST_MISSES = 5


@dataclass(frozen=True, kw_only=True)
class Described:
    """Descriptions of files.

    Attributes:
        items: the files, those that are no videos with the reason.
        of: descriptions by key.
        by_labels: keys of those whose split a table or sidecar says.
        rows: keys of the rows of all tables.
        rows_without_file: those that name no file.
        warnings: by what they are of: "folders", "table".
    """

    items: list[SourceFile]
    of: dict[str, Description]
    by_labels: set[str]
    rows: set[str]
    rows_without_file: list[str]
    warnings: dict[str, list[str]] = field(default_factory=dict)


def descriptions(
    items: Sequence[SourceFile],
    labels: LabelTable | None,
    group: str | None = None,
    known: Sequence[str] = (),
) -> Described:
    """Finds out what is said of each file.

    Args:
        labels: goes before all else; files without a row in it are skipped.
        group: what clips of one source have in common: a column of the table, a field of clip.json, or a regular
            expression on paths (`splits.group_by`).
        known: keys of videos that are in the set already, which rows may name too.

    Raises:
        ValueError: the table names none of the files, or `group` fits none of them.
    """
    if group is not None and labels is not None and labels.has(group):
        labels = replace(labels, group=group)
    items, sidecars = separate(items)
    videos = [item for item in items if not item.reason]
    of_tables, rows, without_file, described_sources = {}, set(), [], set()
    if labels is None:
        items, of_tables, rows, without_file, described_sources = _of_metadata(items, group)
    of_folder, of_folders = _of_folders([item for item in items if not item.reason], described_sources)
    warnings = {"folders": of_folders, "table": []}
    by_labels = _over(of_tables, describe(sidecars, group))
    described = _over(of_folder, by_labels)
    if labels is not None:
        of_rows, rows, without_file = _of_table([item.key for item in videos], known, labels)
        below = {key: described.get(key, Description()) for key in of_rows}
        described = {key: _in_columns(below[key], row, labels) for key, row in of_rows.items()}
        by_labels = {key: row if labels.split else by_labels.get(key, row) for key, row in of_rows.items()}
        reason = f"no row in {labels.name}"
        items = [item if item.reason or item.key in described else replace(item, reason=reason) for item in items]
        unmatched = [item.key for item in videos if item.key not in described]
        warnings["table"] = [
            f"{labels.name}: no file is called {key!r}; the nearest is {label_table.nearest(key, unmatched)!r}"
            for key in without_file[:_MOST_MISSES]
            if unmatched
        ]
    if group is not None:
        described = _grouped(items, described, group, labels, known)
    return Described(
        items=items,
        of=described,
        by_labels={key for key, what in by_labels.items() if what.split},
        rows=rows,
        rows_without_file=without_file,
        warnings=warnings,
    )


def _of_table(
    videos: Sequence[str], known: Sequence[str], labels: LabelTable
) -> tuple[dict[str, Description], set[str], list[str]]:
    """Descriptions by key that a table gives, keys of its rows, and of those that name no file."""
    rows = labels.rows()
    described, without_file = label_table.match([*known, *videos], rows)
    if videos and not described.keys() & set(videos):
        key = next(iter(rows))
        raise ValueError(
            f"{labels.name}: its column {labels.key} names none of the {len(videos)} files: it has {key!r}, the "
            f"nearest file is {label_table.nearest(key, videos)!r}; keys are paths within the source, with or without "
            "extension"
        )
    return described, set(rows), without_file


def _in_columns(below: Description, row: Description, labels: LabelTable) -> Description:
    """What a row says where its table has a column for it, else what is known without the table."""
    return Description(
        label=row.label if labels.label else below.label,
        caption=row.caption if labels.caption else below.caption,
        split=row.split if labels.split else below.split,
        group=row.group or below.group,
    )


def _grouped(
    items: Sequence[SourceFile],
    described: dict[str, Description],
    group: str,
    labels: LabelTable | None,
    known: Sequence[str],
) -> dict[str, Description]:
    """Descriptions with the group of each video, by its path where no table or sidecar has a column of that name."""
    videos = [item for item in items if not item.reason]
    if not any(what.group for what in described.values()) and not (labels is not None and labels.group):
        group_of = group_by(group)
        described = dict(described)
        for item in videos:
            what = described.get(item.key, Description())
            described[item.key] = replace(what, group=group_of(item.name))
    alone = [item.key for item in videos if described.get(item.key, Description()).group is None]
    if videos and not known and len(alone) == len(videos):
        raise ValueError(
            f"--group {group}: gives none of the {len(videos)} files a group, such as {alone[0]!r}; it is a column of "
            "the table, a field of clip.json, or a regular expression that is searched for in paths"
        )
    return described


def _of_folders(videos: Sequence[SourceFile], described: Collection[Path]) -> tuple[dict[str, Description], list[str]]:
    """Descriptions by key that the folders of each source give, and warnings.

    Args:
        described: sources with a table of their own, where one folder of all clips is no class.
    """
    of_folder, warnings = {}, []
    for source in dict.fromkeys(item.source for item in videos):
        keys = {item.name: item.key for item in videos if item.source == source}
        # Where notes lie says nothing of the folders of videos.
        names = [name for name in keys if not is_note(name)] or list(keys)
        of_name, beside = from_folders(names, one_is_class=source not in described)
        of_folder |= {keys[name]: what for name, what in of_name.items()}
        if beside:
            warnings.append(
                f"{source.name}: {', '.join(beside)} beside folders named after splits: their clips are trained on"
            )
    return of_folder, warnings


def _of_metadata(
    items: list[SourceFile], group: str | None
) -> tuple[list[SourceFile], dict[str, Description], set[str], list[str], set[Path]]:
    """Descriptions by key of sources that are Hugging Face folders, whose tables are no videos.

    Returns:
        The files, descriptions by key, keys of all rows, of those that name no file, and the sources with a table.
    """
    described, keys, without_file, tables = {}, set(), [], set()
    for source in dict.fromkeys(item.source for item in items):
        if (table := label_table.metadata_table(source, group)) is None:
            continue
        tables.add(source)
        own = [item.key for item in items if item.source == source and not item.reason]
        rows = table.rows()
        of_row, missing = label_table.match(own, rows)
        described |= of_row
        keys |= rows.keys()
        without_file += missing
        items = [
            replace(item, reason="the table of its folder")
            if item.source == source and item.name == table.name
            else item
            for item in items
        ]
    return items, described, keys, without_file, tables


def _over(below: dict[str, Description], above: dict[str, Description]) -> dict[str, Description]:
    """Descriptions where what `above` says goes before what `below` does."""
    merged = dict(below)
    for key, what in above.items():
        base = below.get(key, Description())
        merged[key] = Description(
            label=what.label or base.label,
            caption=what.caption or base.caption,
            split=what.split or base.split,
            group=what.group or base.group,
        )
    return merged
