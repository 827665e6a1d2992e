"""Reading of checkpoint steps: their index, their arrays, and what is damage.

Damage is what was read and does not fit. A store that fails shows itself in many words, of which Orbax swallows some,
so nothing is judged by words alone: what seems damaged is read once more, after all files of the step could be read.
"""

import contextlib
import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import jax.tree_util as tree_util
import numpy as np
from orbax.checkpoint import v1 as ocp

from dit_video.checkpoint.compatibility import dtype_and_shape, some
from dit_video.checkpoint.folder import Steps
from dit_video.checkpoint.orbax import RAISED, each_for_itself, first_line, ignore_late_tasks, quiet
from dit_video.distributed import processes
from dit_video.storage.failures import Unreadable, as_os_errors, chain, is_unfit, read_patiently
from dit_video.weights.digest import has_digest, seal

Loaded = TypeVar("Loaded")

Name = tuple[str, ...]
"""Name of an array within its item: the keys on the way to it."""

# Metadata as a save writes it; runs of version 0.1 have the first three alone.
_UNSEALED = {"next_batch", "experiment", "digests"}
_SEALED = _UNSEALED | {"step", "shapes", "seal"}
# Of a run whose checkpoints say of which run they are.
_BOUND = _SEALED | {"run"}

# Bytes of arrays that are read at once.
_PORTION = 2**28


class DamagedCheckpoint(ValueError):
    """A checkpoint is corrupted: it cannot be read, or a digest differs from the one it was saved with.

    Attributes:
        damage: which step and what is wrong with it, without the remedy.
    """

    def __init__(self, damage: str, remedy: str = "`dit-video inspect RUN --verify` says which steps are good"):
        super().__init__(f"{damage}; {remedy}")
        self.damage = damage


class Reader:
    """Reads steps. Where the store fails it waits for a minute, and then raises an OSError.

    Every process of a run reads for itself, and all of them learn of damage that one has found.
    """

    def __init__(self, folder: Steps, warn: Callable[[str], None]):
        """`warn` is called each time that a read has failed and is tried again."""
        self._folder, self._warn = folder, warn

    def damaged(self, step: int, what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"{self._folder.path / str(step)}: {what}")

    def sure(self, step: int, load: Callable[[], Loaded]) -> Loaded:
        """The result of `load`, which is tried once more where it finds damage, if all files of the step can be read.

        Raises:
            DamagedCheckpoint: the second attempt finds damage, too.
        """
        return _twice(load, lambda: everywhere(lambda: self._read_files(step)))

    def index(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metadata of a step, and Orbax's index of each item: a tree of shapes and dtypes, None where it is unreadable.

        Raises:
            DamagedCheckpoint: the metadata is not what was written.
        """
        return everywhere(lambda: read_patiently(lambda: self._index(step), self._warn))

    def items(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Reads arrays into the shapes and shardings of `items`, without checking their digests.

        Raises:
            DamagedCheckpoint: they cannot be read.
        """
        return everywhere(lambda: read_patiently(lambda: self._items(step, items), self._warn))

    def named_arrays(self, step: int, metadata: Mapping[str, Any], trees: Mapping[str, Any]) -> dict[str, Any]:
        """The index of each item by names of arrays, compared with the metadata.

        Raises:
            DamagedCheckpoint: they are not of the same arrays.
        """
        items = {}
        for item, saved in metadata["digests"].items():
            if trees.get(item) is None:
                raise self.damaged(step, f"the index of {item} cannot be read")
            arrays = _by_name(trees[item])
            shapes = {array_name(text): shape for text, shape in metadata.get("shapes", {}).get(item, {}).items()}
            digests = {array_name(text) for text in saved}
            wrong = sorted(digests ^ arrays.keys())
            wrong += [n for n, shape in shapes.items() if n in arrays and dtype_and_shape(arrays[n]) != shape]
            if wrong:
                names = some(["/".join(name) for name in wrong])
                raise self.damaged(step, f"the index of {item} is not that of the arrays saved: {names}")
            items[item] = arrays
        return items

    def read_back(self, step: int, metadata: Mapping[str, Any], *, arrays: bool) -> None:
        """Reads a step that this process alone has just written; the arrays only where asked for. Costs no device.

        Raises:
            DamagedCheckpoint: it is not what was written.
            OSError: the store does not answer.
        """

        def read() -> None:
            found, trees = read_patiently(lambda: self._index(step), self._warn)
            if found.get("seal") != metadata["seal"]:
                raise self.damaged(step, "it is not what was written")
            self.named_arrays(step, found, trees)
            if arrays:
                self.compare_digests(step, found, trees, lambda number: None)

        _twice(read, lambda: self._read_files(step))

    def compare_digests(
        self, step: int, metadata: Mapping[str, Any], trees: Mapping[str, Any], advance: Callable[[int], object]
    ) -> None:
        """Reads every array of a step into this host's memory, a portion at a time, and compares its digest.

        Args:
            advance: called with the number of arrays that were read since the last call.

        Raises:
            DamagedCheckpoint: an array cannot be read, or does not have the digest it was saved with.
        """
        for item, saved in metadata["digests"].items():
            expected = {array_name(text): value for text, value in saved.items()}
            leaves, structure = tree_util.tree_flatten(trees[item])
            for portion in _portions(leaves):
                target = {item: structure.unflatten(portion)}
                loaded = read_patiently(lambda t=target: self._items(step, t), self._warn)[item]
                read = {name: x for name, x in _by_name(loaded).items() if x is not ...}
                bad = ["/".join(n) for n, x in read.items() if not has_digest(x, expected[n])]
                if bad:
                    raise self.damaged(step, f"{item} is damaged in {some(sorted(bad))}")
                advance(len(read))

    def _read_files(self, step: int) -> None:
        read_patiently(lambda: self._folder.read(step), self._warn)

    def _index(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        index = self._ask(step, lambda path: ocp.checkpointables_metadata(path), "its metadata cannot be read")
        if None in index.metadata.values():
            with quiet():
                gc.collect()  # tasks that were left behind complain when they are collected
            ignore_late_tasks()
        metadata: Any = index.custom_metadata
        if not isinstance(metadata, dict) or metadata.keys() not in (_BOUND, _SEALED, _UNSEALED):
            raise self.damaged(step, "its metadata cannot be read")
        if "seal" in metadata:
            if metadata["seal"] != seal({name: value for name, value in metadata.items() if name != "seal"}):
                raise self.damaged(step, "its metadata has changed since it was written")
            if metadata["step"] != step:
                raise self.damaged(step, f"it is step {metadata['step']} under another name")
        return metadata, cast(dict[str, Any], index.metadata)

    def _items(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        return self._ask(step, lambda path: ocp.load_checkpointables(path, items), "cannot be read")

    def _ask(self, step: int, read: Callable[[Any], Any], complaint: str) -> Any:
        """What Orbax reads of a step.

        Raises:
            DamagedCheckpoint: what it has read does not fit.
            Unreadable: it could not read.
        """
        self._folder.check()
        if (odd := self._folder.unopenable(step)) is not None:
            raise self.damaged(step, f"{odd} is no plain file")
        with as_os_errors(), quiet(), each_for_itself():
            try:
                return read(self._folder.path / str(step))
            except RAISED as error:
                # Orbax wraps whatever went wrong into KeyError and bare Exceptions; why is further down the chain.
                causes = [cause for cause in chain(error) if type(cause) is not Exception]
                for cause in causes:
                    # TensorStore has RuntimeErrors for some errnos. Not the store: a full memory, Ctrl-C, a device.
                    of_store = isinstance(cause, OSError | ValueError | RuntimeError) or is_unfit(cause)
                    if not of_store or isinstance(cause, jax.errors.JaxRuntimeError):
                        raise cause from None
                unread = next((first_line(cause) for cause in causes if not is_unfit(cause)), None)
                why = first_line(causes[-1])
                del causes, cause  # they hold what was left undone, which complains when it is collected
            gc.collect()
        ignore_late_tasks()
        if unread is not None:
            raise Unreadable(f"{self._folder.path / str(step)}: {unread}")
        raise self.damaged(step, f"{complaint}: {why}")


def _twice(load: Callable[[], Loaded], between: Callable[[], None]) -> Loaded:
    """The result of `load`, which is called again, after `between`, where it finds damage."""
    with contextlib.suppress(DamagedCheckpoint):
        return load()
    between()
    return load()


def everywhere(load: Callable[[], Loaded]) -> Loaded:
    """Calls `load` in every process; damage that one process finds, which may alone read that part, raises in all."""
    loaded, message = None, ""
    try:
        loaded = load()
    except DamagedCheckpoint as error:
        message = error.damage
    if messages := list(filter(None, processes.gather(message))):
        raise DamagedCheckpoint(messages[0])
    return cast(Loaded, loaded)


def _portions(leaves: Sequence[Any]) -> Iterator[list[Any]]:
    """The arrays to read, in portions; `...` stands where another portion reads."""
    # Of one number each, so that no memory is asked for.
    targets = [np.broadcast_to(np.zeros((), jnp.dtype(x.dtype)), x.shape) for x in leaves]
    first = 0
    while first < len(targets):
        last, size = first + 1, targets[first].nbytes
        while last < len(targets) and size + targets[last].nbytes <= _PORTION:
            size += targets[last].nbytes
            last += 1
        yield [target if first <= i < last else ... for i, target in enumerate(targets)]
        first = last


def _by_name(tree: Any) -> dict[Name, Any]:
    return {array_name(tree_util.keystr(path)): leaf for path, leaf in tree_util.tree_leaves_with_path(tree)}


def array_name(text: str) -> Name:
    """Keys of a path that JAX wrote: fields of a NamedTuple come back from disk as keys of a dict."""
    return tuple("".join(parts) for parts in re.findall(r"\['(.*?)'\]|\[(\d+)\]|\.(\w+)", text))
