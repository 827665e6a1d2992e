"""Checkpoints: state, data position and experiment saved as one, by Orbax v1 and behind this one module.

A step is one folder that appears whole or not at all. Its metadata holds the experiment, the index of the next
batch and a digest of every array: Orbax itself loads flipped bits without a word.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from dit_video.nn.module import Params
from dit_video.sharding import replicated

FOLDER = "checkpoints"
State = TypeVar("State")


class DamagedCheckpoint(ValueError):
    """What was read is not what was written."""


@dataclasses.dataclass(frozen=True)
class Saved(Generic[State]):
    """A checkpoint's content."""

    state: State
    step: int
    next_batch: int
    experiment: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    The state is a NamedTuple whose fields are saved as separate items, so that evaluation and export can read
    the averaged weights alone.
    """

    def __init__(self, workdir: Path, *, keep: int = 3, experiment: Mapping[str, Any] | None = None):
        """`keep` latest steps are kept; `experiment` (its JSON) is saved with each."""
        self._experiment = experiment
        self._folder = (workdir / FOLDER).resolve()  # Orbax takes no relative path
        # Orbax's policies do not have the type that its Checkpointer asks for.
        latest: Any = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(str(self._folder), preservation_policy=latest)
        self._digest = jax.jit(digest_leaves)

    @property
    def steps(self) -> list[int]:
        return sorted(c.step for c in self._orbax.checkpoints)

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    def existing(self, step: int | None = None) -> int:
        """`step`, or the latest where it is None.

        Raises:
            FileNotFoundError: there is no such step.
        """
        steps = self.steps
        if not steps:
            raise FileNotFoundError(f"{self._folder}: no checkpoint; `dit-video train --workdir ...` makes one")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"{self._folder}: no step {step}; there are {', '.join(map(str, steps))}")
        return steps[-1] if step is None else step

    def save(self, step: int, state: Any, next_batch: int) -> None:
        """Starts saving; the state may be donated as soon as this returns. A step that is there already stays."""
        if step in self.steps:
            return
        items = {name: value for name, value in state._asdict().items() if name != "step"}
        digests = jax.device_get(self._digest(items))
        metadata: dict[str, Any] = {
            "next_batch": next_batch,
            "experiment": self._experiment,
            "digests": {name: _named(tree) for name, tree in digests.items()},
        }
        # Forced: by default Orbax leaves a step out while the one before it is still being written.
        self._orbax.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)

    def wait(self) -> None:
        """Until everything that was started is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        self._orbax.close()

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """Experiment, data position and digests of a step (the latest by default), without reading arrays."""
        found = self._orbax.checkpointables_metadata(self.existing(step)).custom_metadata
        return cast(dict[str, Any], found)  # any JSON to Orbax; `save` wrote an object

    def restore(self, shapes: Any, step: int | None = None) -> Saved:
        """The whole state of a step, straight into the shardings of `shapes`.

        Raises:
            FileNotFoundError: there is no such step.
            DamagedCheckpoint: an array does not have the digest it was saved with.
        """
        step = self.existing(step)
        items = {name: value for name, value in shapes._asdict().items() if name != "step"}
        loaded, metadata = self._load(step, items), self.metadata(step)
        counter = jax.device_put(np.int32(step), shapes.step.sharding)
        return Saved(shapes._replace(step=counter, **loaded), step, metadata["next_batch"], metadata["experiment"])

    def restore_params(
        self, shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, *, ema: bool, step: int | None = None
    ) -> Params:
        """Only the weights, averaged or raw, on every device of `mesh`."""
        name = "ema" if ema else "params"
        everywhere = replicated(mesh)
        target = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere) for n, s in shapes.items()}
        return self._load(self.existing(step), {name: target})[name]

    def _load(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        try:
            loaded = self._orbax.load_checkpointables(step, items)
        except KeyError as error:
            # Orbax says so whatever went wrong; why is at the bottom of the chain.
            raise DamagedCheckpoint(
                f"{self._folder / str(step)}: cannot be read, because it is damaged or holds another network: "
                f"{_root_cause(error)}; move this step away to use the one before"
            ) from error
        saved = self.metadata(step)["digests"]
        for item, tree in jax.device_get(self._digest(loaded)).items():
            bad = sorted(n for n, value in _named(tree).items() if saved[item].get(n) != value)
            if bad:
                raise DamagedCheckpoint(
                    f"{self._folder / str(step)}: {item} is damaged in {', '.join(bad[:3])}"
                    f"{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}; move this step away to use the one before"
                )
        return loaded


def digest_leaves(tree: Any) -> Any:
    """A number per array that no layout changes and any single flipped bit does: a weighted sum of raw words.

    Weights are odd, so a change of one word by d != 0 changes the sum by d times a unit modulo 2^32.
    """
    return jax.tree.map(_digest, tree)


def weights_digest(params: Mapping[str, Array]) -> str:
    """One name for a set of weights: SHA-256 of each parameter's name, shape, dtype and digest."""
    digests = jax.device_get(jax.jit(digest_leaves)(dict(params)))
    lines = [[n, list(params[n].shape), str(params[n].dtype), int(digests[n])] for n in sorted(params)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _digest(x: Array) -> UInt32[Array, ""]:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    position = jnp.ones((), jnp.uint32)
    for axis in range(words.ndim):
        odd = np.uint32((0x9E3779B1 * (axis + 1) * (axis + 2) + 1) & 0xFFFFFFFF)
        position = position + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * odd
    return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)


def _root_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error).partition("\n")[0]


def _named(tree: Any) -> dict[str, int]:
    return {jax.tree_util.keystr(path): int(v) for path, v in jax.tree_util.tree_leaves_with_path(tree)}
