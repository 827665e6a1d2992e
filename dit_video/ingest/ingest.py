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

from dit_video.data.record import Split
from dit_video.data.video_set import Entry, Manifest, new_directory, write_video_set
from dit_video.ingest import label_table as labelling
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.source_files import SourceFile, list_files
from dit_video.ingest.transcoding import Transcoding

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
    with new_directory(out) as directory:
        spool = directory / "spool"
        spool.mkdir()
        items = list_files(origins)
        described, rows_without_file = _describe(items, rows, use_label=labels is not None and labels.label is not None)
        if labels is not None:
            reason = f"no row in {labels.name}"
            items = [f if f.reason or f.key in described else replace(f, reason=reason) for f in items]
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
        class_names=labelling.class_names({entry.label for entry in stored if entry.label is not None}),
        entries=tuple(entries),
        rows_without_file=tuple(rows_without_file),
    )


def _describe(
    items: list[SourceFile], rows: dict[str, Description] | None, *, use_label: bool
) -> tuple[dict[str, Description], list[str]]:
    """Label, caption and split of each file by its key, and the rows of the table that name no file."""
    of_folder: dict[str, Description] = {}
    for source in dict.fromkeys(item.source for item in items):
        # Only files with a chance to be videos say what the folders mean.
        keys = {item.name: item.key for item in items if item.source == source and not item.reason}
        of_folder |= {keys[name]: what for name, what in labelling.from_folders(list(keys)).items()}
    if rows is None:
        return of_folder, []
    of_row, rows_without_file = labelling.match([item.key for item in items if not item.reason], rows)
    if not use_label:
        of_row = {key: replace(what, label=of_folder[key].label) for key, what in of_row.items()}
    return of_row, rows_without_file


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
    kinds = Counter(PurePosixPath(entry.file).suffix or "no extension" for entry in entries)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    return f"{where}: no usable video among {len(entries)} files ({counted}): {why}"
