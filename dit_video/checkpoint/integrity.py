"""Inspection and verification of a checkpoint: its contents and the digests of its arrays, without its experiment."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.compatibility import dtype_and_shape, some
from dit_video.weights.digest import digest_leaves, name_weights

# Name of an array within its item: the keys on the way to it.
Name = tuple[str, ...]

# Bytes of arrays that are read at once.
_PORTION = 2**28


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
    metadata, trees = checkpoints.index(step)
    items = {}
    for item, saved in sorted(metadata["digests"].items(), key=lambda pair: pair[0] != "params"):
        if trees.get(item) is None:
            raise checkpoints.damaged(step, f"the index of {item} cannot be read")
        arrays = _by_name(trees[item])
        shapes = {_name(text): shape for text, shape in metadata.get("shapes", {}).get(item, {}).items()}
        digests = {_name(text): value for text, value in saved.items()}
        wrong = [n for n in sorted(digests.keys() | arrays.keys()) if n not in digests or n not in arrays]
        wrong += [n for n, shape in shapes.items() if n in arrays and dtype_and_shape(arrays[n]) != shape]
        if wrong:
            names = some(["/".join(name) for name in wrong])
            raise checkpoints.damaged(step, f"the index of {item} is not that of the arrays saved: {names}")
        weights = {"/".join(n): (tuple(x.shape), str(x.dtype), digests[n]) for n, x in arrays.items()}
        digest = name_weights(weights) if item in ("params", "ema") else None
        items[item] = Item(len(arrays), sum(map(_num_bytes, arrays.values())), digest)
    return Contents(metadata["next_batch"], metadata["experiment"], items)


def verify(checkpoints: Checkpoints, step: int, advance: Callable[[int], object]) -> None:
    """Verifies a checkpoint: reads every array, a portion at a time onto one device, and compares digests.

    Args:
        advance: called with the number of arrays that were read since the last call.

    Raises:
        FileNotFoundError: there is no such step.
        DamagedCheckpoint: an array cannot be read, or does not have the digest it was saved with.
    """
    contents(checkpoints, step)
    metadata, trees = checkpoints.index(step)
    # Of one array at a time: few shapes are compiled, however many arrays there are.
    digest = jax.jit(digest_leaves)
    for item, saved in metadata["digests"].items():
        expected = {_name(text): value for text, value in saved.items()}
        leaves, structure = jax.tree_util.tree_flatten(trees[item])
        for portion in _portions(leaves):
            loaded = checkpoints.read(step, {item: structure.unflatten(portion)})[item]
            read = {name: x for name, x in _by_name(loaded).items() if isinstance(x, jax.Array)}
            bad = ["/".join(name) for name, x in read.items() if int(digest(x)) != expected[name]]
            if bad:
                raise checkpoints.damaged(step, f"{item} is damaged in {some(sorted(bad))}")
            advance(len(read))


def _portions(leaves: Sequence[Any]) -> Iterator[list[Any]]:
    """The arrays to read, in portions; `...` stands where another portion reads."""
    device = SingleDeviceSharding(jax.devices()[0])
    targets = [jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=device) for x in leaves]
    first = 0
    while first < len(targets):
        last, size = first + 1, _num_bytes(targets[first])
        while last < len(targets) and size + _num_bytes(targets[last]) <= _PORTION:
            size += _num_bytes(targets[last])
            last += 1
        yield [target if first <= i < last else ... for i, target in enumerate(targets)]
        first = last


def _num_bytes(x: Any) -> int:
    return jnp.dtype(x.dtype).itemsize * math.prod(x.shape)


def _by_name(tree: Any) -> dict[Name, Any]:
    return {_name(jax.tree_util.keystr(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(text: str) -> Name:
    """Keys of a path that JAX wrote: fields of a NamedTuple come back from disk as keys of a dict."""
    return tuple("".join(parts) for parts in re.findall(r"\['(.*?)'\]|\[(\d+)\]|\.(\w+)", text))
