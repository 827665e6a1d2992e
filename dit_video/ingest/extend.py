"""Extension of a video set by more sources, as if it had been made of all of them at once.

What the set holds is not decoded again: its records are taken over. A source that is there already may be given again,
grown: what it had is known by its content.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.data.video_set import MANIFEST, Entry, Manifest, SplitBy, read_manifest
from dit_video.ingest.descriptions import Described, descriptions
from dit_video.ingest.ingest import SHARD_SIZE, Progress, command_of, decode_all, manifest_of, write
from dit_video.ingest.label_table import LabelTable
from dit_video.ingest.source_files import SourceFile, keys_of, list_files, plain_name
from dit_video.ingest.transcoding import Transcoding
from dit_video.ingest.unfinished import finish, unfinished

# Fields of an entry that decoding gives.
_FACTS = ("stored", "num_bytes", "frames", "fps", "width", "height", "left_out", "doubled", "notes")
# Settings that decide what a set is; one that is extended keeps them.
_CHOICES = ("labels", "columns", "group", "held_out_fraction")
_COPY, _SIDECAR = "a copy of ", "a sidecar of "

# Source and name within it.
_Place = tuple[str, str]


def extend(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    labels: LabelTable | None = None,
    asked: Mapping[str, Any] | None = None,
    num_workers: int | None = None,
    shard_size: int = SHARD_SIZE,
    progress: Progress = lambda stage, done, total, file: None,
) -> Manifest:
    """Adds folders and tars of videos to a video set; goes on where it was killed.

    Splits, classes and everything else are as if the set had been made of all its sources at once, so a label may get
    another number, and where a handful of videos had been split, one of them another side.

    Args:
        sources: as of `ingest`.
        out: the set.
        labels: a table of the columns that the set was made with; of a set that was made with one. It may describe what
            is there already, too.
        asked: settings that were asked for, by name: group, held_out_fraction, max_size, images; they must be those of
            the set.

    Raises:
        FileNotFoundError, ValueError: no such set or source, the set was made in another way, a file of it has changed,
            or as `ingest`.
    """
    made_by, path = finish(Path(out)), Path(out) / MANIFEST
    before = path.stat() if path.exists() else None
    old = read_manifest(out, remedy="--add extends a set; make one without it")
    choices = _choices(old, out, labels, asked or {})
    transcoding = Transcoding(
        max_size=choices["max_size"], images=choices.get("images", False), num_workers=num_workers
    )
    origins = [Path(source) for source in sources]
    command = command_of("extend", origins, labels, choices)
    facts = {e.sha256: {name: getattr(e, name) for name in _FACTS} for e in old.entries if e.stored}
    if made_by == command:
        return old
    with unfinished(Path(out), transcoding.settings, known=facts) as done:
        if before is None or not os.path.samestat(before, path.stat()):
            raise ValueError(f"--add: {out} was extended by another process in this moment; give the command again")
        items, kept = _merged(old, list_files(origins, Path(out), images=transcoding.images))
        videos = [entry.file for entry in kept if entry.sha256]
        described = descriptions(items, labels, choices["group"], videos)
        decoded = decode_all(described, transcoding, done, progress)
        _check_unchanged(old, items, decoded.entries)
        kept = [_described_again(entry, described, labels) for entry in kept]
        names = [origin.name for origin in origins]
        manifest = manifest_of(
            _in_order(old, kept, decoded.entries, items),
            choices,
            sources=[*old.settings["sources"], *(name for name in names if not _is_again(old, name, items))],
            rows_without_file=[key for key in old.rows_without_file if key not in described.rows]
            + described.rows_without_file,
            warnings=_warnings(old, described, names, labels),
            where=origins,
        )
        if _is_same(manifest, old):
            return old
        read = _reader(out, old)

        def load(entry: Entry) -> bytes:
            path = decoded.paths.get(entry.file)
            return path.read_bytes() if path is not None else read(entry.sha256)

        return write(done, command, manifest, load, shard_size, progress)


def _choices(
    old: Manifest, out: str | os.PathLike, labels: LabelTable | None, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a set, which what is added follows."""
    if old.settings.get("made_by") != "ingest":
        raise ValueError(
            f"--add: {out} was made by {old.settings.get('made_by')!r}, and only `data ingest` extends sets"
        )
    if old.tracks is not None:
        raise ValueError(f"--add: the videos of {out} have actions; make a new set of all sources")
    transcoding = Transcoding(max_size=old.settings.get("max_size"), images=old.settings.get("images", False))
    choices = {name: old.settings.get(name) for name in (*_CHOICES, *transcoding.settings)}
    now = {**transcoding.settings, **{name: value for name, value in asked.items() if value is not None}}
    if labels is not None and choices["labels"] is not None:
        now["columns"] = labels.columns
        choices["labels"] = " + ".join(dict.fromkeys([*choices["labels"].split(" + "), labels.name]))
    for name, value in now.items():
        if value != choices.get(name):
            raise ValueError(
                f"--add: {name}={value}, but {out} was made with {name}={choices.get(name)}; give that or nothing, or "
                "make a new set of all sources"
            )
    if (labels is None) != (old.settings["labels"] is None):
        how = f"{labels.name}: {out} was made without a table" if labels else f"{out} was made with a table"
        remedy = "describe what is added in the same way, or make a new set of all sources"
        raise ValueError(f"--add: {how} (labels={old.settings['labels']}); {remedy}")
    return choices


def _merged(old: Manifest, items: Sequence[SourceFile]) -> tuple[list[SourceFile], list[Entry]]:
    """The files to be added and the entries of those that are not given again, with keys that are unique over both."""
    added, places = [_place(item) for item in items], _places(old)
    again = set(added)
    stays = [place for place in places if place not in again]
    key_of = dict(zip([*stays, *added], keys_of([*stays, *added])))
    renamed = {entry.file: key_of[place] for entry, place in zip(old.entries, places)}
    stored = {entry.sha256: entry.stored for entry in old.entries if entry.stored}
    kept = [_renamed(entry, renamed, stored) for entry, place in zip(old.entries, places) if place not in again]
    return [replace(item, key=key_of[place]) for item, place in zip(items, added)], kept


def _place(item: SourceFile) -> _Place:
    return item.source.name, plain_name(item.name)


def _places(manifest: Manifest) -> list[_Place]:
    """Where each file of a manifest was: its source, and its name there."""
    places = [(entry.source, entry.file.removeprefix(f"{entry.source}/")) for entry in manifest.entries]
    # Keys have the name of the source where two sources have one name.
    with_source = all(entry.file.startswith(f"{entry.source}/") for entry in manifest.entries)
    if with_source and len({name for _, name in places}) < len(places):
        return places
    return [(entry.source, entry.file) for entry in manifest.entries]


def _renamed(entry: Entry, renamed: Mapping[str, str], stored: Mapping[str, str]) -> Entry:
    """An entry under its new key, as it was before duplicates were marked; `stored`: how, by sha256."""
    entry = replace(entry, file=renamed[entry.file], index=-1)
    if entry.reason.startswith(_SIDECAR):
        of = entry.reason.removeprefix(_SIDECAR)
        return replace(entry, reason=_SIDECAR + renamed.get(of, of))
    if entry.reason.startswith(_COPY):
        return replace(entry, reason="", stored=stored[entry.sha256])
    return entry


def _described_again(entry: Entry, described: Described, labels: LabelTable | None) -> Entry:
    """An entry of the set as a table describes it now, and without a split that was its digest's choice."""
    row = described.of.get(entry.file)
    if labels is not None and row is not None:
        entry = replace(
            entry,
            label=row.label if labels.label else entry.label,
            caption=row.caption if labels.caption else entry.caption,
            group=row.group or entry.group,
            split=row.split if labels.split else entry.split,
            split_by=SplitBy.LABELS if labels.split else entry.split_by,
        )
    return replace(entry, split=None) if entry.split_by in (SplitBy.DIGEST, SplitBy.SOURCES) else entry


def _check_unchanged(old: Manifest, items: Sequence[SourceFile], entries: Sequence[Entry]) -> None:
    before = {place: entry.sha256 for entry, place in zip(old.entries, _places(old)) if entry.frames}
    for item, entry in zip(items, entries):
        if before.get(_place(item), entry.sha256) != entry.sha256:
            raise ValueError(
                f"--add: {item.name} of {entry.source} is another file than the one that is in the set; give it "
                "another name, or make a new set of all sources"
            )


def _in_order(old: Manifest, kept: Sequence[Entry], new: Sequence[Entry], items: Sequence[SourceFile]) -> list[Entry]:
    """Entries in the order of one ingest of all sources: a source that is given again stays in its place."""
    of_source: dict[str, list[Entry]] = {}
    for entry in kept:
        of_source.setdefault(entry.source, []).append(entry)
    added: dict[Path, list[Entry]] = {}
    for item, entry in zip(items, new):
        added.setdefault(item.source, []).append(entry)
    again = {source.name: source for source in added if _is_again(old, source.name, items)}
    ordered: list[Entry] = []
    for name in dict.fromkeys(entry.source for entry in old.entries):
        ordered += of_source.get(name, [])
        if name in again:
            ordered += added.pop(again[name])
    return ordered + [entry for entries in added.values() for entry in entries]


def _is_again(old: Manifest, source: str, items: Sequence[SourceFile]) -> bool:
    """Whether a source is one of the set: of its name, and with a file that it had."""
    names = {plain_name(item.name) for item in items if item.source.name == source}
    return any(name in names for of, name in _places(old) if of == source)


def _warnings(
    old: Manifest, described: Described, sources: Sequence[str], labels: LabelTable | None
) -> dict[str, list[str]]:
    """Warnings of folders and tables, of before as far as they still hold."""
    before = old.settings.get("warnings", {})
    before = before if isinstance(before, dict) else {}
    holds = {
        "folders": lambda line: not any(line.startswith(f"{name}: ") for name in sources),
        "table": lambda line: labels is None or not line.startswith(f"{labels.name}: "),
    }
    return {name: [*filter(still, before.get(name, [])), *described.warnings[name]] for name, still in holds.items()}


def _is_same(new: Manifest, old: Manifest) -> bool:
    return replace(new, entries=()) == replace(old, entries=()) and list(new.entries) == [
        replace(entry, index=-1) for entry in old.entries
    ]


def _reader(out: str | os.PathLike, old: Manifest) -> Callable[[str], bytes]:
    """A function that reads the mp4 of a record of the set by the digest of its file."""
    source = VideoSet(directory=os.fspath(Path(out).absolute()))
    places = {entry.sha256: (entry.split, entry.index) for entry in old.entries if entry.split is not None}
    examples = {split: source.open(split) for split in Split if old.stored(split)}

    def read(sha256: str) -> bytes:
        split, index = places[sha256]
        video: Any = examples[split][index].video
        return video

    return read
