"""`dit-video data --json`: what a data set holds, as JSON."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dit_video.cli.data_actions import actions_of
from dit_video.data import captions
from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.data.video_set import Entry, Manifest


def print_set(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Prints what a set of videos holds."""
    source = VideoSet(directory=os.fspath(directory))
    actions = actions_of(source, manifest)
    found = to_json(manifest, source.info().split_digest) | ({} if actions is None else {"actions": actions})
    print(json.dumps(found, indent=1))


def to_json(manifest: Manifest, digests: Mapping[Split, str]) -> dict[str, Any]:
    """Videos, classes and captions of each split, and what was skipped.

    Args:
        digests: of the splits.
    """
    stored = {split: manifest.stored(split) for split in Split}
    return {
        "splits": {str(split): _split(entries) | {"digest": digests.get(split)} for split, entries in stored.items()},
        "classes": [
            {"label": label, "name": name} | {str(s): sum(e.label == label for e in stored[s]) for s in Split}
            for label, name in enumerate(manifest.class_names)
        ],
        "skipped": [{"file": entry.file, "reason": entry.reason} for entry in manifest.skipped()],
        "rows_without_file": list(manifest.rows_without_file),
    }


def _split(entries: Sequence[Entry]) -> dict[str, Any]:
    texts = [entry.caption for entry in entries if entry.caption]
    lengths = [captions.length_in_bytes(text) for text in texts]
    return {
        "videos": len(entries),
        "seconds": sum(entry.frames / entry.fps for entry in entries),
        "bytes": sum(entry.num_bytes for entry in entries),
        "frames": _extent([entry.frames for entry in entries]),
        "fps": _extent([entry.fps for entry in entries]),
        "sizes": dict(Counter(f"{entry.width}x{entry.height}" for entry in entries).most_common()),
        "captions": {"videos": len(texts), "different": len(set(texts)), "bytes": _extent(lengths)},
        "changed": {entry.file: entry.notes for entry in entries if entry.notes},
    }


def _extent(values: Sequence[int] | Sequence[float]) -> list[int] | list[float] | None:
    """Least and greatest; None of nothing."""
    return [min(values), max(values)] if values else None
