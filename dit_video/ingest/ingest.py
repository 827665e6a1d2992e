"""Ingestion of a folder or tar of videos, in any container and codec, into a video set (video_set.py).

Three passes, each holding one file at a time per worker: list what is there; decode every file whole, which
proves that it can be decoded and counts its frames, and bring it to H.264 mp4; write the records. A file that
cannot be used is named in the manifest with its reason, never fatal, never silent. What was decoded is kept in the
output folder until the set is whole (unfinished.py).
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dit_video.data.tracks import Tracks
from dit_video.data.video_set import Entry, Manifest, SplitBy, read_manifest, write_video_set
from dit_video.ingest import label_table
from dit_video.ingest.action_files import ActionFiles, with_actions
from dit_video.ingest.array_files import SUFFIX, unpack
from dit_video.ingest.descriptions import Described, descriptions
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.source_files import SourceFile, list_files
from dit_video.ingest.splits import assign_splits, group_warnings, mark_duplicates, split_warnings
from dit_video.ingest.transcoding import Transcoding
from dit_video.ingest.unfinished import Unfinished, finish, unfinished

# Files that a message names of each reason why they are none.
_NAMED = 3

# Called as (stage, done, of all, key of the file that is waited for), with an empty key where none is.
Progress = Callable[[str, int, int, str], None]

# Bytes after which another shard is begun.
SHARD_SIZE = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Decoded files of the sources.

    Attributes:
        entries: without digest-made splits, duplicates among them.
        paths: the mp4 of stored ones by key; those that are in a set that is extended have none.
    """

    entries: list[Entry]
    paths: dict[str, Path]


def ingest(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    labels: LabelTable | None = None,
    actions: ActionFiles | None = None,
    group: str | None = None,
    held_out_fraction: float = 0.1,
    transcoding: Transcoding = Transcoding(),
    shard_size: int = SHARD_SIZE,
    progress: Progress = lambda stage, done, total, file: None,
) -> Manifest:
    """Makes a video set out of folders and tars of videos; goes on where it was killed.

    Args:
        sources: folders (read recursively; sub-folders are classes), tars, and arrays of videos (array_files.py).
        out: new folder for the set; it has a manifest only when complete.
        labels: label, caption and split of each file; files without a row in it are skipped. None: sub-folders are
            classes, or splits.
        actions: where the actions of each video are; videos without are skipped. None: the set has none.
        group: what clips that were cut from one source have in common, which stay on one side of the split: a column of
            the table, a field of clip.json, or a regular expression on paths.
        held_out_fraction: share of files, or groups, held out, decided by each file's sha256, so that a growing
            collection keeps its split. A split column, or folders named after splits, win over it.
        transcoding: how large the stored videos may be, and how many files are decoded at once.
        shard_size: bytes after which another shard is begun.
        progress: called as (stage, files done, files in all, file), where the stage is "reading" or "writing", and all
            before the file are read; again where that one takes long.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: a source is missing, `out` exists, the labels or groups do not
            fit, or nothing usable was found.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={held_out_fraction}: must be at least 0 and below 1")
    origins = [Path(source) for source in sources]
    choices = {
        "labels": None if labels is None else labels.name,
        "columns": None if labels is None else labels.columns,
        "group": group,
        "held_out_fraction": held_out_fraction,
        **transcoding.settings,
        **({} if actions is None else {"actions": actions.settings}),
    }
    command = command_of("ingest", origins, labels, choices)
    if finish(Path(out)) == command:
        return read_manifest(out, remedy="make it again")
    with unfinished(Path(out), transcoding.settings) as done:
        opened = [unpack(o, done.work) if o.suffix == SUFFIX and o.is_file() else o for o in origins]
        described = descriptions(list_files(opened, Path(out), images=transcoding.images), labels, group)
        decoded = decode_all(described, transcoding, done, progress)
        acted = None if actions is None else with_actions(decoded.entries, described.items, actions)
        manifest = manifest_of(
            decoded.entries if acted is None else acted.entries,
            choices,
            sources=[origin.name for origin in origins],
            rows_without_file=described.rows_without_file,
            warnings=described.warnings,
            where=origins,
        )

        def load(entry: Entry) -> bytes:
            return decoded.paths[entry.file].read_bytes()

        if acted is None:
            return write(done, command, manifest, load, shard_size, progress)
        manifest, of = replace(manifest, tracks=acted.space), acted.of
        return write(done, command, manifest, load, shard_size, progress, lambda entry: of[entry.file])


def command_of(
    name: str, sources: Sequence[Path], labels: LabelTable | None, choices: Mapping[str, Any]
) -> dict[str, Any]:
    """What tells one ingest from another, as JSON."""
    table = None if labels is None else os.path.abspath(labels.path)
    command = {"name": name, "sources": [os.path.abspath(source) for source in sources], "table": table, **choices}
    return json.loads(json.dumps(command))


def decode_all(described: Described, transcoding: Transcoding, done: Unfinished, progress: Progress) -> Decoded:
    """Decodes all files."""
    entries, paths = [], {}

    def waits_for(item: SourceFile) -> None:
        progress("reading", len(entries), len(described.items), item.key)

    for item, entry, path in transcoding.apply(described.items, done, waits_for):
        what = described.of.get(item.key, Description())
        entries.append(with_description(entry, what, by_labels=item.key in described.by_labels))
        if path is not None:
            paths[item.key] = path
    progress("reading", len(entries), len(described.items), "")
    return Decoded(entries=entries, paths=paths)


def with_description(entry: Entry, what: Description, *, by_labels: bool) -> Entry:
    """An entry with what is said of its file."""
    said_by = SplitBy.LABELS if by_labels else SplitBy.FOLDERS
    return replace(
        entry,
        label=what.label,
        caption=what.caption,
        split=what.split,
        group=what.group,
        split_by=SplitBy.DIGEST if what.split is None else said_by,
    )


def manifest_of(
    entries: Sequence[Entry],
    choices: Mapping[str, Any],
    *,
    sources: Sequence[str],
    rows_without_file: Sequence[str],
    warnings: Mapping[str, Sequence[str]],
    where: Sequence[Path],
) -> Manifest:
    """Manifest of the video set to be written: duplicates marked, splits assigned.

    Args:
        choices: settings that were asked for.
        where: sources, for messages.

    Raises:
        ValueError: nothing will be, or one group is on both sides of the split.
    """
    entries = assign_splits(mark_duplicates(entries), choices["held_out_fraction"])
    stored = [entry for entry in entries if entry.split]
    if not stored:
        raise ValueError(nothing_usable(where, entries))
    near_equal = label_table.near_equal({entry.label for entry in entries if entry.label is not None})
    of_set = {
        "classes": near_equal,
        "splits": split_warnings(entries),
        "groups": group_warnings(entries, choices["group"]),
    }
    return Manifest(
        settings={
            "made_by": "ingest",
            "sources": list(sources),
            **choices,
            "warnings": {name: list(lines) for name, lines in {**warnings, **of_set}.items()},
        },
        class_names=label_table.class_names({entry.label for entry in stored if entry.label is not None}),
        entries=tuple(entries),
        rows_without_file=tuple(rows_without_file),
    )


def write(
    done: Unfinished,
    command: Mapping[str, Any],
    manifest: Manifest,
    load: Callable[[Entry], bytes],
    shard_size: int,
    progress: Progress,
    load_tracks: Callable[[Entry], Tracks] | None = None,
) -> Manifest:
    """Writes the set and puts it in its place; returns its manifest with the position of every record."""
    directory = done.work / "set"
    directory.mkdir()
    manifest = write_video_set(
        directory,
        manifest,
        load,
        shard_size=shard_size,
        on_record=lambda count, total: progress("writing", count, total, ""),
        load_tracks=load_tracks,
    )
    done.complete(command, directory)
    return manifest


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
