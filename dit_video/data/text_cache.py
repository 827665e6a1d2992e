"""Text-embedding cache on disk, written by `encode`, so that training runs no text encoder.

    DIR/manifest.json                  provenance, sizes, type, shards
    DIR/text-NNNNN.array_record        a record for each caption
    DIR/text-NNNNN.npy                 uint64 [records 2]: the digest of each record's caption, in their order

Each caption is there once, and the empty one always. A record is a little-endian uint32 (length of the header), a JSON
header, the caption's tokens without padding, and the vector for the whole of it. The manifest names whole shards only,
so that a cache which was being written to is whole too, and is gone on with.
"""

import enum
import hashlib
import json
import os
import reprlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from dit_video.arrays import Text
from dit_video.config.json_file import check_kinds, read_object, write_json
from dit_video.config.paths import expand
from dit_video.data import shard_files
from dit_video.data.signals import ClassNames, Reader, Signal

MANIFEST = "manifest.json"
_FORMAT = "dit_video.text_cache"
_VERSION = 1
_SHARD_SIZE = 256 << 20
_SIZES = ("num_tokens", "hidden_size", "pooled_size")
_MANIFEST_KINDS = {"provenance": dict, "dtype": str, "shards": dict} | dict.fromkeys(_SIZES, int)


class TextDtype(enum.Enum):
    """Storage type of text embeddings."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16 if self is TextDtype.BFLOAT16 else self.value)


@dataclass(frozen=True, kw_only=True)
class TextManifest:
    """Manifest of a text-embedding cache.

    Attributes:
        provenance: which encoders made the embeddings, and how.
        num_tokens, hidden_size, pooled_size: L, E and P of `Text`.
        shards: how many records are in each.
        files: size and sha256 of each file; none of those from before.
    """

    provenance: dict[str, Any]
    num_tokens: int
    hidden_size: int
    pooled_size: int
    dtype: TextDtype
    shards: dict[str, int]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def num_captions(self) -> int:
        return sum(self.shards.values())

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines an embedding; adding captions does not change it."""
        content = {name: getattr(self, name) for name in ("provenance", *_SIZES)} | {"dtype": self.dtype.value}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TextCache(Signal):
    """A folder written by `dit-video encode`: embeddings of captions, as a signal.

    Attributes:
        dtype: in what `encode` stores them, and batches hold them.
        digest: `TextManifest.digest`; left None, it is looked up when the run starts and recorded then.
    """

    directory: str
    dtype: TextDtype = TextDtype.BFLOAT16
    digest: str | None = None

    PATHS: ClassVar[tuple[str, ...]] = ("directory",)

    def __post_init__(self):
        expand(self)

    def manifest(self) -> TextManifest:
        """Reads the manifest of the folder.

        Raises:
            FileNotFoundError: no such cache; says how to make one.
            ValueError: another program, version or type wrote it, or its embeddings are not those of `digest`.
        """
        manifest = read_text_manifest(self.directory)
        if manifest.dtype is not self.dtype:
            raise ValueError(
                f"config.data.signals.text.dtype={self.dtype.value}: {self.directory} holds {manifest.dtype.value}; "
                "say so, or encode again: dit-video encode --config=EXPERIMENT --only=text --overwrite"
            )
        if self.digest is not None and self.digest != manifest.digest:
            raise ValueError(
                f"config.data.signals.text.digest={self.digest[:12]}...: {self.directory} is now "
                f"{manifest.digest[:12]}...; other encoders made it, so that captions would mean something else: "
                "restore it, or start a new workdir"
            )
        return manifest

    def embeddings(self) -> "Embeddings":
        """The folder, opened; errors as of `manifest`."""
        return Embeddings(self.directory, self.manifest())

    def open(self) -> Reader:
        embeddings = self.embeddings()
        return lambda clips: embeddings([clip.caption for clip in clips])

    def example(self, batch_size: int) -> None:
        """The condition says what sizes it reads, so that shapes are known where the folder is not."""

    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> Text:
        del class_names, warn
        return self.embeddings()([word])


class Embeddings:
    """An opened text-embedding cache; thread-safe."""

    def __init__(self, directory: str | os.PathLike, manifest: TextManifest):
        self.manifest, self._directory = manifest, Path(directory)
        names = list(manifest.shards)
        remedy = "delete the folder and encode again"
        shard_files.check(self._directory, manifest.files, remedy)
        try:
            # Mapped, so that no more is asked of memory than the file has, whatever its header says.
            digests = [np.load(_index_of(self._directory, name), mmap_mode="r", allow_pickle=False) for name in names]
            self._records = ArrayRecordDataSource([os.fspath(self._directory / name) for name in names])
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise ValueError(f"{directory}: its files are damaged ({error}); {remedy}") from error
        for name, part in zip(names, digests):
            if part.dtype != np.uint64 or part.shape != (manifest.shards[name], 2):
                raise ValueError(
                    f"{_index_of(self._directory, name)}: {part.dtype} {list(part.shape)}, the manifest says uint64 "
                    f"{[manifest.shards[name], 2]}; {remedy}"
                )
        if len(self._records) != manifest.num_captions:
            raise ValueError(
                f"{directory}: holds {len(self._records)} captions, the manifest says {manifest.num_captions}; {remedy}"
            )
        digests = np.concatenate(digests)
        self._order = np.argsort(digests[:, 0], kind="stable")
        self._digests = digests[self._order]

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, caption: str) -> bool:
        return self._position(caption) is not None

    def __call__(self, captions: Sequence[str]) -> Text:
        """Looks up the embeddings of captions, padded with zeros.

        Raises:
            ValueError: there is none of one of them; names it, and the command that adds it.
        """
        embeddings = {caption: self._read(caption) for caption in dict.fromkeys(captions)}
        manifest, B = self.manifest, len(captions)
        tokens = np.zeros((B, manifest.num_tokens, manifest.hidden_size), manifest.dtype.dtype)
        for row, caption in zip(tokens, captions):
            row[: len(embeddings[caption][0])] = embeddings[caption][0]
        num_tokens = np.array([len(embeddings[caption][0]) for caption in captions], np.int32)
        return Text(tokens, num_tokens, np.stack([embeddings[caption][1] for caption in captions]))

    def _position(self, caption: str) -> int | None:
        """Position of the record of a caption."""
        first, second = _digest(caption)
        begin, end = (int(np.searchsorted(self._digests[:, 0], first, side=side)) for side in ("left", "right"))
        for place in range(begin, end):
            if self._digests[place, 1] == second:
                return int(self._order[place])
        return None

    def _read(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Token embeddings without padding, and the pooled vector."""
        position = self._position(caption)
        if position is None:
            raise ValueError(
                f"{self._directory}: has no embedding of the caption {caption!r}; add it with: dit-video encode "
                "--config=EXPERIMENT --only=text, and --caption=TEXT where the data do not hold it"
            )
        manifest = self.manifest
        try:
            data = self._records[position]
            (length,) = struct.unpack_from("<I", data)
            header = json.loads(data[4 : 4 + length])
            values = np.frombuffer(data, manifest.dtype.dtype, offset=4 + length)
            if header.get("caption") != caption:
                raise ValueError(f"it is of the caption {reprlib.repr(header.get('caption'))}")
            split = len(values) - manifest.pooled_size
            num_tokens = split // manifest.hidden_size
            if split != num_tokens * manifest.hidden_size or not 1 <= num_tokens <= manifest.num_tokens:
                raise ValueError(f"it has {len(values)} numbers")
        except (RuntimeError, ValueError, AttributeError, struct.error) as error:
            raise ValueError(
                f"{self._directory}: the embedding of {caption!r} is damaged ({error}); delete the folder and encode "
                "again"
            ) from error
        return values[:split].reshape(num_tokens, manifest.hidden_size), values[split:]


def add_texts(
    directory: str | os.PathLike,
    texts: Iterable[tuple[Sequence[str], Text]],
    *,
    provenance: Mapping[str, Any],
    dtype: TextDtype,
) -> None:
    """Adds captions and their embeddings to a cache, or begins one with them.

    What is complete stays where this ends early: all that was written until the last whole shard, and the rest of what
    `texts` has yielded where an error or an interrupt ends it.

    Args:
        texts: captions that the cache does not have, in groups of any size; the first of a new cache hold "".
        provenance: JSON-compatible; of a cache that is there, the same.

    Raises:
        ValueError: embeddings of other sizes than the cache has, or numbers that `dtype` cannot hold.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    manifest = read_text_manifest(directory) if (directory / MANIFEST).exists() else None
    shard = _Shard(directory, 0 if manifest is None else len(manifest.shards))
    try:
        for captions, text in texts:
            sizes: dict[str, Any] = dict(zip(_SIZES, (*text.tokens.shape[1:], text.pooled.shape[1])))
            manifest = manifest or TextManifest(**sizes, provenance=dict(provenance), dtype=dtype, shards={})
            existing = {name: getattr(manifest, name) for name in _SIZES}
            if sizes != existing:
                raise ValueError(f"{directory}: its embeddings have {existing}, these have {sizes}; use another folder")
            for caption, record in zip(captions, _packed(captions, text, dtype)):
                shard.write(caption, record)
            if shard.size >= _SHARD_SIZE:
                manifest = shard.finish(manifest)
                shard = _Shard(directory, len(manifest.shards))
    finally:
        if manifest is not None:
            shard.finish(manifest)


class _Shard:
    """A shard that is being written; its files have no meaning until the manifest names it."""

    def __init__(self, directory: Path, number: int):
        self._directory, self.name = directory, f"text-{number:05d}.array_record"
        self._writer: ArrayRecordWriter | None = None
        self._digests: list[tuple[int, int]] = []
        self.size = 0

    def write(self, caption: str, record: bytes) -> None:
        # Groups of one record: random access reads no neighbour.
        self._writer = self._writer or ArrayRecordWriter(os.fspath(self._directory / self.name), "group_size:1")
        self._writer.write(record)
        self._digests.append(_digest(caption))
        self.size += len(record)

    def finish(self, manifest: TextManifest) -> TextManifest:
        """The manifest with this shard, on disk too; as it was where nothing was written."""
        if self._writer is None:
            return manifest
        self._writer.close()
        np.save(_index_of(self._directory, self.name), np.array(self._digests, np.uint64))
        shards = manifest.shards | {self.name: len(self._digests)}
        written = shard_files.described(self._directory, (self.name, _index_of(self._directory, self.name).name))
        files = manifest.files | written
        sizes = {name: getattr(manifest, name) for name in _SIZES}
        content = {"format": _FORMAT, "version": _VERSION, "provenance": manifest.provenance, **sizes}
        shown = {"dtype": manifest.dtype.value, "shards": shards, "files": files}
        write_json(self._directory / MANIFEST, content | shown)
        return TextManifest(**sizes, provenance=manifest.provenance, dtype=manifest.dtype, shards=shards, files=files)


def _packed(captions: Sequence[str], text: Text, dtype: TextDtype) -> Iterator[bytes]:
    for caption, tokens, num_tokens, pooled in zip(captions, text.tokens, text.num_tokens, text.pooled):
        values = np.concatenate([np.asarray(tokens)[: int(num_tokens)].ravel(), np.asarray(pooled)])
        with np.errstate(over="ignore"):  # said below, with the caption
            values = values.astype(dtype.dtype)
        if not np.isfinite(values.astype(np.float32)).all():
            raise ValueError(f"the embedding of {caption!r} has numbers that {dtype.value} does not hold")
        header = json.dumps({"caption": caption}).encode()
        yield struct.pack("<I", len(header)) + header + values.tobytes()


def _index_of(directory: Path, shard: str) -> Path:
    return (directory / shard).with_suffix(".npy")


def _digest(caption: str) -> tuple[int, int]:
    """128 bits of SHA-256; what was read from a damaged table may hold halves of characters."""
    first, second = struct.unpack("<QQ", hashlib.sha256(caption.encode(errors="surrogatepass")).digest()[:16])
    return first, second


def read_text_manifest(directory: str | os.PathLike) -> TextManifest:
    """The manifest of a text cache.

    Raises:
        FileNotFoundError: no such cache; says how to make one.
        ValueError: a manifest of another program or version.
    """
    path = Path(directory) / MANIFEST
    remedy = "make it with: dit-video encode --config=EXPERIMENT --only=text"
    if not path.exists():
        raise FileNotFoundError(f"{directory} is no text cache (no {MANIFEST} in it); {remedy}")
    content = read_object(path)
    version = (content.get("format"), content.get("version"))
    if version != (_FORMAT, _VERSION):
        raise ValueError(
            f"{path}: format {version[0]!r} version {version[1]!r}, but a text cache has {_FORMAT!r} version {_VERSION}"
        )
    try:
        _check(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from error
    fields = {name: content[name] for name in _MANIFEST_KINDS}
    return TextManifest(**fields | {"dtype": TextDtype(content["dtype"]), "files": content.get("files", {})})


def _check(content: dict[str, Any]) -> None:
    """Raises ValueError where a manifest is not valid; names the field."""
    check_kinds(content, _MANIFEST_KINDS)
    for name in _SIZES:
        if content[name] < 1:
            raise ValueError(f"{name}={content[name]}: must be at least 1")
    if content["dtype"] not in [known.value for known in TextDtype]:
        raise ValueError(f"dtype={content['dtype']!r}: {', '.join(known.value for known in TextDtype)} are known")
    if not content["shards"]:
        raise ValueError("it has no shards")
    for name, count in content["shards"].items():
        if Path(name).name != name or not name.isprintable() or type(count) is not int:
            raise ValueError(f"shard {reprlib.repr(name)} is not in the folder")
    shard_files.check_described(content.get("files", {}))
