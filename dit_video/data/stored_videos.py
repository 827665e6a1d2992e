"""Records of one split, read from the ArrayRecord shards of a set."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dit_video.data import shard_files
from dit_video.data.record import NO_LABEL, Examples, Record, Split
from dit_video.data.tfds_sets import DAMAGE, open_set
from dit_video.data.video_set import Manifest
from dit_video.video.pictures import VideoError
from dit_video.video.survey import paced


class StoredVideos(Examples):
    """One split of a video set."""

    def __init__(self, directory: str, manifest: Manifest, split: Split):
        self._space, self._entries = manifest.tracks, manifest.stored(split)
        if not self._entries:
            raise ValueError(
                f"{directory}: holds no {split} videos; ingest with another held_out_fraction or split column"
            )
        self._where = f"{directory} ({split})"
        self._labels = {name: number for number, name in enumerate(manifest.class_names)}
        files = {name: file for name, file in manifest.files.items() if f"-{split.value}." in name}
        # Not their contents: a record that is damaged is named when it is read, and another may stand in for it.
        shard_files.check_sizes(Path(directory), files, "the folder was changed after it was made: make it again")
        builder = open_set(Path(directory))
        if split.value not in builder.info.splits:
            raise ValueError(f"{self._where}: the manifest names such videos, but dataset_info.json has no such split")
        try:
            self._records: Any = builder.as_data_source(split=split.value)
            num_records = len(self._records)
        except DAMAGE as error:
            raise ValueError(f"{self._where}: its records are damaged: {error}; make the set again") from error
        if num_records != len(self._entries):
            raise ValueError(
                f"{self._where}: {num_records} records, but the manifest names {len(self._entries)}; "
                "the folder was changed after it was made: make it again"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        try:
            fields: Any = self._records[index]
            # bytes() of a number would take that much memory.
            if not isinstance(fields["video"], bytes):
                raise TypeError(f"its video is {type(fields['video']).__name__}")
            tracks = None if self._space is None else self._space.read(fields, int(fields["num_frames"]))
            record = Record(
                key=fields["key"].decode(),
                video=fields["video"],
                label=int(fields["label"]),
                caption=fields["caption"].decode(),
                num_frames=int(fields["num_frames"]),
                fps=float(fields["fps"]),
                actions=None if tracks is None else tracks.actions,
                poses=None if tracks is None else tracks.poses,
            )
        except DAMAGE as error:
            raise ValueError(f"{self._where}: record {index} ({entry.file!r}) is damaged: {error}") from error
        if record.key != entry.file:
            raise ValueError(f"{self._where}: record {index} is {record.key!r}, but the manifest says {entry.file!r}")
        return record

    @property
    def num_frames(self) -> Int[np.ndarray, "num_records"]:
        return np.array([entry.frames for entry in self._entries])

    @property
    def fps(self) -> Float[np.ndarray, "num_records"]:
        # As records have them, in 32 bits.
        return np.array([entry.fps for entry in self._entries], np.float32).astype(float)

    @property
    def sizes(self) -> Int[np.ndarray, "num_records 2"]:
        return np.array([(entry.height, entry.width) for entry in self._entries])

    @property
    def labels(self) -> Int[np.ndarray, "num_records"]:
        return np.array([NO_LABEL if e.label is None else self._labels[e.label] for e in self._entries], int)

    @property
    def captions(self) -> list[str]:
        return [entry.caption for entry in self._entries]


class FeatureVideos(Examples):
    """One split of a set that others described, whose clips are features of theirs.

    Attributes:
        where: the set and its split, for keys and messages.
        video, label, caption: names of features; None for what the set has not.
        fps: of image sequences, which do not say.
    """

    reads_to_count = True

    def __init__(self, records: Any, where: str, *, video: str, label: str | None, caption: str | None, fps: float):
        self._records, self._where, self._fps = records, where, fps
        self._video, self._label, self._caption = video, label, caption
        self._known: tuple[np.ndarray, np.ndarray] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        key = f"{self._where}/{index}"
        fields: Any = self._records[index]
        video, fps, frames = fields[self._video], self._fps, None
        try:
            if isinstance(video, bytes):
                num_frames, fps, frames = paced(video)
            else:
                video = np.stack(list(video))
                num_frames = len(video)
        except VideoError as error:
            raise ValueError(f"record {key!r}: feature {self._video!r}: {error}") from error
        return Record(
            key=key,
            video=video,
            label=int(fields[self._label]) if self._label else NO_LABEL,
            caption=fields[self._caption].decode() if self._caption else "",
            num_frames=num_frames,
            frames=frames,
            fps=fps,
        )

    @property
    def num_frames(self) -> Int[np.ndarray, "num_records"]:
        """Read from every record once, for TFDS does not store it."""
        return self._facts()[0]

    @property
    def fps(self) -> Float[np.ndarray, "num_records"]:
        """Read from every record once."""
        return self._facts()[1]

    def _facts(self) -> tuple[Int[np.ndarray, "num_records"], Float[np.ndarray, "num_records"]]:
        with self._lock:
            if self._known is None:
                facts = [(record.num_frames, record.fps) for record in self]
                self._known = np.array([n for n, _ in facts], int), np.array([fps for _, fps in facts], float)
        return self._known
