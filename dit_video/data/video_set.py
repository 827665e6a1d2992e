"""A video set on disk: ArrayRecord shards of mp4 bytes, written by a TFDS builder,
beside a manifest that accounts for every file.

    DIR/manifest.json                              what was read, how, and what became of each file
    DIR/dataset_info.json, features.json           so that `tfds.builder_from_directory(DIR)` opens it too
    DIR/video_set-{train,held_out}.array_record-*  the records
    DIR/unfinished/                                an ingest in progress (ingest/unfinished.py); else there is none

Both writers of such sets (ingest.py, builders.py) and their one reader (sources.VideoSet) meet here.
"""

import enum
import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

from dit_video.config.json_file import check_kinds, read_object
from dit_video.data import shard_files
from dit_video.data.record import NO_LABEL, Split
from dit_video.data.tracks import Tracks, TrackSpace, from_json
from dit_video.video.files import MAX_FPS, MAX_FRAMES
from dit_video.video.pictures import MAX_FRAME_PIXELS

MANIFEST = "manifest.json"
# Names of the files with the records.
RECORDS = "video_set-*.array_record-*"
# Where an ingest works, within the folder of its set (ingest/unfinished.py).
UNFINISHED = "unfinished"
JOURNAL = "journal.jsonl"
_FORMAT = "dit_video.video_set"
_VERSION = 1


class SplitBy(enum.StrEnum):
    """What decided the split of a file: a table or sidecar, folders, the name of its source, or a digest."""

    LABELS = "labels"
    FOLDERS = "folders"
    SOURCES = "sources"
    DIGEST = "digest"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Row of the manifest: one source file, stored or skipped.

    Attributes:
        file: its name within its source; also the key of its record.
        source: the folder or archive it came from.
        sha256: digest of the source file's bytes; empty where it was not opened.
        reason: why it is not in the set; empty when it is.
        split: where it is; None when it is not.
        index: position of its record within the split; -1 when it is not in the set.
        frames, fps, width, height: of the record as stored.
        label: name of its class; None when it has none.
        stored: "copied" (the file's own bytes) or "encoded" (H.264 mp4 made from them).
        num_bytes: size of the record's mp4.
        left_out: frames of the file that are not in the record: damaged, of another size, beyond a hole in time.
        doubled: frames of the record that repeat one, where the file's rate varied.
        notes: what was done to pictures and times of the file.
        group: name of what the file was cut from; clips of one group stay on one side of the split.
        split_by: what decided the split.
        tracks_sha256: digest of what accompanies its frames, actions and poses; empty where nothing does.
    """

    file: str
    source: str
    sha256: str = ""
    reason: str = ""
    split: Split | None = None
    index: int = -1
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    label: str | None = None
    caption: str = ""
    stored: str | None = None
    num_bytes: int = 0
    left_out: int = 0
    doubled: int = 0
    notes: str = ""
    group: str | None = None
    split_by: SplitBy = SplitBy.DIGEST
    tracks_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Manifest of a video set.

    Attributes:
        settings: how the set was made; equal settings and sources give an equal set.
        class_names: label i of a record means class_names[i].
        entries: one per source file, stored or skipped.
        rows_without_file: keys of the labels file that matched nothing.
        files: size and sha256 of each shard; none of sets from before.
        tracks: what accompanies each frame of every stored video; None where nothing does.
    """

    settings: dict[str, Any]
    class_names: tuple[str, ...]
    entries: tuple[Entry, ...]
    rows_without_file: tuple[str, ...] = ()
    files: shard_files.Files = field(default_factory=dict)
    tracks: TrackSpace | None = None

    def stored(self, split: Split) -> list[Entry]:
        """Stored entries of a split, in the order of their records."""
        return sorted((entry for entry in self.entries if entry.split == split), key=lambda entry: entry.index)

    def skipped(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.split is None]

    def split_digest(self, split: Split) -> str:
        """sha256 over the sorted digests of the split's files, and of what accompanies their frames: what a model
        trained or was judged on.
        """
        of_split = (entry for entry in self.entries if entry.split == split)
        lines = sorted(f"{entry.sha256} {entry.tracks_sha256}".rstrip() for entry in of_split)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_video_set(
    directory: Path,
    manifest: Manifest,
    load: Callable[[Entry], bytes],
    *,
    shard_size: int,
    on_record: Callable[[int, int], None],
    load_tracks: Callable[[Entry], Tracks] | None = None,
) -> Manifest:
    """Writes the stored entries of a manifest (their `index` is not yet known)
    and the manifest itself into a new folder.

    Args:
        load: the mp4 bytes of an entry; called once per stored entry, in order.
        shard_size: bytes after which TFDS begins another shard.
        on_record: called as (records done, records in all).
        load_tracks: what accompanies the frames of an entry, where the manifest has tracks.

    Returns:
        The manifest as written, with the position of every record.
    """
    labels = {name: index for index, name in enumerate(manifest.class_names)}
    chosen = {split: [e for e in manifest.entries if e.split == split] for split in Split}
    total, done = sum(map(len, chosen.values())), 0

    def tracks_of(entry: Entry) -> dict[str, bytes]:
        if manifest.tracks is None or load_tracks is None:
            return {}
        return manifest.tracks.to_bytes(load_tracks(entry))

    def records(entries: list[Entry]) -> Iterator[dict[str, Any]]:
        nonlocal done
        for entry in entries:
            yield {
                "key": entry.file,
                "video": load(entry),
                "label": NO_LABEL if entry.label is None else labels[entry.label],
                "caption": entry.caption,
                "fps": entry.fps,
                "num_frames": entry.frames,
                **tracks_of(entry),
            }
            done += 1
            on_record(done, total)

    # Here, so that a manifest is read without TFDS.
    from dit_video.data.tfds_sets import write_records

    make = {split: lambda e=entries: records(e) for split, entries in chosen.items() if entries}
    beside = [] if manifest.tracks is None else manifest.tracks.fields
    index = write_records(directory, make, manifest.class_names, shard_size=shard_size, beside=beside)
    manifest = replace(
        manifest,
        entries=tuple(e if e.split is None else replace(e, index=index[(e.split, e.file)]) for e in manifest.entries),
        files=shard_files.described(directory, (path.name for path in directory.glob("*.array_record*"))),
    )
    (directory / MANIFEST).write_text(_to_json(manifest), encoding="utf-8")
    return manifest


def set_digest(directory: Path) -> str:
    """sha256 of the manifest without its shards: the same of a set from before those were in it, and of one made again.

    Shards hold what was made of the files in the manifest, and another version of a library writes them otherwise.
    """
    data = (directory / MANIFEST).read_bytes()
    content = json.loads(data)
    if "files" in content:
        del content["files"]
        data = json.dumps(content, indent=1).encode()
    return hashlib.sha256(data).hexdigest()


def _to_json(manifest: Manifest) -> str:
    counts = {split.value: len(manifest.stored(split)) for split in Split} | {"skipped": len(manifest.skipped())}
    content: dict[str, Any] = asdict(manifest)
    if manifest.tracks is not None:
        content["tracks"] = manifest.tracks.to_json()
    else:
        # As before there were any, so that a set without that is made again has the digest of before.
        del content["tracks"]
        for entry in content["entries"]:
            del entry["tracks_sha256"]
    return json.dumps({"format": _FORMAT, "version": _VERSION, "counts": counts} | content, indent=1)


def read_manifest(directory: str | os.PathLike, *, remedy: str) -> Manifest:
    """The manifest of a video set.

    Raises:
        FileNotFoundError: no such folder, or one without a manifest; ends with `remedy`.
        ValueError: a manifest of another program or version, or one that no program of ours wrote.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        what = "holds no manifest.json, so it is not a video set" if path.parent.exists() else "does not exist"
        if (path.parent / UNFINISHED).is_dir():
            what = "holds a set that an ingest has begun and not finished: give the same command again"
        raise FileNotFoundError(f"{directory} {what}; {remedy}")
    content = read_object(path)
    version = (content.get("format"), content.get("version"))
    if version != (_FORMAT, _VERSION):
        raise ValueError(
            f"{path}: format {version[0]!r} version {version[1]!r}, but this program reads {_FORMAT!r} version "
            f"{_VERSION}; {remedy}"
        )
    try:
        return _from_content(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; make the set again: {remedy}") from error


def _from_content(content: dict[str, Any]) -> Manifest:
    """The manifest that `_to_json` wrote; whatever decides where and how records are read is checked."""
    check_kinds(content, {"settings": dict, "class_names": list, "entries": list, "rows_without_file": list})
    for name in ("class_names", "rows_without_file"):
        if not all(isinstance(item, str) for item in content[name]):
            raise ValueError(f"{name}={reprlib.repr(content[name])}: must be strings")
    manifest = Manifest(
        settings=content["settings"],
        class_names=tuple(content["class_names"]),
        entries=tuple(_entry(f"entries[{number}]", row) for number, row in enumerate(content["entries"])),
        rows_without_file=tuple(content["rows_without_file"]),
        files=content.get("files", {}),
        tracks=from_json(content["tracks"]) if "tracks" in content else None,
    )
    shard_files.check_described(manifest.files)
    labels = {None, *manifest.class_names}
    for split in Split:
        stored = manifest.stored(split)
        for position, entry in enumerate(stored):
            _check_stored(f"entry {entry.file!r}", entry, labels)
            if entry.index != position:
                raise ValueError(f"entry {entry.file!r}: index={entry.index}: {split} has one record for each position")
        if len({entry.file for entry in stored}) < len(stored):
            raise ValueError(f"two entries of {split} have one file name")
    return manifest


_KINDS = {name: float | int if kind is float else kind for name, kind in get_type_hints(Entry).items()}
# Fields that manifests of before have not.
_LATER = {
    "left_out": 0,
    "doubled": 0,
    "notes": "",
    "group": None,
    "split_by": SplitBy.LABELS.value,
    "tracks_sha256": "",
}


def _entry(where: str, row: Any) -> Entry:
    if isinstance(row, dict):
        row = _LATER | row
    if not isinstance(row, dict) or row.keys() != _KINDS.keys():
        raise ValueError(f"{where}={reprlib.repr(row)}: must have the fields {', '.join(_KINDS)}")
    split = row["split"]
    if split is not None and split not in tuple(Split):
        raise ValueError(f"{where}.split={reprlib.repr(split)}: must be one of {', '.join(Split)}")
    if row["split_by"] not in tuple(SplitBy):
        raise ValueError(f"{where}.split_by={reprlib.repr(row['split_by'])}: must be one of {', '.join(SplitBy)}")
    split_by = SplitBy(row["split_by"])
    values: dict[str, Any] = {**row, "split": None if split is None else Split(split), "split_by": split_by}
    for name, kind in _KINDS.items():
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{where}.{name}={reprlib.repr(value)}: is {type(value).__name__}, not {kind}")
    return Entry(**values)


def _check_stored(where: str, entry: Entry, labels: set[str | None]) -> None:
    path = PurePosixPath(entry.file)
    if not entry.file or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: its name leads out of its source")
    if entry.label not in labels:
        raise ValueError(f"{where}: label={reprlib.repr(entry.label)} is none of the class names")
    limits = {"frames": MAX_FRAMES, "width": MAX_FRAME_PIXELS, "height": MAX_FRAME_PIXELS, "fps": MAX_FPS}
    for name, limit in limits.items():
        if not 0 < getattr(entry, name) <= limit:
            raise ValueError(f"{where}: {name}={getattr(entry, name)!r}: must be above 0 and at most {limit}")


def file_digest(path: str | os.PathLike) -> str:
    """sha256 of a file, or of the names and files of a folder of pictures."""
    if os.path.isdir(path):
        named = [(name, file_digest(os.path.join(path, name))) for name in sorted(os.listdir(path))]
        return hashlib.sha256(json.dumps(named).encode(errors="surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
