"""Checkpoints of a run: training state, data position and experiment saved as one, with Orbax v1 behind this module.

A step is one folder that appears whole or not at all. Its metadata holds the experiment, the index of the next
batch, shape, dtype and digest of every array, and a seal on all of that: Orbax itself loads flipped bits without a
word. A damaged step is distinguished from one of another network and from one that cannot be read now, is set aside and
never deleted.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from dit_video.checkpoint.compatibility import OtherNetwork, check_fit, dtype_and_shape, named, some
from dit_video.checkpoint.folder import DAMAGED_FOLDER, FOLDER, UNFINISHED, steps_of
from dit_video.checkpoint.identity import Identity, OtherRun, id_of
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.reader import DamagedCheckpoint, Reader
from dit_video.checkpoint.retention import Retention
from dit_video.checkpoint.writer import Writer
from dit_video.distributed import processes
from dit_video.distributed.sharding import replicated
from dit_video.nn.module import Params
from dit_video.storage.failures import LAST_PAUSES, Unreadable, as_os_errors, read_patiently
from dit_video.weights.digest import Recorded, as_text, differing, digest_leaves, seal, weights_digest

__all__ = [
    "DAMAGED_FOLDER",
    "FOLDER",
    "Checkpoints",
    "DamagedCheckpoint",
    "NotSaved",
    "OtherNetwork",
    "OtherRun",
    "Saved",
    "digest_leaves",
    "sealed",
    "weights_digest",
]

State = TypeVar("State")
Loaded = TypeVar("Loaded")


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
            self._reader = Reader(self._folder, listener.warn)
            self._writer = Writer(self._folder, self._reader, listener)
        self._orbax = self._writer.orbax
        self._digest = jax.jit(digest_leaves)
        self._identity: Identity | None = None

    def bind(self, identity: Identity) -> None:
        """Saves this identity of the run in each step from now on, and compares it with that of each to be restored."""
        self._identity = identity

    def run_on_record(self) -> str | None:
        """The run that the latest steps name; None where there is none, or they are from before such names.

        Raises:
            OSError: the store does not answer, after a minute.
        """
        for step in reversed(self.steps):
            with contextlib.suppress(DamagedCheckpoint):
                return id_of(self.metadata(step))
        return None

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

        It counts when its index has been read again from where it lies; of the first save of a run, all arrays are.
        Where the store fails training goes on: the listener is warned when this, `overdue` or `wait` is called next.
        """
        self._writer.settle()
        if step in self.steps:
            self._writer.read_again(step)
            return
        items = _items(state)
        began = time.perf_counter()
        found = jax.device_get(self._digest(items))
        digests = {item: named(tree, as_text) for item, tree in found.items()}
        digest_seconds = time.perf_counter() - began
        metadata = sealed(step, next_batch, self._experiment, items, digests, self._identity)
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
        step = self.existing(step)
        return self._reader.sure(step, lambda: self._reader.index(step))[0]

    def index(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """`metadata`, and the shapes and dtypes of the arrays of each item, by their names, as the arrays say them.

        Raises:
            DamagedCheckpoint: the two are not of the same arrays, or not what was written.
        """
        step = self.existing(step)

        def read() -> tuple[dict[str, Any], dict[str, Any]]:
            metadata, trees = self._reader.index(step)
            return metadata, self._reader.named_arrays(step, metadata, trees)

        return self._reader.sure(step, read)

    def verify(self, step: int, advance: Callable[[int], object]) -> None:
        """Reads every array of a step, a portion at a time, and compares digests.

        Args:
            advance: called with the number of arrays that were read since the last call.

        Raises:
            FileNotFoundError: there is no such step.
            DamagedCheckpoint: an array cannot be read, or does not have the digest it was saved with.
        """

        def read() -> None:
            metadata, trees = self._reader.index(step)
            self._reader.named_arrays(step, metadata, trees)
            self._reader.compare_digests(step, metadata, trees, advance)

        self._reader.sure(self.existing(step), read)

    def restore(self, shapes: Any, step: int | None = None) -> Saved:
        """Restores the whole state of a step (the latest by default), straight into the shardings of `shapes`.

        Raises:
            FileNotFoundError: there is no such step.
            DamagedCheckpoint: what was read of it does not fit, or an array does not have the digest it was saved with.
            OtherNetwork: it is whole, but its arrays are not those of `shapes`.
            OtherRun: it is whole, but of another run than this was bound to.
            OSError: the store does not answer, after a minute.
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

    def resume(self, shapes: Any, warn: Callable[[str], None], *, failed_from: Container[int] = ()) -> Saved | None:
        """Restores the last good step to resume from; None where there is no step at all.

        Half-written and damaged steps are set aside, with a warning. Where every step is damaged nothing is moved: the
        next run would start afresh without a word.

        Args:
            failed_from: steps from which the run has failed again; they are set aside where there is one before them.

        Raises:
            DamagedCheckpoint: there are steps and none is good, with the list.
            OtherNetwork, OtherRun: as `restore`.
            OSError: the store does not answer, after a minute; nothing was moved.
        """
        read_patiently(self._check_list, warn)
        unfinished = processes.from_first(lambda: self.unfinished)
        if self.latest is None and len(unfinished) > 1:
            raise DamagedCheckpoint(
                f"{self._folder.path}: {', '.join(unfinished)} are half-written and none is whole; a kill leaves one",
                "if they were copied here, copy them whole; or start again in another --workdir",
            )
        for name in unfinished:
            warn(f"half-written checkpoint {name} set aside: {self.set_aside(name, UNFINISHED)}")
        for step in reversed(self.steps[1:]):
            if step not in failed_from:
                break
            why = "the run has failed again from here on"
            warn(f"checkpoint {step} set aside, for {why}: {self.set_aside(str(step), why)}")
        if self.latest is None:
            return None
        saved, damaged = self.last_good(lambda step: self.restore(shapes, step))
        for step, message in damaged.items():
            warn(f"damaged checkpoint set aside: {message}; it is now {self.set_aside(str(step), message)}")
        return saved

    def _check_list(self) -> None:
        """Raises Unreadable where the store lists other steps than Orbax, which takes a failure for an empty folder."""
        self._folder.check()
        if (there := self._folder.complete()) == self.steps:
            return
        with as_os_errors():
            self._orbax.reload()
        if there != self.steps:
            raise Unreadable(f"{self._folder.path}: steps {there} were listed, and {self.steps} a moment later")

    def set_aside(self, name: str, why: str) -> str:
        """Moves the folder of a step aside, with a note of the reason; returns its new path."""

        moved = processes.from_first(lambda: self._folder.set_aside(name, why))
        with as_os_errors():
            self._orbax.reload()
        return moved

    def _load(self, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        def load() -> tuple[dict[str, Any], dict[str, Any]]:
            metadata = self._reader.index(step)[0]
            if self._identity is not None:
                self._identity.check(metadata.get("run"), self._folder.path / str(step))
            check_fit(items, metadata, self._folder.path / str(step))
            loaded = self._reader.items(step, items)
            for item, tree in loaded.items():
                if bad := differing(named(tree, lambda x: x), metadata["digests"][item]):
                    raise self._reader.damaged(step, f"{item} is damaged in {some(bad)}")
            return loaded, metadata

        return self._reader.sure(step, load)


def sealed(
    step: int,
    next_batch: int,
    experiment: Mapping[str, Any] | None,
    items: Mapping[str, Any],
    digests: Mapping[str, Mapping[str, Recorded]],
    identity: Identity | None = None,
) -> dict[str, Any]:
    """The metadata of a step; `items` are trees of arrays, `digests` those of each by the names of its arrays."""
    metadata: dict[str, Any] = {
        "step": step,
        "next_batch": next_batch,
        "experiment": experiment,
        "digests": dict(digests),
        "shapes": {name: named(tree, dtype_and_shape) for name, tree in items.items()},
    }
    if identity is not None:
        metadata["run"] = identity.record()
    return metadata | {"seal": seal(metadata)}


def _items(state: Any) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "step" and value is not None}
