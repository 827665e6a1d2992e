"""Protocols of the training loop: an iterator of batches and a saver of checkpoints."""

from collections.abc import Callable, Container
from typing import Protocol, runtime_checkable

from dit_video.checkpoint.checkpoints import Saved
from dit_video.data.batch import Batch
from dit_video.data.loader import Replaced
from dit_video.training.step import TrainState


@runtime_checkable
class Batches(Protocol):
    """Iterator of host batches; its whole state is the index `next_batch`."""

    next_batch: int
    wait_seconds: float

    def __next__(self) -> Batch: ...

    def seek(self, next_batch: int) -> None:
        """Continues with another batch."""
        ...

    def take_replaced(self) -> list[Replaced]:
        """Rows whose record was replaced because it could not be decoded, since the last call or `seek`."""
        ...


@runtime_checkable
class Saver(Protocol):
    """Saves training state and data position as one checkpoint, and restores the last one."""

    def save(self, step: int, state: TrainState, next_batch: int) -> None: ...

    def overdue(self) -> bool:
        """Whether a save has failed and is to be tried again; asked at every step."""
        ...

    def wait(self) -> None:
        """Waits until every save that was started is complete."""
        ...

    def resume(
        self, shapes: TrainState, warn: Callable[[str], None], *, failed_from: Container[int] = ()
    ) -> Saved[TrainState] | None:
        """Restores the last good checkpoint, of `failed_from` only where none is before; None where there is none."""
        ...
