"""The learner of a run: its train step with all that a step reads beside the state."""

import dataclasses
from typing import Any

import jax

from dit_video.data.batch import Batch
from dit_video.distributed.sharding import place
from dit_video.tasks.task import Metrics
from dit_video.training.protocols import Batches
from dit_video.training.step import Program, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A program with its batches, frozen parts and seed: with a state, all that decides what a run learns.

    Attributes:
        batches: of this process, in the order of training.
        frozen: the parts of the task that are not trained, on the program's mesh.
        seed: of the noise of each step.
    """

    program: Program
    batches: Batches
    frozen: Any
    seed: int

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after one step and the step's metrics, on the device; the old state is donated."""
        return self.program.step(state, self.frozen, place(batch, self.program.mesh), self.seed)

    def compiled(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        """The executable of a step that was done with a state and a batch of these shapes."""
        return self.program.compiled(state, self.frozen, place(batch, self.program.mesh), self.seed)
