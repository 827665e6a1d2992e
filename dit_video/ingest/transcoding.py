"""Transcoding of video files for a set: each is decoded whole and, where it is not fit to be stored, made H.264 mp4."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_video.config.bounds import at_least
from dit_video.data.video_set import Entry, file_digest
from dit_video.ingest.decoding_process import DecodingProcesses, at_once, decoding_processes
from dit_video.ingest.probe import CRF, PRESET, storable
from dit_video.ingest.source_files import SourceFile, files
from dit_video.ingest.unfinished import Unfinished
from dit_video.video.pictures import VideoError

SAID_EVERY = 10.0
"""Seconds after which a file that is still being decoded is named again."""

_Waiting = deque[tuple[SourceFile, Future[tuple[Entry, Path | None]]]]


@dataclass(frozen=True, kw_only=True)
class Transcoding:
    """How video files are decoded and stored.

    Attributes:
        max_size: longest short side in pixels; larger videos are scaled down. None keeps sizes.
        images: whether each picture is a clip of one frame; else none is a video, and a folder of numbered ones is.
        num_workers: files decoded at once, each in a process of its own; None: one per core. It changes no file.
    """

    max_size: int | None = None
    images: bool = False
    num_workers: int | None = None

    def __post_init__(self):
        at_least(self, 2, "max_size", why="in pixels")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the stored bytes, for the manifest of a set."""
        # As in manifests from before there were pictures, where there are none.
        images = {"images": True} if self.images else {}
        return {"max_size": self.max_size, "crf": CRF, "preset": PRESET, **images}

    def apply(
        self, items: Sequence[SourceFile], done: Unfinished, waits_for: Callable[[SourceFile], object]
    ) -> Iterator[tuple[SourceFile, Entry, Path | None]]:
        """Each file's entry and the path of its mp4, in order.

        Args:
            done: what is decoded already is not decoded again, what is goes there.
            waits_for: called with the next file, and every `SAID_EVERY` seconds again as long as it takes.

        Returns:
            Entries without split; no path where the file is not stored, or only in a set that is extended.
        """
        num_workers = at_once(self.num_workers)
        with decoding_processes(num_workers) as decoding, ThreadPoolExecutor(num_workers) as pool:
            waiting: _Waiting = deque()
            try:
                for number, (item, path) in enumerate(files(items, done.work)):
                    target = done.work / f"{number}.mp4"
                    waiting.append((item, pool.submit(_transcode, item, path, target, self, decoding, done)))
                    if len(waiting) > num_workers:
                        yield _next(waiting, waits_for)
                while waiting:
                    yield _next(waiting, waits_for)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                decoding.stop()
                raise


def _next(waiting: _Waiting, waits_for: Callable[[SourceFile], object]) -> tuple[SourceFile, Entry, Path | None]:
    """The first file, once it is decoded."""
    item, future = waiting.popleft()
    waits_for(item)
    while not wait([future], SAID_EVERY).done:
        waits_for(item)
    return item, *future.result()


def _transcode(
    item: SourceFile, path: Path, target: Path, how: Transcoding, decoding: DecodingProcesses, done: Unfinished
) -> tuple[Entry, Path | None]:
    """Decodes a file whole; where it is not fit to be stored as it is, encodes it to `target`.

    Raises:
        OSError: no room is left for `target`.
    """
    entry = Entry(file=item.key, source=item.source.name, reason=item.reason)
    if item.reason:
        return entry, None
    try:
        entry = replace(entry, sha256=file_digest(path))
    except OSError as error:
        return replace(entry, reason=f"cannot be read: {error.strerror}"), None
    fields = done.known.get(entry.sha256)
    if fields is None:
        try:
            facts = decoding.run(storable, path, target, how.max_size, how.images)
        except VideoError as error:
            target.unlink(missing_ok=True)
            _served(path, done)
            # Not kept: where the decoder was killed, as this process may be in the next moment, it is no fact.
            return replace(entry, reason=str(error)), None
        encoded = target if target.exists() else None
        fields = done.keep(entry.sha256, facts, encoded, (encoded or path).stat().st_size)
    entry = replace(entry, **fields)
    if entry.stored == "copied":
        return entry, path
    _served(path, done)
    encoded = done.encoded(entry.sha256)
    return entry, encoded if encoded.exists() else None


def _served(path: Path, done: Unfinished) -> None:
    """Deletes the copy of a tar's member."""
    if path.parent == done.work:
        path.unlink()
