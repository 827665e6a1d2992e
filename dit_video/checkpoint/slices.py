"""Streaming writer of a checkpoint larger than memory, slice by slice; the result is an ordinary checkpoint.

Orbax lays it out with zeros that take no memory, by which it has its metadata, index and seal; TensorStore then puts
the numbers into its arrays. It is of one process, and for a folder that nobody reads before all of it is written.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from dit_video.checkpoint.checkpoints import NotSaved, sealed
from dit_video.checkpoint.compatibility import named
from dit_video.checkpoint.folder import FOLDER
from dit_video.checkpoint.orbax import first_line, quiet
from dit_video.storage.failures import advice, fault
from dit_video.weights.digest import as_text, digest_part

Index = tuple[int, ...]

_PIECE = 2**22
"""Bytes that are written as one, at most."""

_PENDING = 2**23
"""Bytes that wait to be written, at most. Writing takes several times as much while it compresses them."""


Slice = tuple[str, int | None, np.ndarray]
"""A parameter's name, and one of its layers without the axis of layers; or all of it, where that number is None.

The array may be a view, and of any type whose values float32 has.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of float32 parameters by name, and which are stacked by layer.

    Attributes:
        shapes: of all layers.
        stacked: those that have a leading axis of layers.
    """

    shapes: Mapping[str, tuple[int, ...]]
    stacked: frozenset[str]


def digest_slices(slices: Iterable[Slice], shapes: Mapping[str, Index]) -> dict[str, str]:
    """Digests of the whole parameters of these shapes, as records hold them, from their slices."""
    digests = {name: np.zeros(2, np.uint32) for name in shapes}
    for name, layer, value in slices:
        for start, piece in _pieces(value, layer, _smaller(_in_whole(value, layer).shape)):
            digests[name] += digest_part(piece, start, shapes[name])
        del value  # or it would stay in memory beside the next one
    return {name: as_text(digest) for name, digest in digests.items()}


def save_slices(
    workdir: Path,
    items: Sequence[str],
    layout: Layout,
    slices: Callable[[], Iterable[Slice]],
    *,
    experiment: Mapping[str, Any],
) -> dict[str, str]:
    """Writes step 0 of a run in a new folder, in which every item has the same parameters.

    Memory holds one slice at a time, and a few pieces of 4 MiB of it that are written.

    Args:
        slices: all slices of all parameters; asked for twice, for digests come first.
        experiment: its JSON.

    Returns:
        the digests of the parameters.

    Raises:
        NotSaved: the folder cannot be written to; says what to do.
    """
    digests = digest_slices(slices(), layout.shapes)
    folder = (workdir / FOLDER).resolve()  # Orbax takes no relative path
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in layout.shapes.items()}
    trees = dict.fromkeys(items, zeros)
    metadata = sealed(0, 0, experiment, trees, dict.fromkeys(items, named(digests, str)))
    with _as_not_saved(folder), quiet():
        orbax = ocp.training.Checkpointer(str(folder), context=_context(layout))
        with contextlib.closing(orbax):
            orbax.save_checkpointables(0, trees, custom_metadata=metadata)
    _fill([folder / "0" / item for item in items], slices())
    return digests


def _context(layout: Layout) -> ocp.Context:
    """Orbax context with chunks of one layer, so that no chunk is written twice."""

    def storage(key: tuple[Any, ...], value: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions:
        del value
        axes = (0,) if key[-1].key in layout.stacked else ()
        return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=_PIECE, shard_axes=axes)

    context = ocp.Context()
    context.array_options.saving.scoped_storage_options_creator = storage
    # A copy of these zeros would take as much memory as the numbers.
    context.memory_options.deepcopy_host_arrays = False
    return context


def _fill(folders: Sequence[Path], slices: Iterable[Slice]) -> None:
    """Writes all slices into each of these items of a checkpoint."""
    context, opened, arrays = tensorstore.Context(), None, list[tensorstore.TensorStore]()
    with _Writes(folders[0]) as writes:
        for name, layer, value in slices:
            if name != opened:
                with _as_not_saved(folders[0]):
                    opened, arrays = name, [_open(folder, name, context) for folder in folders]
            for start, piece in _pieces(value, layer, arrays[0].chunk_layout.write_chunk_template.shape):
                writes.begin(arrays, start, piece)
            del value  # or it would stay in memory beside the next one
        writes.finish()


class _Writes:
    """Pending writes of pieces; on exit all have ended, with or without an error."""

    def __init__(self, folder: Path):
        self._folder, self._size = folder, 0
        self._pending: list[tensorstore.WriteFutures] = []

    def __enter__(self) -> "_Writes":
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._pending:
            future.exception()

    def begin(self, arrays: Iterable[tensorstore.TensorStore], start: Index, piece: np.ndarray) -> None:
        """Starts writing a piece into every array; it is not copied and must not be changed."""
        if self._size + piece.nbytes > _PENDING:
            self.finish()
        index = tuple(slice(first, first + length) for first, length in zip(start, piece.shape))
        self._pending += [array[index].write(piece, can_reference_source_data_indefinitely=True) for array in arrays]
        self._size += piece.nbytes

    def finish(self) -> None:
        with _as_not_saved(self._folder):
            for future in self._pending:
                future.result()
        self._pending, self._size = [], 0


def _open(folder: Path, name: str, context: tensorstore.Context) -> tensorstore.TensorStore:
    """Opens an array that Orbax has laid out."""
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": f"{name}/"}
    # By default zeros are not stored, and Orbax takes what is not there for lost.
    spec = {"driver": "zarr3", "kvstore": store, "store_data_equal_to_fill_value": True}
    return tensorstore.open(spec, open=True, context=context).result()


def _pieces(value: np.ndarray, layer: int | None, shape: Index) -> Iterator[tuple[Index, np.ndarray]]:
    """A slice in float32, in pieces of `shape` or less, each with its place in the whole parameter."""
    whole = _in_whole(value, layer)
    for start in itertools.product(*(range(0, size, step) for size, step in zip(whole.shape, shape, strict=True))):
        index = tuple(slice(first, first + length) for first, length in zip(start, shape))
        yield (start if layer is None else (layer, *start[1:])), np.array(whole[index], np.float32, order="C")


def _in_whole(value: np.ndarray, layer: int | None) -> np.ndarray:
    """A slice with all axes of its parameter."""
    return value if layer is None else value[None]


def _smaller(shape: Index) -> Index:
    """`shape` with its longest axes halved until it is no larger than a piece."""
    lengths = list(shape)
    while np.prod(lengths) * 4 > _PIECE:
        longest = int(np.argmax(lengths))
        lengths[longest] = -(-lengths[longest] // 2)
    return tuple(lengths)


@contextlib.contextmanager
def _as_not_saved(folder: Path) -> Iterator[None]:
    """Turns a failure of the store into NotSaved with a remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = fault(error)
        if cause is None:
            raise
        raise NotSaved(f"{folder}: not written: {first_line(cause)}; {advice(error)}, and try again") from error
