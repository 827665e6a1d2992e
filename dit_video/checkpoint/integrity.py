"""Inspection and verification of a checkpoint: its contents and the digests of its arrays, without its experiment."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.reader import array_name
from dit_video.weights.digest import name_weights


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of a checkpoint: parameters, their EMA, or the optimizer state.

    Attributes:
        digest: of weights, as cards and exports name them.
    """

    num_arrays: int
    num_bytes: int
    digest: str | None


@dataclasses.dataclass(frozen=True)
class Contents:
    """Contents of a checkpoint, known from metadata alone."""

    next_batch: int
    experiment: dict[str, Any] | None
    items: dict[str, Item]

    @property
    def num_arrays(self) -> int:
        return sum(item.num_arrays for item in self.items.values())


def contents(checkpoints: Checkpoints, step: int) -> Contents:
    """Contents of a checkpoint, from its metadata and index, without reading arrays.

    Raises:
        FileNotFoundError: there is no such step.
        DamagedCheckpoint: metadata or index is not what was written.
    """
    metadata, arrays = checkpoints.index(step)
    items = {}
    for item, found in sorted(arrays.items(), key=lambda pair: pair[0] != "params"):
        digests = {array_name(text): value for text, value in metadata["digests"][item].items()}
        weights = {"/".join(n): (tuple(x.shape), str(x.dtype), digests[n]) for n, x in found.items()}
        digest = name_weights(weights) if item in ("params", "ema") else None
        items[item] = Item(len(found), sum(map(_num_bytes, found.values())), digest)
    return Contents(metadata["next_batch"], metadata["experiment"], items)


def _num_bytes(x: Any) -> int:
    return jnp.dtype(x.dtype).itemsize * math.prod(x.shape)
