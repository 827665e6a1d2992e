"""Checkpoints of a run: training state, data position and experiment saved as one, with Orbax v1 behind this module.

A step is one folder that appears whole or not at all. Its metadata holds the experiment, the index of the next
batch, shape, dtype and digest of every array, and a seal on all of that: Orbax itself loads flipped bits without a
word. A damaged step is distinguished from one of another network, is set aside and never deleted.
"""

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh

from dit_video.checkpoint.compatibility import OtherNetwork, check_fit, dtype_and_shape, named, some
from dit_video.checkpoint.folder import DAMAGED_FOLDER, FOLDER, steps_of
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.orbax import DAMAGE, NO_DAMAGE, each_for_itself, first_line, ignore_late_tasks, quiet
from dit_video.checkpoint.retention import Retention
from dit_video.checkpoint.writer import Writer
from dit_video.distributed import processes
from dit_video.distributed.sharding import replicated
from dit_video.nn.module import Params
from dit_video.storage.failures import LAST_PAUSES, as_os_errors, chain, read_patiently
from dit_video.weights.digest import digest_leaves, seal, weights_digest

__all__ = [
    "DAMAGED_FOLDER",
    "FOLDER",
    "Checkpoints",
    "DamagedCheckpoint",
    "NotSaved",
    "OtherNetwork",
    "Saved",
    "digest_leaves",
    "sealed",
    "weights_digest",
]

State = TypeVar("State")
Loaded = TypeVar("Loaded")

# Metadata as `save` writes it; runs of version 0.1 have the first three alone.
_UNSEALED = {"next_batch", "experiment", "digests"}
_SEALED = _UNSEALED | {"step", "shapes", "seal"}


class DamagedCheckpoint(ValueError):
    """A checkpoint is corrupted: it cannot be read, or a digest differs from the one it was saved with.

    Attributes:
        damage: which step and what is wrong with it, without the remedy.
    """

    def __init__(self, damage: str, remedy: str = "`dit-video inspect RUN --verify` says which steps are good"):
        super().__init__(f"{damage}; {remedy}")
        self.damage = damage


class NotSaved(ValueError):
    """The last checkpoint of a run could not be written."""


@dataclasses.dataclass(frozen=True)
class Saved(Generic[State]):
    """A restored checkpoint: state, step, data position and experiment."""

    state: State
    step: int
    next_batch: int
    experiment: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    The state is a NamedTuple whose fields are saved as separate items, so that evaluation and export can read
    the averaged weights alone.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        experiment: Mapping[str, Any] | None = None,
        retention: Retention = Retention(),
        listener: SaveListener = SaveListener(),
    ):
        """Opens the folder of a run, and makes it where there is none.

        Args:
            experiment: its JSON, saved with each step.
            retention: which steps are deleted when another is complete.
            listener: what is called when a save begins, ends or fails.
        """
        self._experiment, self._retention, self._listener = experiment, retention, listener
        self._folder = steps_of(workdir)
        with as_os_errors():
            self._writer = Writer(self._folder, listener)
        self._orbax = self._writer.orbax
        self._digest = jax.jit(digest_leaves)

    @property
    def steps(self) -> list[int]:
        return sorted(c.step for c in self._orbax.checkpoints)

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def unfinished(self) -> list[str]:
        """Folders of saves in progress, or of saves that were killed."""
        return self._folder.unfinished()

    def existing(self, step: int | None = None) -> int:
        """`step`, or the latest where it is None.

        Raises:
            FileNotFoundError: there is no such step.
        """
        steps = self.steps
        if not steps:
            raise FileNotFoundError(f"{self._folder.path}: no checkpoint; `dit-video train --workdir ...` makes one")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"{self._folder.path}: no step {step}; there are {', '.join(map(str, steps))}")
        return steps[-1] if step is None else step

    def save(self, step: int, state: Any, next_batch: int) -> None:
        """Starts an asynchronous save; the state may be donated as soon as this returns. An existing step is kept.

        Where the store fails training goes on: the listener is warned when this, `overdue` or `wait` is called next.
        """
        self._writer.settle()
        if step in self.steps:
            return
        items = _items(state)
        began = time.perf_counter()
        digests = jax.device_get(self._digest(items))
        digest_seconds = time.perf_counter() - began
        metadata = sealed(step, next_batch, self._experiment, items, digests)
        self._listener.begin()
        self._writer.start(step, items, metadata, self._to_delete(step), digest_seconds=digest_seconds)

    def _to_delete(self, step: int) -> set[int]:
        """Steps that the retention policy deletes once `step` is saved."""
        return set(processes.from_first(lambda: sorted(self._retention.to_delete({*self.steps, step}))))

    def overdue(self) -> bool:
        """Whether the last save has failed and enough time has passed to try another; costs nothing to ask."""
        return self._writer.overdue()

    def wait(self) -> None:
        """Waits until every save that was started is on disk, or has failed with a warning."""
        self._writer.settle()

    def finish(self, step: int, state: Any, next_batch: int) -> None:
        """Saves synchronously at the end of a run; a save that fails is retried for some minutes.

        Raises:
            NotSaved: it still fails.
        """
        for pause in (*LAST_PAUSES, None):
            self.save(step, state, next_batch)
            if self._writer.settle():
                return
            if pause is not None:
                self._listener.warn(f"it is the last checkpoint of this run: trying again in {pause:.0f} s")
                time.sleep(pause)
        latest = self.latest
        raise NotSaved(
            f"{self._folder.path}: step {step} could not be saved in {len(LAST_PAUSES) + 1} attempts; "
            + ("there is no checkpoint" if latest is None else f"the last checkpoint is of step {latest}")
            + ". Mend the store as said above, and give the same command again"
        )

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Saving is done together: nobody waits for that where one of several processes has failed.
        if error is None or not processes.joined():
            self.wait()
            self.close()

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """Experiment, data position, shapes and digests of a step (the latest by default), without reading arrays.

        Raises:
            FileNotFoundError: there is no such step.
            DamagedCheckpoint: the metadata is not what was written.
        """
        return self.index(step)[0]

    def index(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """`metadata`, and Orbax's index of each item: a tree of shapes and dtypes, None where it cannot be read."""
        step = self.existing(step)
        return _everywhere(lambda: read_patiently(lambda: self._index(step), self._listener.warn))

    def _index(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self._folder.check()
        with as_os_errors(), quiet(), each_for_itself():
            try:
                index = self._orbax.checkpointables_metadata(step)
            except DAMAGE as error:
                raise self.damaged(step, f"its metadata cannot be read: {first_line(error)}") from None
            unreadable = None in index.metadata.values()
            if unreadable:
                gc.collect()  # tasks that were left behind complain when they are collected
        if unreadable:
            ignore_late_tasks()
        metadata: Any = index.custom_metadata
        if not isinstance(metadata, dict) or metadata.keys() not in (_SEALED, _UNSEALED):
            with as_os_errors(), contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                # Orbax says nothing of a file that may not be opened, which is no damage.
                (self._folder.path / str(step) / "_CHECKPOINT_METADATA").read_bytes()
            raise self.damaged(step, "its metadata cannot be read")
        if "seal" in metadata:
            if metadata["seal"] != seal({name: value for name, value in metadata.items() if name != "seal"}):
                raise self.damaged(step, "its metadata has changed since it was written")
            if metadata["step"] != step:
                raise self.damaged(step, f"it is step {metadata['step']} under another name")
        return metadata, cast(dict[str, Any], index.metadata)

    def restore(self, shapes: Any, step: int | None = None) -> Saved:
        """Restores the whole state of a step (the latest by default), straight into the shardings of `shapes`.

        Raises:
            FileNotFoundError: there is no such step.
            DamagedCheckpoint: it cannot be read, or an array does not have the digest it was saved with.
            OtherNetwork: it is whole, but its arrays are not those of `shapes`.
        """
        step = self.existing(step)
        loaded, metadata = self._load(step, _items(shapes))
        counter = jax.device_put(np.int32(step), shapes.step.sharding)
        return Saved(shapes._replace(step=counter, **loaded), step, metadata["next_batch"], metadata["experiment"])

    def restore_params(
        self, shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, *, ema: bool, step: int | None = None
    ) -> Params:
        """Restores the weights alone, EMA or raw, replicated over `mesh`; raises what `restore` raises."""
        name = "ema" if ema else "params"
        everywhere = replicated(mesh)
        target = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere) for n, s in shapes.items()}
        return self._load(self.existing(step), {name: target})[0][name]

    def last_good(self, load: Callable[[int], Loaded]) -> tuple[Loaded, dict[int, str]]:
        """The result of `load` for the latest step that is not damaged, and the damage of each step after it.

        Raises:
            FileNotFoundError: there is no step.
            DamagedCheckpoint: there is no good one, with the list.
        """
        self.existing()
        # Messages, not exceptions: those would hold on to the arrays that were read.
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                return load(step), damaged
            except DamagedCheckpoint as error:
                damaged[step] = error.damage
        lines = "\n".join(f"  {message}" for message in damaged.values())
        raise DamagedCheckpoint(
            f"no checkpoint is good:\n{lines}", "bring one back from a copy, or start again in another --workdir"
        )

    def resume(self, shapes: Any, warn: Callable[[str], None]) -> Saved | None:
        """Restores the last good step to resume from; None where there is no step at all.

        Half-written and damaged steps are set aside, with a warning. Where every step is damaged nothing is moved: the
        next run would start afresh without a word.

        Raises:
            DamagedCheckpoint: there are steps and none is good, with the list.
            OtherNetwork: as `restore`.
        """
        unfinished = processes.from_first(lambda: self.unfinished)
        if self.latest is None and len(unfinished) > 1:
            raise DamagedCheckpoint(
                f"{self._folder.path}: {', '.join(unfinished)} are half-written and none is whole; a kill leaves one",
                "if they were copied here, copy them whole; or start again in another --workdir",
            )
        for name in unfinished:
            why = "the save was never finished"
            warn(f"half-written checkpoint {name} set aside: {self.set_aside(name, why)}")
        if self.latest is None:
            return None
        saved, damaged = self.last_good(lambda step: self.restore(shapes, step))
        for step, message in damaged.items():
            warn(f"damaged checkpoint set aside: {message}; it is now {self.set_aside(str(step), message)}")
        return saved

    def set_aside(self, name: str, why: str) -> str:
        """Moves the folder of a step aside, with a note of the reason; returns its new path."""

        moved = processes.from_first(lambda: self._folder.set_aside(name, why))
        with as_os_errors():
            self._orbax.reload()
        return moved

    def damaged(self, step: int, what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"{self._folder.path / str(step)}: {what}")

    def read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Reads arrays from disk without checking their digests.

        Raises:
            DamagedCheckpoint: they cannot be read.
        """
        return _everywhere(lambda: read_patiently(lambda: self._read(step, items), self._listener.warn))

    def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        self._folder.check()
        with as_os_errors(), quiet(), each_for_itself():
            try:
                return self._orbax.load_checkpointables(step, items)
            except DAMAGE as error:
                # Orbax wraps whatever went wrong into KeyError and bare Exceptions; why is further down the chain.
                causes = [cause for cause in chain(error) if type(cause) is not Exception]
                for cause in causes:
                    if not isinstance(cause, DAMAGE) or NO_DAMAGE.search(str(cause)):
                        raise cause from None
                why = first_line(causes[-1])
                del causes, cause  # they hold what was left undone, which complains when it is collected
            gc.collect()
        ignore_late_tasks()
        raise self.damaged(step, f"cannot be read: {why}")

    def _load(self, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        metadata = self.metadata(step)
        check_fit(items, metadata, self._folder.path / str(step))
        loaded = self.read(step, items)
        for item, tree in jax.device_get(self._digest(loaded)).items():
            saved = metadata["digests"][item]
            bad = [name for name, value in named(tree, int).items() if saved[name] != value]
            if bad:
                raise self.damaged(step, f"{item} is damaged in {some(bad)}")
        return loaded, metadata


def sealed(
    step: int,
    next_batch: int,
    experiment: Mapping[str, Any] | None,
    items: Mapping[str, Any],
    digests: Mapping[str, Any],
) -> dict[str, Any]:
    """The metadata of a step; `items` are trees of arrays, `digests` of a number for each."""
    metadata: dict[str, Any] = {
        "step": step,
        "next_batch": next_batch,
        "experiment": experiment,
        "digests": {name: named(tree, int) for name, tree in digests.items()},
        "shapes": {name: named(tree, dtype_and_shape) for name, tree in items.items()},
    }
    return metadata | {"seal": seal(metadata)}


def _items(state: Any) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "step"}


def _everywhere(load: Callable[[], Loaded]) -> Loaded:
    """Calls `load` in every process; damage that one process finds, which may alone read that part, raises in all."""
    loaded, message = None, ""
    try:
        loaded = load()
    except DamagedCheckpoint as error:
        message = error.damage
    if messages := list(filter(None, processes.gather(message))):
        raise DamagedCheckpoint(messages[0])
    return cast(Loaded, loaded)
