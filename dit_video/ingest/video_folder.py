"""Videos for evaluation from any program: a video set, a folder of videos, or an array of decoded frames.

Nothing is re-encoded: what is judged are the pixels that the files themselves decode to (ingest.py may scale
and encode anew). A folder is read where it lies: each file is probed once for its size, rate and number of
frames, and its own bytes are handed over when its turn comes.
"""

import errno
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit_video.config.paths import shell_word
from dit_video.data.record import Examples, Record, Split
from dit_video.data.sources import VideoSet
from dit_video.data.video_set import MANIFEST, Entry
from dit_video.ingest.decoding_process import DecodingProcesses, at_once, decoding_processes
from dit_video.ingest.ingest import Progress, nothing_usable
from dit_video.ingest.probe import probe
from dit_video.ingest.source_files import SourceFile, is_tar, list_files
from dit_video.video.frame_folder import frames
from dit_video.video.pictures import VideoError
from dit_video.weights.npy import map_npy, read_entry

_ARRAYS = (".npy", ".npz")
# Bytes of an array that is read whole.
_MAX_ARRAY = 16 << 30


@dataclass(frozen=True, kw_only=True)
class OpenedVideos:
    """Opened videos for evaluation, with their identification.

    Attributes:
        examples: in a fixed order; `Record.video` is the file's own bytes, or decoded frames of an array.
        names: of each video by position.
        sizes: height and width of each video by position: upright, in stored pixels, as it decodes.
        description: as JSON: name (last part of the path), kind ("folder", "set" or "array"), split (of a
            set), fps (of an array, as assumed), num_videos, skipped: the reason for each file of a folder
            that is not among the examples, and notes: what was done to pictures and times of a file, where anything
            was. What a set left out is in its own manifest.
    """

    examples: Examples
    names: tuple[str, ...]
    sizes: Int[np.ndarray, "num_videos 2"]
    description: dict[str, Any]


def open_videos(
    path: Path,
    split: Split = Split.HELD_OUT,
    *,
    fps: float = 25.0,
    num_workers: int | None = None,
    progress: Progress = lambda stage, done, total, file: None,
) -> OpenedVideos:
    """Opens a video set, a folder of videos of any container, or frames in a .npy or .npz file.

    A folder is read recursively, in the order of its names, and every file in it decoded once, to find out which of
    its frames make a video (dit_video/video/survey.py).

    Args:
        split: of a video set; folders and arrays have none.
        fps: of an array, which does not say.
        num_workers: files probed at once; default one per core.
        progress: called as ("probing", files done, files in all, the next file).

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: it holds no videos, lacks the split, is a single video, an archive or an array of another
            kind; says what to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder, video set or array")
    if path.suffix.lower() in _ARRAYS and path.is_file():
        return _open_array(path, fps)
    if path.is_file() and is_tar(path):
        ingest = f"dit-video data ingest {shell_word(path.name)} --out DIR"
        raise ValueError(f"{path}: a tar; unpack it into a folder, or make a set of it: {ingest}")
    if path.is_file():
        raise ValueError(f"{path}: a single file; put the videos to judge into a folder and give that")
    # A manifest.json alone may be any program's.
    if (path / MANIFEST).exists() and any(path.glob("*.array_record*")):
        return _open_set(path, split)
    return _open_folder(path, at_once(num_workers), progress)


def _open_set(path: Path, split: Split) -> OpenedVideos:
    source = VideoSet(directory=os.fspath(path))
    manifest = source.manifest()
    entries = manifest.stored(split)
    if not entries:
        present = " and ".join(other for other in Split if manifest.stored(other))
        raise ValueError(f"{path}: has no split {split.value!r}; it has {present}")
    return _opened(path, "set", source.open(split), entries, split=split.value)


def _opened(path: Path, kind: str, examples: Examples, entries: Sequence[Entry], **more: Any) -> OpenedVideos:
    about = {"name": path.resolve().name, "kind": kind, "num_videos": len(entries), "skipped": {}}
    sizes = np.array([(entry.height, entry.width) for entry in entries])
    names = tuple(entry.file for entry in entries)
    return OpenedVideos(examples=examples, names=names, sizes=sizes, description=about | more)


class _Videos(Examples):
    """Records of videos without labels; `content` reads one when it is requested.

    `chosen` has the frames of files that are not a video as a whole.
    """

    def __init__(
        self,
        entries: list[Entry],
        content: Callable[[int], bytes | UInt8[np.ndarray, "T H W 3"]],
        chosen: Mapping[str, Int[np.ndarray, "T"]] = MappingProxyType({}),
    ):
        self._entries = entries
        self._content = content
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        facts = {"num_frames": entry.frames, "fps": entry.fps, "frames": self._chosen.get(entry.file)}
        return Record(key=entry.file, video=self._content(index), **facts)

    @property
    def num_frames(self) -> Int[np.ndarray, "num_records"]:
        return np.array([entry.frames for entry in self._entries])

    @property
    def fps(self) -> Float[np.ndarray, "num_records"]:
        return np.array([entry.fps for entry in self._entries])


def _open_folder(path: Path, num_workers: int, progress: Progress) -> OpenedVideos:
    items = list_files([path])
    entries, chosen = [], {}
    with decoding_processes(num_workers) as decoding, ThreadPoolExecutor(num_workers) as pool:
        for entry, numbers in pool.map(lambda item: _probed(item, decoding), items):
            entries.append(entry)
            if numbers is not None:
                chosen[entry.file] = numbers
            progress("probing", len(entries), len(items), items[len(entries)].key if len(entries) < len(items) else "")
    videos = [entry for entry in entries if not entry.reason]
    if not videos:
        raise ValueError(nothing_usable([path], entries))

    def content(index: int) -> bytes | UInt8[np.ndarray, "T H W 3"]:
        file = path / videos[index].file
        return np.stack(list(frames(file))) if file.is_dir() else file.read_bytes()

    examples = _Videos(videos, content, chosen)
    notes = {entry.file: entry.notes for entry in videos if entry.notes}
    skipped = {entry.file: entry.reason for entry in entries if entry.reason}
    return _opened(path, "folder", examples, videos, skipped=skipped, **({"notes": notes} if notes else {}))


def _probed(item: SourceFile, decoding: DecodingProcesses) -> tuple[Entry, Int[np.ndarray, "T"] | None]:
    """Probes a file: frames, rate and size, or the reason why it is left out; and which of its frames are the video."""
    entry = Entry(file=item.key, source=item.source.name, reason=item.reason)
    if item.reason:
        return entry, None
    try:
        probed = decoding.run(probe, item.source / item.name)
    except VideoError as error:
        return replace(entry, reason=str(error)), None
    facts: dict[str, Any] = dict(probed)
    chosen = facts.pop("chosen")
    return replace(entry, **facts), None if chosen is None else np.array(chosen)


def _open_array(path: Path, fps: float) -> OpenedVideos:
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps}: must be above 0")
    videos = _load(path)
    if problem := _problem(videos):
        raise ValueError(f"{path}: {videos.dtype} of shape {videos.shape}: {problem}")
    num_videos, num_frames, height, width, _ = videos.shape
    facts = {"frames": num_frames, "fps": fps, "height": height, "width": width}
    entries = [Entry(file=str(index), source=path.name, **facts) for index in range(num_videos)]
    examples = _Videos(entries, lambda index: np.asarray(videos[index]))
    return _opened(path, "array", examples, entries, fps=fps)


def _load(path: Path) -> np.ndarray:
    """Loads the array of a .npy, memory-mapped, or the only one of a .npz, read whole."""
    try:
        if path.suffix.lower() == ".npy":
            return map_npy(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) == 1:
                if entries[0].file_size > _MAX_ARRAY:
                    raise ValueError(f"{entries[0].file_size} bytes of pixels are read from a .npy alone")
                return read_entry(archive, entries[0])
    except (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # Of zipfile: what a damaged index says of places, versions and passwords.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path}: no readable array of numbers ({error}); save it with np.save") from error
    names = ", ".join(entry.filename.removesuffix(".npy") for entry in entries[:3])
    raise ValueError(f"{path}: holds {len(entries)} arrays ({names}); save one of them alone")


def _problem(videos: np.ndarray) -> str:
    """Why an array is not uint8 [N T H W 3] in 0..255, with the remedy; empty when it is."""
    if videos.ndim != 5 or videos.shape[-1] != 3:
        remedy = ""
        if videos.ndim == 4 and videos.shape[-1] == 3:
            remedy = "; a single video needs an axis in front: video[None]"
        elif videos.ndim == 5 and 3 in (channels := videos.shape[1:3]):
            remedy = f"; move the channels to the end: np.moveaxis(videos, {1 + channels.index(3)}, -1)"
        elif videos.ndim == 5 and videos.shape[-1] == 1:
            remedy = "; repeat the grey channel: np.repeat(videos, 3, axis=-1)"
        return f"must be uint8 of shape [N T H W 3]: videos, frames, height, width, RGB{remedy}"
    if 0 in videos.shape:
        return "holds no pixel"
    if videos.dtype == np.uint8:
        dark = all(video.max() <= 1 for video in videos)
        return "no value is above 1; scale to 0..255 and round before astype(np.uint8)" if dark else ""
    if videos.dtype.kind not in "biuf":
        return "must be uint8 in 0..255"
    low, high = float(videos[0].min()), float(videos[0].max())
    remedy = "bring the values to 0..255, round, astype uint8"
    if low >= -1 and high <= 1:
        scaled = "255 * videos" if low >= 0 else "127.5 * (videos + 1)"
        remedy = f"scale to 0..255, round, astype uint8: np.rint({scaled}).astype(np.uint8)"
    return f"must be uint8 in 0..255, but the first video has values from {low:.4g} to {high:.4g}; {remedy}"
