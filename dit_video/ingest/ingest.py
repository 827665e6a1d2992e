"""Ingestion of a folder or tar of videos, in any container and codec, into a video set (video_set.py).

Three passes, each holding one file at a time per worker: list what is there; decode every file whole, which
proves that it can be decoded and counts its frames, and bring it to H.264 mp4; write the records. A file that
cannot be used is named in the manifest with its reason, never fatal, never silent.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from dit_video.config.atomic import new_folder
from dit_video.data.record import Split
from dit_video.data.video_set import Entry, Manifest, write_video_set
from dit_video.ingest import label_table
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.sidecars import describe, separate
from dit_video.ingest.source_files import SourceFile, list_files
from dit_video.ingest.transcoding import Transcoding

# Rows that name no file, of which a message shows the nearest name.
_MOST_MISSES = 5
# Files that a message names of each reason why they are none.
_NAMED = 3

# Called as (stage, done, of all).
Progress = Callable[[str, int, int], None]


def ingest(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    labels: LabelTable | None = None,
    held_out_fraction: float = 0.1,
    transcoding: Transcoding = Transcoding(),
    shard_size: int = 1 << 30,
    progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Makes a video set out of folders and tars of videos.

    Args:
        sources: folders (read recursively; sub-folders are classes) and tars.
        out: new folder for the set; appears only when complete.
        labels: label, caption and split of each file; files without a row in it are skipped. None: sub-folders are
            classes, or splits.
        held_out_fraction: share of files held out, decided by each file's sha256, so that a growing
            collection keeps its split. A split column, or folders named after splits, win over it.
        transcoding: how large the stored videos may be, and how many files are decoded at once.
        shard_size: bytes after which another shard is begun.
        progress: called as (stage, files done, files in all), where the stage is "reading" or "writing".

    Raises:
        FileNotFoundError, FileExistsError, ValueError: a source is missing, `out` exists, the labels do not
            fit, or nothing usable was found.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={held_out_fraction}: must be at least 0 and below 1")
    rows = None if labels is None else labels.rows()
    origins = [Path(source) for source in sources]
    settings = {
        "made_by": "ingest",
        "sources": [origin.name for origin in origins],
        "labels": None if labels is None else labels.name,
        "columns": None if labels is None else labels.columns,
        "held_out_fraction": held_out_fraction,
        **transcoding.settings,
    }
    with new_folder(out) as directory:
        spool = directory / "spool"
        spool.mkdir()
        items, described, rows_without_file, warnings = _described(list_files(origins), labels, rows)
        settings["warnings"] = warnings
        entries, paths = [], {}
        for item, entry, path in transcoding.apply(items, spool):
            what = described.get(item.key, Description())
            entries.append(replace(entry, label=what.label, caption=what.caption))
            paths[item.key] = path
            progress("reading", len(entries), len(items))
        named = {key: what.split for key, what in described.items() if what.split}
        manifest = _manifest(origins, entries, named, held_out_fraction, settings, rows_without_file)
        manifest = write_video_set(
            directory,
            manifest,
            lambda entry: paths[entry.file].read_bytes(),
            shard_size=shard_size,
            on_record=lambda done, total: progress("writing", done, total),
        )
        shutil.rmtree(spool)
    return manifest


def _manifest(
    sources: list[Path],
    entries: list[Entry],
    named: dict[str, Split],
    held_out_fraction: float,
    settings: dict[str, Any],
    rows_without_file: list[str],
) -> Manifest:
    """Manifest of the video set to be written: duplicates marked, splits assigned.

    Raises:
        ValueError: nothing will be.
    """
    entries = _assign_splits(_mark_duplicates(entries), named, held_out_fraction)
    stored = [entry for entry in entries if entry.split]
    if not stored:
        raise ValueError(nothing_usable(sources, entries))
    return Manifest(
        settings=settings,
        class_names=label_table.class_names({entry.label for entry in stored if entry.label is not None}),
        entries=tuple(entries),
        rows_without_file=tuple(rows_without_file),
    )


def _described(
    items: list[SourceFile], labels: LabelTable | None, rows: dict[str, Description] | None
) -> tuple[list[SourceFile], dict[str, Description], list[str], list[str]]:
    """Finds out what is said of each file: by its folders, by the table, or by what lies beside it.

    Returns:
        The files, those that are no videos with the reason; descriptions by key; keys of rows that name no file;
        warnings.
    """
    items, sidecars = separate(items)
    videos = [item for item in items if not item.reason]
    of_folder, warnings = _of_folders(videos)
    if labels is None or rows is None:
        items, of_tables, without_file = _of_metadata(items)
        described = _over(_over(of_folder, of_tables), describe(sidecars))
    else:
        described, without_file = label_table.match([item.key for item in videos], rows)
        if videos and not described:
            key = next(iter(rows))
            near = label_table.nearest(key, [item.key for item in videos])
            raise ValueError(
                f"{labels.name}: its column {labels.key} names none of the {len(videos)} files: it has {key!r}, the "
                f"nearest file is {near!r}; keys are paths within the source, with or without extension"
            )
        if labels.label is None:
            described = {key: replace(what, label=of_folder[key].label) for key, what in described.items()}
        reason = f"no row in {labels.name}"
        items = [item if item.reason or item.key in described else replace(item, reason=reason) for item in items]
        unmatched = [item.key for item in videos if item.key not in described]
        warnings += [
            f"{labels.name}: no file is called {key!r}; the nearest is {label_table.nearest(key, unmatched)!r}"
            for key in without_file[:_MOST_MISSES]
            if unmatched
        ]
    warnings += label_table.near_equal({what.label for what in described.values() if what.label is not None})
    return items, described, without_file, warnings


def _of_folders(videos: list[SourceFile]) -> tuple[dict[str, Description], list[str]]:
    """Descriptions by key that the folders of each source give, and warnings."""
    of_folder, warnings = {}, []
    for source in dict.fromkeys(item.source for item in videos):
        keys = {item.name: item.key for item in videos if item.source == source}
        described, beside = label_table.from_folders(list(keys))
        of_folder |= {keys[name]: what for name, what in described.items()}
        if beside:
            warnings.append(
                f"{source.name}: {', '.join(beside)} beside folders named after splits: their clips are trained on"
            )
    return of_folder, warnings


def _of_metadata(items: list[SourceFile]) -> tuple[list[SourceFile], dict[str, Description], list[str]]:
    """Descriptions by key of sources that are Hugging Face folders; their tables are no videos."""
    described, without_file = {}, []
    for source in dict.fromkeys(item.source for item in items):
        if (table := label_table.metadata_table(source)) is None:
            continue
        own = [item.key for item in items if item.source == source and not item.reason]
        of_row, missing = label_table.match(own, table.rows())
        described |= of_row
        without_file += missing
        items = [
            replace(item, reason="the table of its folder")
            if item.source == source and item.name == table.name
            else item
            for item in items
        ]
    return items, described, without_file


def _over(below: dict[str, Description], above: dict[str, Description]) -> dict[str, Description]:
    """Descriptions where what `above` says goes before what `below` does."""
    merged = dict(below)
    for key, what in above.items():
        base = below.get(key, Description())
        merged[key] = Description(
            label=what.label or base.label, caption=what.caption or base.caption, split=what.split or base.split
        )
    return merged


def _mark_duplicates(entries: list[Entry]) -> list[Entry]:
    """Deduplication: keeps the first of files with equal bytes.

    A copy on the other side of the split would be a held-out clip that was trained on.
    """
    first: dict[str, str] = {}
    marked = []
    for entry in entries:
        if entry.stored:
            original = first.setdefault(entry.sha256, entry.file)
            if original != entry.file:
                entry = replace(entry, reason=f"a copy of {original}", stored=None)
        marked.append(entry)
    return marked


def _assign_splits(entries: list[Entry], named: dict[str, Split], held_out_fraction: float) -> list[Entry]:
    """Assigns splits: as a table or folder names, else by the file's digest as a number in [0, 1)."""

    def position(entry: Entry) -> float:
        return int(entry.sha256[:13], 16) / 16**13

    free = [entry for entry in entries if entry.stored and entry.file not in named]
    held_out = {entry.file for entry in free if position(entry) < held_out_fraction}
    # A handful of files may all fall on one side;
    # a set that cannot be evaluated, or trained on, helps nobody.
    if not named and held_out_fraction > 0 and len(free) > 1:
        ranked = sorted(free, key=position)
        if not held_out:
            held_out = {ranked[0].file}
        elif len(held_out) == len(free):
            held_out.remove(ranked[-1].file)
    own = {entry.file: Split.HELD_OUT if entry.file in held_out else Split.TRAIN for entry in free}
    chosen = own | named
    return [replace(entry, split=chosen[entry.file]) if entry.stored else entry for entry in entries]


def nothing_usable(sources: Sequence[Path], entries: Sequence[Entry]) -> str:
    """Error message for sources without usable videos: which files there are and why they were skipped."""
    where = ", ".join(map(str, sources))
    if not entries:
        return f"{where}: empty; give a folder or tar of videos"
    reasons = Counter(entry.reason for entry in entries)
    kinds = Counter(PurePosixPath(entry.file).suffix.lower() or "no extension" for entry in entries)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    files = {reason: [entry.file for entry in entries if entry.reason == reason] for reason in reasons}
    first = {reason: ", ".join(names[:_NAMED] + ["..."] * (len(names) > _NAMED)) for reason, names in files.items()}
    why = "; ".join(f"{count} x {reason} ({first[reason]})" for reason, count in reasons.most_common(5))
    return f"{where}: no usable video among {len(entries)} files ({counted}): {why}"
