"""A text set on disk: the tokens of all documents in a row, beside a manifest that accounts for every file.

DIR/manifest.json              what was read, how, and what became of each file
DIR/tokens-{train,held_out}    little-endian unsigned integers of one width, documents one after another
DIR/ends-{train,held_out}.npy  int64, where each document ends
DIR/tokenizer.json             of byte pairs
"""

import dataclasses
import hashlib
import json
import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dit_video.config.components import from_json, to_json
from dit_video.config.json_file import check_kinds, read_object
from dit_video.config.paths import shell_word
from dit_video.data import shard_files
from dit_video.data.record import Examples, Record, Split, TokenRow
from dit_video.data.tokenizers import BytePairs, Tokenizer
from dit_video.data.video_set import MANIFEST

TOKENIZER_FILE = "tokenizer.json"
_FORMAT = "dit_video.text_set"
_VERSION = 1
_WIDTHS = ("<u1", "<u2", "<u4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEntry:
    """Row of the manifest: one source file.

    Attributes:
        file: its name within its source.
        sha256: of its bytes; empty where it was not opened.
        reason: why the file is left out; empty where its text is in the set.
        documents: how many of it are in each split.
        notes: what was done to its text, and what was left out.
    """

    file: str
    source: str
    sha256: str = ""
    reason: str = ""
    documents: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextManifest:
    """Manifest of a text set.

    Attributes:
        settings: how it was made; equal settings and sources give an equal set.
        tokenizer: that of its tokens.
        entries: one per source file.
        num_documents, num_tokens, num_bytes: by split; bytes are those of the text in UTF-8.
        split_digests: by split, sha256 over the sorted digests of its documents.
        files: size and sha256 of each.
    """

    settings: dict[str, Any]
    tokenizer: Tokenizer
    entries: tuple[TextEntry, ...]
    num_documents: dict[str, int]
    num_tokens: dict[str, int]
    num_bytes: dict[str, int]
    split_digests: dict[str, str]
    files: shard_files.Files


def tokens_file(split: Split) -> str:
    return f"tokens-{split.value}"


def ends_file(split: Split) -> str:
    return f"ends-{split.value}.npy"


def width_of(num_tokens: int) -> np.dtype:
    """The narrowest type of stored tokens of a vocabulary."""
    return np.dtype(next(width for width in _WIDTHS if num_tokens <= 1 << 8 * np.dtype(width).itemsize))


def write_manifest(directory: Path, manifest: TextManifest) -> None:
    """Writes the manifest beside the files that it describes."""
    content = {**dataclasses.asdict(manifest), "tokenizer": to_json(manifest.tokenizer)}
    if isinstance(manifest.tokenizer, BytePairs):
        content["tokenizer"]["file"] = TOKENIZER_FILE  # wherever the folder is
    text = json.dumps({"format": _FORMAT, "version": _VERSION} | content, indent=1)
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def read_text_manifest(directory: str | os.PathLike) -> TextManifest:
    """The manifest of a text set.

    Raises:
        FileNotFoundError: no such folder, or one without a manifest.
        ValueError: a manifest of another program or version, or damaged.
    """
    path, remedy = (
        Path(directory) / MANIFEST,
        f"make it with: dit-video data text PATH... --out {shell_word(directory)}",
    )
    if not path.exists():
        raise FileNotFoundError(f"{directory} holds no text set; {remedy}")
    content = read_object(path)
    version = (content.get("format"), content.get("version"))
    if version != (_FORMAT, _VERSION):
        raise ValueError(
            f"{path}: format {version[0]!r} version {version[1]!r}, but a text set is {_FORMAT!r} version {_VERSION}; "
            f"{remedy}"
        )
    try:
        return _from_content(content, Path(directory))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from error


def _from_content(content: dict[str, Any], directory: Path) -> TextManifest:
    counts = ("num_documents", "num_tokens", "num_bytes", "split_digests")
    check_kinds(content, {"settings": dict, "tokenizer": dict, "entries": list, "files": dict})
    check_kinds(content, dict.fromkeys(counts, dict))
    shard_files.check_described(content["files"])
    for name, kind in zip(counts, (int, int, int, str)):
        check_kinds(content[name], dict.fromkeys(content[name], kind))
        if not set(content[name]) <= {split.value for split in Split}:
            raise ValueError(f"{name}={reprlib.repr(content[name])}: must be by split")
    tokenizer = content["tokenizer"]
    if "file" in tokenizer:
        tokenizer = tokenizer | {"file": os.fspath(directory / TOKENIZER_FILE)}
    made = from_json(tokenizer, "tokenizer")
    if not isinstance(made, Tokenizer):
        raise ValueError(f"tokenizer={reprlib.repr(tokenizer)}: is none")
    entries = tuple(TextEntry(**row) for row in content["entries"])
    return TextManifest(**{k: content[k] for k in ("settings", "files", *counts)}, tokenizer=made, entries=entries)


class TextRows(Examples):
    """Rows of a split of a text set: documents one after another, cut into rows of one length.

    Row i holds the tokens i L ... i L + L - 1 of all documents in a row, each of which begins at a multiple of `align`
    and has a number of its own; what is between them, and after the last, is padding with number 0.

    Raises:
        ValueError: a file is not the one that was written.
    """

    def __init__(self, directory: str | os.PathLike, manifest: TextManifest, split: Split, *, length: int, align: int):
        folder = Path(directory)
        shard_files.check(folder, manifest.files, f"make the set again in {directory}")
        self._length, self._align, self._split = length, align, split
        self._tokens = np.memmap(folder / tokens_file(split), width_of(manifest.tokenizer.size), mode="r")
        ends = np.load(folder / ends_file(split))
        self._first, self._sizes = np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
        placed = -(-self._sizes // align) * align
        self._placed_ends = np.cumsum(placed)
        self._num_rows = -(-int(placed.sum()) // length)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Record:
        begin, end = index * self._length, (index + 1) * self._length
        row, documents = np.zeros(self._length, np.int32), np.zeros(self._length, np.int32)
        number = int(np.searchsorted(self._placed_ends, begin, side="right"))
        for count in range(1, self._length + 1):
            if number == len(self._sizes):
                break
            size = int(self._sizes[number])
            start = int(self._placed_ends[number]) - -(-size // self._align) * self._align
            if start >= end:
                break
            low, high = max(begin, start), min(end, start + size)
            if low < high:
                where, there = slice(low - begin, high - begin), int(self._first[number]) - start
                row[where] = self._tokens[low + there : high + there]
                documents[where] = count
            number += 1
        return Record(key=f"{self._split.value}/{index}", tokens=TokenRow(row, documents), fps=1.0)

    @property
    def num_frames(self) -> Int[np.ndarray, "num_records"] | None:
        return None


def text_digest(directory: Path) -> str:
    """sha256 of the manifest."""
    return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
