"""Transcoding of video files for a set: each is decoded whole and, where it is not fit to be stored, made H.264 mp4."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_video.config.bounds import at_least
from dit_video.data.video_set import Entry, file_digest
from dit_video.ingest.decoding_process import DecodingProcesses, decoding_processes
from dit_video.ingest.probe import CRF, PRESET, storable
from dit_video.ingest.source_files import SourceFile, files
from dit_video.video.pictures import VideoError


@dataclass(frozen=True, kw_only=True)
class Transcoding:
    """How video files are decoded and stored.

    Attributes:
        max_size: longest short side in pixels; larger videos are scaled down. None keeps sizes.
        num_workers: files decoded at once, each in a process of its own; None: one per core. It changes no file.
    """

    max_size: int | None = None
    num_workers: int | None = None

    def __post_init__(self):
        at_least(self, 2, "max_size", why="in pixels")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the stored bytes, for the manifest of a set."""
        return {"max_size": self.max_size, "crf": CRF, "preset": PRESET}

    def apply(self, items: list[SourceFile], spool: Path) -> Iterator[tuple[SourceFile, Entry, Path]]:
        """Each file's entry and the path of its mp4, in order; new files are written to the folder `spool`."""
        num_workers = self.num_workers or os.cpu_count() or 1
        with decoding_processes(num_workers) as decoding, ThreadPoolExecutor(num_workers) as pool:
            waiting: deque[tuple[SourceFile, Future[tuple[Entry, Path]]]] = deque()
            for number, (item, path) in enumerate(files(items, spool)):
                target = spool / f"{number}.mp4"
                waiting.append((item, pool.submit(_transcode, item, path, target, self.max_size, decoding)))
                if len(waiting) > num_workers:
                    item, future = waiting.popleft()
                    yield item, *future.result()
            for item, future in waiting:
                yield item, *future.result()


def _transcode(
    item: SourceFile, path: Path, target: Path, max_size: int | None, decoding: DecodingProcesses
) -> tuple[Entry, Path]:
    """Decodes a file whole; where it is not fit to be stored as it is, encodes it to `target`.

    Raises:
        OSError: no room is left for `target`.
    """
    entry = Entry(file=item.key, source=item.source.name, reason=item.reason)
    if item.reason:
        return entry, path
    try:
        entry = replace(entry, sha256=file_digest(path))
    except OSError as error:
        return replace(entry, reason=f"cannot be read: {error.strerror}"), path
    try:
        facts = decoding.run(storable, path, target, max_size)
    except VideoError as error:
        target.unlink(missing_ok=True)
        entry = replace(entry, reason=str(error))
    else:
        chosen, stored = (target, "encoded") if target.exists() else (path, "copied")
        entry = replace(entry, stored=stored, num_bytes=chosen.stat().st_size, **facts)
        if stored == "copied":
            return entry, path
    if path.parent == target.parent:
        # The copy of a tar's member has served.
        path.unlink()
    return entry, target
