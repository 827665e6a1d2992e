"""What the training loop is given: batches and a saver of checkpoints."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from dit_video.checkpoint.checkpoints import Saved
from dit_video.data.batch import Batch
from dit_video.data.loader import Replaced
from dit_video.training.step import TrainState


@runtime_checkable
class Batches(Protocol):
    """Host batches in an order that `next_batch` alone determines."""

    next_batch: int
    wait_seconds: float

    def __next__(self) -> Batch: ...

    def seek(self, next_batch: int) -> None:
        """Goes on with another batch."""
        ...

    def take_replaced(self) -> list[Replaced]:
        """Rows that hold another record than they should, of the batches since the last call or `seek`."""
        ...


@runtime_checkable
class Saver(Protocol):
    """Saves state and data position as one, and gives back what it saved last."""

    def save(self, step: int, state: TrainState, next_batch: int) -> None: ...

    def overdue(self) -> bool:
        """Whether a save has failed and is to be tried again; asked at every step."""
        ...

    def wait(self) -> None:
        """Until everything that was started is saved."""
        ...

    def resume(self, shapes: TrainState, warn: Callable[[str], None]) -> Saved[TrainState] | None:
        """The last good state; None where there is none."""
        ...
