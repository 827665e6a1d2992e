"""Trackers beside a run's own record, values of an experiment: files of TensorBoard, Weights & Biases.

The run's folder has all that they show and needs none of them; where one fails, training goes on without it.
"""

import abc
import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from dit_video.config.extras import install
from dit_video.storage.retrying_files import RetryingFiles


class TrackedRun(NamedTuple):
    """What a tracker knows of a run.

    Attributes:
        run_id: the same in all its sessions.
        config: its experiment, as JSON.
        start: the step from which this session goes on.
    """

    workdir: Path
    run_id: str
    config: Mapping[str, Any]
    start: int


@runtime_checkable
class OpenTracker(Protocol):
    """A tracker in one session of a run."""

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None: ...

    def video(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None: ...

    def rewind(self, step: int) -> None:
        """The run goes on from `step` again: what was shown of later ones will be shown anew."""
        ...

    def close(self) -> None: ...


class TrackerConfig(abc.ABC):
    """A tracker as a value of an experiment."""

    @abc.abstractmethod
    def check(self) -> None:
        """Looks for its library before anything starts.

        Raises:
            ValueError: it is not installed; says what installs it.
        """

    @abc.abstractmethod
    def open(self, run: TrackedRun, files: RetryingFiles, warn: Callable[[str], None]) -> OpenTracker:
        """Opens it for a session, in the process that records.

        Raises:
            ValueError: it cannot be had; says what to do.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorBoard(TrackerConfig):
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN` on any machine that has it."""

    def check(self) -> None:
        pass  # its library comes with this package

    def open(self, run: TrackedRun, files: RetryingFiles, warn: Callable[[str], None]) -> OpenTracker:
        del warn
        # Here, for its library brings PyTorch along where that is installed, which takes a second.
        from dit_video.training.tensorboard import TensorBoardFiles

        return TensorBoardFiles(files, run.workdir / "tensorboard", start=run.start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases(TrackerConfig):
    """A run of Weights & Biases, the same one whenever training goes on (extra `wandb`).

    Without a network WANDB_MODE=offline keeps it in RUN/wandb, from where `wandb sync` sends it. The axis of its charts
    is `step`; what a run does again after a fault or a kill is drawn twice, since W&B takes back no values.

    Attributes:
        project: where it appears.
        entity: user or team; None: the default of who is logged in.
    """

    project: str
    entity: str | None = None

    def check(self) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(f"WeightsAndBiases needs wandb: {install('wandb')}; or take it out of config.trackers")

    def open(self, run: TrackedRun, files: RetryingFiles, warn: Callable[[str], None]) -> OpenTracker:
        del files
        self.check()
        return _WandbRun(self, run, warn)


class _WandbRun:
    """What fails is said once, and no more is sent."""

    def __init__(self, tracker: WeightsAndBiases, run: TrackedRun, warn: Callable[[str], None]):
        import wandb

        self._wandb, self._warn = wandb, warn
        try:
            self._run: Any = wandb.init(
                project=tracker.project,
                entity=tracker.entity,
                id=run.run_id,
                resume="allow",
                name=run.workdir.resolve().name,
                config=dict(run.config),
                dir=os.fspath(run.workdir),
                allow_val_change=True,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise ValueError(
                f"config.trackers.WeightsAndBiases: {error}; log in with `wandb login`, set WANDB_MODE=offline, or "
                "take it out of config.trackers"
            ) from error
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        self._log({f"{prefix}/{name}": value for name, value in values.items()}, step)

    def video(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
        from dit_video.video.encode import encode_mp4

        with tempfile.TemporaryDirectory() as folder:  # it takes a copy
            path = os.path.join(folder, "video.mp4")
            Path(path).write_bytes(encode_mp4(video, fps))
            self._log({name: self._wandb.Video(path, format="mp4")}, step)

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._try(lambda: self._run.finish())

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self._try(lambda: self._run.log({**values, "step": step}))

    def _try(self, call: Callable[[], object]) -> None:
        if self._run is None:
            return
        try:
            call()
        except (self._wandb.errors.Error, OSError) as error:
            self._run = None
            self._warn(f"Weights & Biases has failed ({error}); training goes on without it, and the record has it all")
