"""Feature extraction of clips for FVD: extractor protocol, batching over a mesh, and a cache for real sets.

A Frechet distance needs the features of all clips at once, and only them: clips go to the mesh batch by batch, rows
that fill up a batch are dropped, and what is kept is [N D] on the host, pooled over all devices and processes.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import safetensors
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from dit_video.arrays import Video
from dit_video.distributed.sharding import even_batch, fetch, place_whole
from dit_video.storage.user_cache import user_cache
from dit_video.weights.files import write_safetensors

VERSION = 1
"""Another one wherever code that decides features changes: decoding, cutting, I3D. What was kept is then not used."""


@runtime_checkable
class Extractor(Protocol):
    """Feature extractor: a frozen network from uint8 clips to features; a field of an experiment.

    `evaluation.i3d.I3DLogits` is the one that FVD is defined on. Another one (VideoMAE for content-debiased FVD,
    V-JEPA) plugs in as a frozen dataclass with these members; `weights.files.convert` turns a published file into
    safetensors after checking its digest, and `docs/fvd.md` shows how.
    """

    @property
    def metric(self) -> str:
        """Name of the Frechet distance of these features, such as "FVD"."""
        ...

    @property
    def min_frames(self) -> int:
        """Shorter clips are refused."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """JSON values that determine the features of a clip: digest of the weights, preprocessing."""
        ...

    def on(self, mesh: Mesh) -> Callable[[Video], Float[Array, "B D"]]:
        """The network with its weights on `mesh`, for batches split over the mesh's batch axes."""
        ...


@dataclasses.dataclass(frozen=True)
class FromFile:
    """Feature extractor from a user's Python file. The file's digest is in its protocol: edit it, and features that
    were kept before are not used, nor values ranked with those from before.
    """

    extractor: Extractor
    sha256: str

    @property
    def metric(self) -> str:
        return self.extractor.metric

    @property
    def min_frames(self) -> int:
        return self.extractor.min_frames

    def protocol(self) -> Mapping[str, Any]:
        return {**self.extractor.protocol(), "extractor_file": self.sha256}

    def on(self, mesh: Mesh) -> Callable[[Video], Float[Array, "B D"]]:
        return self.extractor.on(mesh)


class Pool:
    """Batched feature extraction of clips, the first `num_frames` of each, on a mesh.

    Clips come in any number; `batch_size` of them at a time cost least.
    """

    def __init__(self, extractor: Extractor, mesh: Mesh, *, num_frames: int, batch_size: int):
        """`batch_size` is rounded up to what the mesh splits evenly."""
        self._extract, self._mesh = extractor.on(mesh), mesh
        self._num_frames, self.batch_size = num_frames, even_batch(batch_size, mesh)

    def features(self, video: UInt8[np.ndarray, "n T H W 3"]) -> Float[np.ndarray, "n D"]:
        """One row for each clip; every process gives all clips and gets all rows."""
        parts = []
        for start in range(0, len(video), self.batch_size):
            batch = video[start : start + self.batch_size, : self._num_frames]
            # One shape is compiled: a short batch is filled up with its last clip, and the surplus dropped.
            rows = np.minimum(np.arange(self.batch_size), len(batch) - 1)
            with jax.set_mesh(self._mesh):
                pooled = fetch(self._extract(place_whole(batch[rows], self._mesh)))
            parts.append(pooled[: len(batch)].astype(np.float32))
        return np.concatenate(parts)


def cached(key: Mapping[str, Any], extract: Callable[[], Float[np.ndarray, "N D"]]) -> Float[np.ndarray, "N D"]:
    """Cached features under this key, or those of `extract()`, which are then cached.

    Args:
        key: JSON values that determine the features: extractor, preprocessing, digest of the clips' own bytes. Equal
            keys must mean equal features; the key is stored beside them and compared whole.
    """
    text = json.dumps({"program": version("dit-video"), "features_version": VERSION, **key}, sort_keys=True)
    file = cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    stored = _agreed(_read(file, text))
    if stored is not None:
        return stored
    features = np.ascontiguousarray(extract())
    if jax.process_index() == 0:
        try:
            write_safetensors({"features": features}, file, metadata={"key": text, "sha256": _sha256(features)})
        except OSError as error:
            warnings.warn(f"features are not kept for the next time, {file.parent}: {error}", stacklevel=2)
    return features


def cache_folder() -> Path:
    """Folder of the feature cache."""
    return user_cache() / "features"


def _read(file: Path, key: str) -> Float[np.ndarray, "N D"] | None:
    """Reads cached features of `key`; None where there are none, or they are damaged or another user's alone."""
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            metadata, features = stored.metadata() or {}, stored.get_tensor("features")
    except (OSError, safetensors.SafetensorError):
        return None
    return features if metadata == {"key": key, "sha256": _sha256(features)} else None


def _agreed(stored: Float[np.ndarray, "N D"] | None) -> Float[np.ndarray, "N D"] | None:
    """Broadcasts the first process's cached features: extraction is collective, so all processes extract or none."""
    if jax.process_count() == 1:
        return stored
    shape = multihost_utils.broadcast_one_to_all(np.array((0, 0) if stored is None else stored.shape))
    if not shape.any():
        return None
    mine = stored if jax.process_index() == 0 and stored is not None else np.zeros(shape, np.float32)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine))


def _sha256(features: Float[np.ndarray, "N D"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()
