"""Experiment: one tree of typed, frozen values that is a whole run. Load, validate, to and from JSON.

An experiment file is Python and defines `get_config(arg: str = "") -> Experiment`. config/overrides.py changes fields
by words of the command line; config/components.py has trees of values in general.
"""

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.checkpoint.retention import Keep
from dit_video.config import components
from dit_video.config.bounds import at_least
from dit_video.config.components import flatten, own_classes
from dit_video.config.json_file import read_object
from dit_video.config.overrides import override
from dit_video.config.user_file import ExperimentError, call_file
from dit_video.data.dataset import Data
from dit_video.distributed.sharding import MeshShape
from dit_video.tasks.evaluator import Evaluator
from dit_video.tasks.task import Task
from dit_video.training.fault_policy import Faults
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import EMA, Optimizer
from dit_video.training.step import CompilerOptions
from dit_video.training.trackers import TensorBoard, TrackerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run.

    Attributes:
        seed: of initialisation, data order and noise.
        num_microbatches: parts the global batch is cut into for gradient accumulation.
        ema: the average that is evaluated and exported; None keeps none (with AdamW a quarter of the state) and the
            weights themselves are.
        evaluators: by the name they are recorded under.
        faults: what to do when training goes wrong.
        keep: which checkpoints stay; no part of the fingerprint either.
        trackers: where curves are shown besides the run's folder; no part of it either.
        mesh: devices along each axis; like `compiler_options` not part of the fingerprint, since it may change between
            hosts.
        compiler_options: XLA's for the train step, by kind of device: {"gpu": {...}, "tpu": {...}}.
    """

    task: Task
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    ema: EMA | None = EMA()
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    num_microbatches: int = 1
    faults: Faults = Faults()
    keep: Keep = Keep()
    trackers: tuple[TrackerConfig, ...] = (TensorBoard(),)
    seed: int = 0
    mesh: MeshShape = MeshShape()
    compiler_options: Mapping[str, CompilerOptions] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        at_least(self, 0, "seed")
        if surplus := self.compiler_options.keys() - {"cpu", "gpu", "tpu"}:
            raise ValueError(
                f"compiler_options: {', '.join(sorted(surplus))} is no kind of device; cpu, gpu and tpu are"
            )
        best = self.keep.best
        if best is not None and best.evaluator not in self.evaluators:
            known = ", ".join(map(repr, self.evaluators)) or "none"
            raise ValueError(f"keep.best.evaluator={best.evaluator!r}: is none of the evaluators; there are {known}")
        for name, size in self.data.batch_sizes.items():
            if self.num_microbatches < 1 or size % self.num_microbatches:
                raise ValueError(f"num_microbatches={self.num_microbatches}: must divide data.{name}={size}")

    def by_shape(self) -> tuple["Experiment", ...]:
        """The experiment on clips of each of its shapes alone; itself where there is one."""
        return tuple(dataclasses.replace(self, data=data) for data in self.data.by_shape())


# What may differ between two starts of the same run.
_NOT_IN_FINGERPRINT = (
    "mesh", "compiler_options", "keep", "trackers", "data.num_threads", "schedule.log_every", "schedule.save_every",
)  # fmt: skip
# Fields that are younger than the fingerprints of runs; where one is None, the fingerprint is that of before it.
_ADDED_TO_FINGERPRINT = ("task.network.extrapolation",)


def load(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """Loads `PATH.py[:arg]` and applies overrides.

    Args:
        name: path of the experiment file, optionally with the argument of its `get_config` after a colon.
        overrides: command-line words such as "--config.optimizer.learning_rate=3e-4".

    Raises:
        ExperimentError: no such file, a field that does not exist (with the nearest that does), a wrong type.
    """
    experiment = call_file("--config", name, "get_config", Experiment)
    if overrides:
        experiment = override(experiment, overrides)
    return experiment


def from_json(data: Any, like: Experiment | None = None) -> Experiment:
    """The experiment that `to_json` wrote. It loads no code: other classes than of this package are those of `like`.

    Args:
        like: an experiment whose file the user has run himself; it stands for the classes that it is made of, and for
            all others that their modules define.

    Raises:
        ExperimentError: another value, a class or field that is not here, a value of another type than its field's or
            one that its component refuses; names the path.
    """
    experiment = components.from_json(data, "experiment", {} if like is None else own_classes(like))
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"not an experiment: {reprlib.repr(data)}")
    return experiment


def read(path: Path, like: Experiment | None = None) -> Experiment:
    """The experiment in the record of a run, which may be a stranger's; `like` as in `from_json`.

    Raises:
        FileNotFoundError: no such file.
        ExperimentError: no JSON, or no experiment of this version; names the file.
    """
    try:
        content = read_object(path)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    try:
        return from_json(content.get("experiment"), like)
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}") from error


def fingerprint(experiment: Experiment) -> str:
    """Digest of everything that decides what a run computes; mesh, threads and logging are left out."""
    leaves = {k: v for k, v in flatten(experiment).items() if not k.startswith(_NOT_IN_FINGERPRINT)}
    leaves = {k: v for k, v in leaves.items() if not (v is None and k in _ADDED_TO_FINGERPRINT)}
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:16]
