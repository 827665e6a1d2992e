"""Latent cache on disk: posterior moments of the VAE, written by `encode`, so that the DiT trains without the VAE.

    DIR/manifest.json                     provenance, class names, counts, digests
    DIR/{train,held_out}-NNNNN.array_record

One record is a little-endian uint32 (length of the header), a JSON header, and the moments as little-endian
float32; then what accompanies the frames of the clip, actions and poses, where the header has their types and shapes.
"""

import dataclasses
import hashlib
import json
import math
import os
import reprlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float, Int

from dit_video.config.atomic import new_folder
from dit_video.config.json_file import check_kinds, read_object
from dit_video.config.paths import shell_word
from dit_video.data import shard_files
from dit_video.data.record import Clip, Examples, Record, Split
from dit_video.data.video_set import MANIFEST
from dit_video.video.actions import ActionSpace, from_json
from dit_video.video.files import MAX_FPS

_FORMAT = "dit_video.latent_cache"
_VERSION = 1
_SHARD_SIZE = 512 << 20
# Of the manifest: the (T, H, W) of each training clip, where they differ.
_CUT_TO = "cut_to"
_HEADER_KINDS = {"key": str, "start": int, "label": int, "caption": str, "fps": float, "shape": list}
# What accompanies the frames of a clip, and how its numbers are stored.
_TRACKS, _STORED_AS = ("actions", "poses"), {"i": "<i4", "f": "<f4"}
_QUALITY_NUMBERS = {"num_clips": (int,), "psnr": (int, float), "psnr_mean_frame": (int, float)}
_QUALITY_KINDS = {"split": (str,)} | _QUALITY_NUMBERS
_MANIFEST_KINDS = {
    **{"provenance": dict, "class_names": list, "num_records": dict, "shards": dict, "split_digests": dict},
    **{"format": str, "version": int},
}


@dataclass(frozen=True, kw_only=True)
class CodecQuality:
    """How much of its clips a codec keeps: PSNR in dB, medians over clips, which no single still decides.

    Attributes:
        split: whose clips were encoded and decoded.
        num_clips: how many.
        psnr: of the decoded clips.
        psnr_mean_frame: of each clip's own mean frame: what a codec that ignores motion could reach.
    """

    split: str
    num_clips: int
    psnr: float
    psnr_mean_frame: float

    def __str__(self) -> str:
        return (
            f"PSNR {self.psnr:.2f} dB on {self.num_clips} {self.split.replace('_', '-')} clips, whose mean frames have "
            f"{self.psnr_mean_frame:.2f} dB"
        )

    def warnings(self) -> list[str]:
        """A line where the codec keeps less than a still picture would, so that nothing learnt on it can move."""
        if self.psnr >= self.psnr_mean_frame:
            return []
        return [f"the codec keeps less of its clips than their mean frames do ({self}): train it for longer"]


@dataclass(frozen=True, kw_only=True)
class CacheManifest:
    """Manifest of a latent cache.

    Attributes:
        provenance: what must match for the cache to be used: VAE digest, statistics, preprocessing, digest of
            the source.
        split_digests: of the videos that were encoded, as their source gave them.
        quality: of the codec; None of caches from before it was measured.
        digest: sha256 of the manifest file.
        files: size and sha256 of each shard; none of caches from before.
        actions: of which each frame of the clips has one; None where there are none.
    """

    provenance: dict[str, Any]
    class_names: tuple[str, ...]
    num_records: dict[Split, int]
    split_digests: dict[Split, str]
    quality: CodecQuality | None
    digest: str
    files: shard_files.Files
    actions: ActionSpace | None = None


def write_latent_cache(
    directory: str | os.PathLike,
    splits: Mapping[Split, Iterable[Clip]],
    *,
    class_names: tuple[str, ...],
    split_digests: Mapping[Split, str],
    provenance: Mapping[str, Any],
    quality: CodecQuality | None = None,
    actions: ActionSpace | None = None,
    clip_of: Mapping[tuple[int, ...], tuple[int, int, int]] | None = None,
) -> None:
    """Writes clips with moments into a new cache, one at a time; the folder appears only when complete.

    Args:
        class_names, split_digests, actions: as the source of the videos gives them (SourceInfo).
        provenance: JSON-compatible; compared field by field when a run opens the cache.
        quality: of the codec that encoded them.
        clip_of: where training clips have several shapes, the (T, H, W) of each by the shape [t h w] of its latents.

    Raises:
        FileExistsError: the folder exists and is not empty.
        ValueError: a clip without moments, or a split without clips.
    """
    with new_folder(directory) as partial:
        counts, shards, rates, cut_to = {}, {}, {}, []
        for split, clips in splits.items():
            rates[split.value] = []
            clips = _recorded(clips, rates[split.value])
            if clip_of is not None and split is Split.TRAIN:
                clips = _with_shapes(clips, clip_of, cut_to)
            counts[split.value], shards[split.value] = _write_split(partial, split, clips)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "provenance": dict(provenance),
            "class_names": list(class_names),
            "num_records": counts,
            "shards": shards,
            "files": shard_files.described(partial, (name for names in shards.values() for name in names)),
            # Of each record, or of all.
            "fps": {split: fps[0] if len(set(fps)) == 1 else fps for split, fps in rates.items()},
            "split_digests": {split.value: digest for split, digest in split_digests.items()},
            **({} if quality is None else {"quality": dataclasses.asdict(quality)}),
            **({} if actions is None else {"actions": actions.to_json()}),
            **({} if clip_of is None else {_CUT_TO: cut_to}),
        }
        (partial / MANIFEST).write_text(json.dumps(content, indent=1))


def _recorded(clips: Iterable[Clip], rates: list[float]) -> Iterator[Clip]:
    for clip in clips:
        rates.append(clip.fps)
        yield clip


def _with_shapes(
    clips: Iterable[Clip], clip_of: Mapping[tuple[int, ...], tuple[int, int, int]], cut_to: list[list[int]]
) -> Iterator[Clip]:
    for clip in clips:
        if clip.moments is not None:
            cut_to.append(list(clip_of[clip.moments.shape[:3]]))
        yield clip


def _write_split(directory: Path, split: Split, clips: Iterable[Clip]) -> tuple[int, list[str]]:
    shards: list[str] = []
    count, size, writer = 0, 0, None
    try:
        for clip in clips:
            if clip.moments is None:
                raise ValueError(f"write_latent_cache: clip {clip.key!r} of {split} has no moments")
            if writer is None or size >= _SHARD_SIZE:
                if writer is not None:
                    writer.close()
                shards.append(f"{split}-{len(shards):05d}.array_record")
                # Groups of one record: random access reads no neighbour.
                writer, size = ArrayRecordWriter(os.fspath(directory / shards[-1]), "group_size:1"), 0
            data = _pack(clip, clip.moments)
            writer.write(data)
            count, size = count + 1, size + len(data)
    finally:
        if writer is not None:
            writer.close()
    if count == 0:
        raise ValueError(f"write_latent_cache: no clips in {split}")
    return count, shards


def _pack(clip: Clip, moments: Float[np.ndarray, "t h w m"]) -> bytes:
    header: dict[str, Any] = {
        "key": clip.key,
        "start": clip.start,
        "label": clip.label,
        "caption": clip.caption,
        "fps": clip.fps,
        "shape": moments.shape,
    }
    tracks = {name: rows for name in _TRACKS if (rows := getattr(clip, name)) is not None}
    if tracks:
        header["tracks"] = {name: [_STORED_AS[rows.dtype.kind], *rows.shape] for name, rows in tracks.items()}
    encoded = json.dumps(header).encode()
    behind = [rows.astype(_STORED_AS[rows.dtype.kind]).tobytes() for rows in tracks.values()]
    return b"".join([struct.pack("<I", len(encoded)), encoded, moments.astype("<f4").tobytes(), *behind])


def _unpack(data: bytes) -> Record:
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    described = header.pop("tracks", {}) if isinstance(header, dict) else {}
    kinds = {name: type(value) for name, value in header.items()} if isinstance(header, dict) else {}
    if kinds != _HEADER_KINDS:
        raise ValueError(f"its header is {reprlib.repr(header)}")
    tracks, end = _unpack_tracks(data, described)
    values = np.frombuffer(data[4 + length : end], dtype="<f4")
    shape = header.pop("shape")
    # One of -1 would be filled in, and with one of 0 the others could be anything.
    if len(shape) != 4 or not all(type(n) is int and n > 0 for n in shape) or math.prod(shape) != values.size:
        raise ValueError(f"it claims moments of shape {reprlib.repr(shape)}, and has {values.size} numbers")
    return Record(moments=values.reshape(shape), **tracks, **header)


def _unpack_tracks(data: bytes, described: Any) -> tuple[dict[str, Any], int]:
    """What accompanies the frames of a record, and where it begins: the end of the moments."""
    right = isinstance(described, dict) and described.keys() <= set(_TRACKS)
    if not right or not all(_is_track(kind) for kind in described.values()):
        raise ValueError(f"its header has tracks {reprlib.repr(described)}")
    tracks: dict[str, Any] = {}
    end = len(data)
    for name, (dtype, *shape) in reversed(described.items()):
        begin = end - 4 * math.prod(shape)
        if begin < 0:
            raise ValueError(f"it claims {name} of shape {reprlib.repr(shape)}, and ends before")
        tracks[name] = np.frombuffer(data[begin:end], dtype).reshape(shape).astype(dtype[1:])
        end = begin
    return tracks, end


def _is_track(kind: Any) -> bool:
    if not isinstance(kind, list) or len(kind) not in (2, 3):
        return False
    return kind[0] in _STORED_AS.values() and all(type(n) is int and n > 0 for n in kind[1:])


def read_cache_manifest(directory: str | os.PathLike) -> CacheManifest:
    """The manifest of a latent cache.

    Raises:
        FileNotFoundError: no such cache; says how to make one.
        ValueError: a manifest of another program or version.
    """
    path, content = _content(directory)
    return CacheManifest(
        provenance=content["provenance"],
        class_names=tuple(content["class_names"]),
        num_records={Split(name): count for name, count in content["num_records"].items()},
        split_digests={Split(name): digest for name, digest in content["split_digests"].items()},
        quality=CodecQuality(**content["quality"]) if "quality" in content else None,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        files=content.get("files", {}),
        actions=from_json(content["actions"]) if "actions" in content else None,
    )


def _content(directory: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    path = Path(directory) / MANIFEST
    remedy = f"make it with: dit-video encode --config=EXPERIMENT --config.data.cache.directory={shell_word(directory)}"
    if not path.exists():
        raise FileNotFoundError(f"{directory} is no latent cache (no {MANIFEST} in it); {remedy}")
    content = read_object(path)
    version = (content.get("format"), content.get("version"))
    if version != (_FORMAT, _VERSION):
        raise ValueError(
            f"{path}: format {version[0]!r} version {version[1]!r}, but a latent cache has {_FORMAT!r} "
            f"version {_VERSION}; {remedy}"
        )
    try:
        _check(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from error
    return path, content


def _check(content: dict[str, Any]) -> None:
    """Raises ValueError where a manifest is not valid; names the field."""
    check_kinds(content, _MANIFEST_KINDS)
    for name, kind in {"num_records": int, "shards": list, "split_digests": str}.items():
        for split, value in content[name].items():
            if split not in tuple(Split) or not isinstance(value, kind):
                words = f"must be of {' or '.join(Split)}, and a {kind.__name__}"
                raise ValueError(f"{name}.{split}={reprlib.repr(value)}: {words}")
    if "quality" in content and not _is_quality(content["quality"]):
        raise ValueError(f"quality={reprlib.repr(content['quality'])}: must have {', '.join(_QUALITY_KINDS)}")
    if "actions" in content:
        from_json(content["actions"])
    cut_to, number = content.get(_CUT_TO), content["num_records"].get(Split.TRAIN.value)
    if cut_to is not None and not (
        isinstance(cut_to, list)
        and len(cut_to) == number
        and all(isinstance(clip, list) and [type(n) for n in clip] == [int] * 3 for clip in cut_to)
    ):
        raise ValueError(f"{_CUT_TO}={reprlib.repr(cut_to)}: must be frames, height and width of each training clip")
    rates = content.get("fps", {})
    if not isinstance(rates, dict):
        raise ValueError(f"fps={reprlib.repr(rates)}: must be an object")
    for split, fps in rates.items():
        listed, expected = (fps, content["num_records"].get(split)) if isinstance(fps, list) else ([fps], 1)
        if len(listed) != expected or not all(type(rate) in (int, float) and 0 < rate <= MAX_FPS for rate in listed):
            raise ValueError(f"fps.{split}={reprlib.repr(fps)}: must be a rate, or one for each record")
    shard_files.check_described(content.get("files", {}))
    names = [name for shards in content["shards"].values() for name in shards]
    for name in [*names, *content["class_names"]]:
        if not isinstance(name, str):
            raise ValueError(f"{reprlib.repr(name)} is no name")
    for name in names:
        if Path(name).name != name or not name.isprintable():
            raise ValueError(f"shard {reprlib.repr(name)} is not in the folder")


def _is_quality(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != _QUALITY_KINDS.keys() or value["split"] not in tuple(Split):
        return False
    return all(type(value[name]) in kinds and math.isfinite(value[name]) for name, kinds in _QUALITY_NUMBERS.items())


class CachedExamples(Examples):
    """The records of one split of a latent cache."""

    def __init__(self, directory: str | os.PathLike, split: Split):
        _, content = _content(directory)
        if split.value not in content["shards"]:
            raise ValueError(f"{directory}: the cache holds no {split} records; it has {', '.join(content['shards'])}")
        self._where = f"{directory} ({split})"
        names = content["shards"][split.value]
        files = {name: file for name, file in content.get("files", {}).items() if name in names}
        shard_files.check(Path(directory), files, "make the cache again")
        paths = [os.fspath(Path(directory) / name) for name in names]
        try:
            self._records = ArrayRecordDataSource(paths)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self._where}: its records are damaged ({error}); make the cache again") from error
        if len(self._records) != content["num_records"].get(split.value):
            raise ValueError(
                f"{self._where}: {len(self._records)} records, but the manifest says "
                f"{content['num_records'].get(split.value)}; the folder was changed after it was made: make it again"
            )
        self._fps: Any = content.get("fps", {}).get(split.value)
        self._cut_to: Any = content.get(_CUT_TO) if split is Split.TRAIN else None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        try:
            return _unpack(self._records[index])
        except (RuntimeError, ValueError, KeyError, struct.error) as error:
            raise ValueError(f"{self._where}: record {index} is damaged ({error}); make the cache again") from error

    @property
    def num_frames(self) -> None:
        """Cached moments are used whole."""
        return None

    @property
    def cut_to(self) -> Int[np.ndarray, "num_records 3"] | None:
        return None if self._cut_to is None else np.array(self._cut_to, int)

    @property
    def fps(self) -> Float[np.ndarray, "num_records"] | None:
        """As the manifest says; None of caches from before, which do not."""
        return None if self._fps is None else np.broadcast_to(np.array(self._fps, float), (len(self),))
