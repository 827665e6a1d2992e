"""Text files into a text set: documents are split, tokenized and written one after another."""

import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from dit_video.config.atomic import new_folder
from dit_video.data import shard_files
from dit_video.data.record import Split
from dit_video.data.text_set import (
    TOKENIZER_FILE,
    TextEntry,
    TextManifest,
    ends_file,
    tokens_file,
    width_of,
    write_manifest,
)
from dit_video.data.tokenizers import BytePairs, Bytes, Characters, Tokenizer, file_size, train_byte_pairs
from dit_video.ingest.label_table import split_of
from dit_video.ingest.text_files import FileReport, TextFile, documents_of, list_text_files

_FEW = 100


def ingest_text(
    sources: Sequence[str],
    out: Path,
    *,
    tokenizer: str = "bytes",
    field: str = "text",
    held_out_fraction: float = 0.1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TextManifest:
    """Makes a text set of files and folders; the folder appears only when complete.

    Where some files or their folders are named after training and some after a test set (train, test, valid), that is
    the split, and others are trained on. Elsewhere a document is held out if the number in [0, 1) that its sha256 is,
    is below the fraction: equal documents are on one side. Of a single document the last part is held out.

    Args:
        tokenizer: "bytes", "chars", "bpe:N", or a tokenizer.json.
        field: of lines of JSON, the text.

    Raises:
        FileExistsError, FileNotFoundError: `out` is there; a source is not.
        ValueError: no such tokenizer, or no text in any file.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"--held_out_fraction={held_out_fraction}: must be at least 0 and below 1")
    files = list_text_files(sources, out)
    splitter = _Splitter(files, field, held_out_fraction)
    with new_folder(out) as folder:
        made = _tokenizer(tokenizer, splitter, folder)
        writers = {split: _Writer(folder, split, made) for split in Split}
        entries = []
        for done, file in enumerate(files):
            report, documents = FileReport(), dict.fromkeys((split.value for split in Split), 0)
            for split, text in splitter.split(file, report):
                try:
                    writers[split].add(text)
                    documents[split.value] += 1
                except ValueError as error:  # a character that the vocabulary has not
                    report.count(f"documents left out ({error})")
            entries.append(
                TextEntry(
                    file=file.name,
                    source=file.source,
                    sha256=report.sha256,
                    reason=report.reason,
                    documents={name: number for name, number in documents.items() if number},
                    notes=report.notes,
                )
            )
            progress(done + 1, len(files))
        settings: dict[str, Any] = {"tokenizer": tokenizer, "field": field, "held_out_fraction": held_out_fraction}
        manifest = _manifest(settings, made, entries, {split.value: writer for split, writer in writers.items()})
        if not manifest.num_tokens:
            reasons = "; ".join(f"{entry.file}: {entry.reason}" for entry in entries[:3])
            raise ValueError(f"{', '.join(map(str, sources))}: no text in {len(files)} files ({reasons})")
        names = [path.name for path in folder.iterdir()]
        manifest = dataclasses.replace(manifest, files=shard_files.described(folder, names))
        write_manifest(folder, manifest)
    if isinstance(made, BytePairs):
        made = BytePairs(os.fspath(out / TOKENIZER_FILE), made.num_tokens)
    return dataclasses.replace(manifest, tokenizer=made)


class _Splitter:
    """Documents of files with their splits, the same at every reading."""

    def __init__(self, files: Sequence[TextFile], field: str, fraction: float):
        self._field, self._fraction = field, fraction
        self.files = files
        # A lone test set may well be all the text there is: names count where both sides have one.
        self._named = set(Split) <= {_named_split(file) for file in files}
        first = [_position(text) for text in self._first(_FEW)] if not self._named else []
        self._single = len(first) == 1
        # Of a handful all may fall on one side; a set that cannot be judged, or learnt, helps nobody.
        if 1 < len(first) < _FEW and fraction > 0:
            fraction = min(max(fraction, math.nextafter(min(first), 2.0)), max(first))
        self._limit = fraction

    def split(self, file: TextFile, report: FileReport) -> Iterator[tuple[Split, str]]:
        for text in documents_of(file, self._field, report):
            if self._named:
                yield _named_split(file) or Split.TRAIN, text
            elif self._single and self._fraction > 0:
                cut = round(len(text) * (1 - self._fraction))
                parts = {Split.TRAIN: text[:cut], Split.HELD_OUT: text[cut:]}
                yield from ((split, part) for split, part in parts.items() if part)
            else:
                yield (Split.HELD_OUT if _position(text) < self._limit else Split.TRAIN), text

    def training(self) -> Iterator[str]:
        """All documents that are trained on."""
        for file in self.files:
            yield from (text for split, text in self.split(file, FileReport()) if split is Split.TRAIN)

    def _first(self, number: int) -> list[str]:
        """The first so many documents."""
        documents = (text for file in self.files for text in documents_of(file, self._field, FileReport()))
        return list(itertools.islice(documents, number))


def _position(text: str) -> float:
    """The number in [0, 1) that the sha256 of a document is."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13


def _named_split(file: TextFile) -> Split | None:
    """The split that a folder in its path, or its own name without endings, is named after."""
    *folders, name = PurePosixPath(file.name).parts
    words = [*folders, name.split(".")[0]]
    return next((split for word in reversed(words) if (split := split_of(word)) is not None), None)


class _Writer:
    """Writes the documents of a split."""

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer):
        self._tokenizer, self._width, self._folder, self._split = tokenizer, width_of(tokenizer.size), folder, split
        self._file: BinaryIO = (folder / tokens_file(split)).open("wb")
        self._ends: list[int] = []
        self.num_tokens = self.num_bytes = 0
        self._digests: list[str] = []

    def add(self, text: str) -> None:
        tokens, data = self._tokenizer.encode(text), text.encode()
        self._file.write(tokens.astype(self._width).tobytes())
        self.num_tokens += len(tokens)
        self.num_bytes += len(data)
        self._ends.append(self.num_tokens)
        self._digests.append(hashlib.sha256(data).hexdigest())

    def close(self) -> tuple[int, str]:
        """How many documents there are, and the sha256 over their sorted digests."""
        self._file.close()
        np.save(self._folder / ends_file(self._split), np.array(self._ends, np.int64))
        if not self._ends:
            for name in (tokens_file(self._split), ends_file(self._split)):
                (self._folder / name).unlink()
        return len(self._ends), hashlib.sha256("\n".join(sorted(self._digests)).encode()).hexdigest()


def _tokenizer(name: str, documents: _Splitter, folder: Path) -> Tokenizer:
    kind, _, number = name.partition(":")
    if name == "bytes":
        return Bytes()
    if name == "chars":
        # Of held-out text too, which would else not be countable.
        return Characters.of(text for file in documents.files for _, text in documents.split(file, FileReport()))
    if kind == "bpe" and number.isdigit():
        file = folder / TOKENIZER_FILE
        train_byte_pairs(documents.training(), int(number), file)
        return BytePairs(str(file), file_size(file))
    if Path(name).is_file():
        size = file_size(Path(name))
        (folder / TOKENIZER_FILE).write_bytes(Path(name).read_bytes())
        return BytePairs(str(folder / TOKENIZER_FILE), size)
    raise ValueError(f"--tokenizer={name}: must be bytes, chars, bpe:N or a tokenizer.json that is there")


def _manifest(
    settings: dict[str, Any], tokenizer: Tokenizer, entries: list[TextEntry], writers: dict[str, _Writer]
) -> TextManifest:
    closed = {split: writer.close() for split, writer in writers.items()}
    there = {split: writer for split, writer in writers.items() if closed[split][0]}
    return TextManifest(
        settings=settings,
        tokenizer=tokenizer,
        entries=tuple(entries),
        num_documents={split: closed[split][0] for split in there},
        num_tokens={split: writer.num_tokens for split, writer in there.items()},
        num_bytes={split: writer.num_bytes for split, writer in there.items()},
        split_digests={split: closed[split][1] for split in there},
        files={},
    )
