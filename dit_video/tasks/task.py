"""The protocols that training and evaluation know a task by, and weights bound to their task.

A task is the only place where a network, an objective and a batch meet. The loop never learns what is inside.
"""

from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Int, Key

from dit_video.arrays import Video
from dit_video.data.batch import Batch

Metrics = dict[str, Array]
# (frames, height, width) of a clip in pixels.
ClipShape = tuple[int, int, int]


@runtime_checkable
class Task(Protocol):
    """What is learnt. Values of this protocol are fields of an experiment.

    `frozen` is whatever trained parts the task uses but does not train (a codec); it travels as an argument, so
    that its weights are never baked into a compiled program. `model` is the module that `init` makes; its type, and
    that of `frozen`, are the task's own business.
    """

    @property
    def paired(self) -> bool:
        """Whether `generate` is shown pixels of each clip of the batch, so that those and its own are pairs."""
        ...

    def init(self, rng: Key[Array, ""]) -> nnx.Module:
        """The network with fresh parameters."""
        ...

    def loss(
        self, model: Any, frozen: Any, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of one batch and scalars to record."""
        ...

    def validate(self, model: Any, frozen: Any, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Errors on held-out clips, one value per clip `[B]`; clip i uses rngs[i] alone, the same at every call."""
        ...

    def generate(self, model: Any, frozen: Any, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> Video:
        """Clips of `shape` made for what the task conditions on in `batch`; clip i uses rngs[i] alone."""
        ...

    def reconstruct(self, model: Any, frozen: Any, batch: Batch) -> Video:
        """The clips of `batch` through the codec alone: the best that `generate` can look."""
        ...
