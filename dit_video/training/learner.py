"""The learner of a run: its train step with all that a step reads beside the state."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from dit_video.data.batch import Batch
from dit_video.distributed.sharding import along_batch, place
from dit_video.tasks.task import Metrics
from dit_video.training.protocols import Batches
from dit_video.training.step import Program, TrainState
from dit_video.training.throughput import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A program with its batches, frozen parts and seed: with a state, all that decides what a run learns.

    Attributes:
        batches: of this process, in the order of training.
        frozen: the parts of the task that are not trained, on the program's mesh.
        seed: of the noise of each step.
        shapes: of the global batches that `batches` has, arrays or shapes of such; each with the work of its step.
    """

    program: Program
    batches: Batches
    frozen: Any
    seed: int
    shapes: Sequence[tuple[Batch, Work]]

    def compile(self) -> list[jax.stages.Compiled]:
        """The executables of a step, one for each of `shapes`; nothing is compiled later for batches of these."""
        sharding = along_batch(self.program.mesh)
        batches = [
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)
            for batch, _ in self.shapes
        ]
        return self.program.compile(self.frozen, batches)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after one step and the step's metrics, on the device; the old state is donated."""
        return self.program.step(state, self.frozen, place(batch, self.program.mesh), self.seed)

    def shape_of(self, batch: Batch) -> int:
        """Which of `shapes` a batch has, which may be this process's rows of it."""
        if len(self.shapes) == 1:
            return 0
        of_clip = _of_clip(batch)
        return next(number for number, (shape, _) in enumerate(self.shapes) if _of_clip(shape) == of_clip)


def _of_clip(batch: Batch) -> list[tuple[int, ...]]:
    """Shapes of one row of a batch."""
    return [leaf.shape[1:] for leaf in jax.tree.leaves(batch)]
