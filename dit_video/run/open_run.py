"""Opening a run: its experiment, weights and frozen parts, to be judged, sampled from or exported."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from dit_video import experiment as experiments
from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.config.overrides import override
from dit_video.data.record import Split
from dit_video.data.sources import NoData, TFDSSet
from dit_video.data.transforms import clip_rates
from dit_video.distributed.sharding import make_mesh, platform_of
from dit_video.experiment import Experiment
from dit_video.nn.module import Definition, Params, define
from dit_video.progress import Terminal
from dit_video.run.compilation_cache import keep_compiled_programs
from dit_video.run.folder import EXPERIMENT_FILE, environment, read_experiment
from dit_video.run.frozen import with_codec_inside, with_frozen
from dit_video.run.places import located
from dit_video.run.shown import without_missing_data
from dit_video.storage.mirror import local_copy
from dit_video.tasks.evaluator import EvaluationData
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import ClipShape
from dit_video.training.fault_policy import Skip
from dit_video.training.step import Program, make_program


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A finished or interrupted run, opened to be judged, sampled from or exported.

    `params` are the averaged weights where `ema`, else the raw ones. Of a run in a bucket `workdir` is a copy.

    Attributes:
        experiment: with the paths as they lead from here.
        recorded: with the paths of its record, for what is said of the run; None: as `experiment`.
    """

    workdir: Path
    experiment: Experiment
    definition: Definition
    params: Params
    frozen: Any
    mesh: Mesh
    step: int
    ema: bool
    recorded: Experiment | None = None

    @property
    def identity(self) -> Experiment:
        """The experiment as it was trained, wherever the run is now."""
        return self.recorded or self.experiment

    def subject(self) -> Subject:
        about = description(self.identity, self.workdir)
        subject = Subject(self.experiment.task, self.definition, self.frozen, self.mesh, about)
        return subject.with_weights(self.params, step=self.step, ema=self.ema)


def open_run(
    workdir: Path,
    *,
    step: int | None = None,
    ema: bool = True,
    like: Experiment | None = None,
    overrides: Sequence[str] = (),
    needs_data: bool = True,
    console: Console | None = None,
) -> OpenRun:
    """Opens a run folder with its averaged (or raw) weights of `step`, by default the latest that is not damaged.

    A run that keeps no average has raw weights alone.

    Nothing is written outside the run, whatever its record names: latent statistics that its codec lacks are measured
    and not kept.

    Args:
        like: has the classes of the user's own that the run is made of.
        needs_data: else data that are not here are replaced by what the run knows of them: clips of which rate it
            makes, and what its classes are called.
        overrides: of its experiment, "--config.task.codec.run=FOLDER" where the codec is elsewhere now.
    """
    console = console or Terminal()
    keep_compiled_programs()
    workdir = local_copy(workdir, EXPERIMENT_FILE)
    recorded = read_experiment(workdir, like)
    experiment = with_codec_inside(located(recorded, workdir / EXPERIMENT_FILE), workdir)
    if overrides:
        experiment, recorded = (override(read, overrides) for read in (experiment, recorded))
    if not needs_data:
        experiment = without_missing_data(experiment, workdir / EXPERIMENT_FILE)
    moved, ema = experiment != recorded, ema and experiment.ema is not None
    mesh = make_mesh(experiment.mesh)
    experiment, frozen = with_frozen(experiment, mesh, console, writes=False)
    definition = define(experiment.task.init)
    checkpoints = Checkpoints(workdir)
    try:
        restore = functools.partial(checkpoints.restore_params, definition.shapes, mesh, ema=ema)
        if step is not None:
            params = restore(step=step)
        else:
            # Nothing is moved here: the run may be training at this moment.
            (step, params), damaged = checkpoints.last_good(lambda step: (step, restore(step=step)))
            for message in damaged.values():
                unstyled(console)(f"damaged checkpoint left out: {message}; using step {step}")
    finally:
        checkpoints.close()
    return OpenRun(
        workdir, experiment, definition, params, frozen, mesh, step, ema, recorded=recorded if moved else experiment
    )


def program_of(experiment: Experiment, mesh: Mesh) -> Program:
    """The experiment's task made ready to train on `mesh`; nothing is computed yet."""
    return make_program(
        experiment.task,
        experiment.optimizer,
        experiment.ema,
        num_steps=experiment.schedule.num_steps,
        num_microbatches=experiment.num_microbatches,
        mesh=mesh,
        compiler_options=experiment.compiler_options.get(platform_of(mesh)),
        skip_not_finite=isinstance(experiment.faults.not_finite, Skip),
    )


def evaluation_data(experiment: Experiment) -> EvaluationData:
    """The clips that a run is judged on, and where they come from."""
    data = experiment.data
    info = data.source.info()
    splits = [split for split in Split if info.num_records.get(split)]
    if not splits:
        data.source.open(Split.HELD_OUT)  # which says what is missing
    return EvaluationData.of(
        {split: data.source.open(split) for split in splits},
        dict.fromkeys(splits, data.clips),
        seed=experiment.seed,
        references={"set": info.digest, "splits": {split.value: d for split, d in info.split_digest.items()}},
        signals=data.signals,
        # Opened once, however often it judges.
        open_run=functools.cache(lambda folder: open_run(Path(folder), like=experiment, needs_data=False).subject()),
    )


def clip_shape(experiment: Experiment) -> ClipShape:
    """(T, H, W) of the clips that a run is trained on, and so makes."""
    clips = experiment.data.clips
    return clips.num_frames, *clips.size


def sampled_clip(experiment: Experiment) -> tuple[ClipShape, tuple[float, ...]]:
    """`clip_shape` and the frames per second of these clips, the most frequent first."""
    data, shape = experiment.data, clip_shape(experiment)
    if isinstance(data.source, NoData):
        return shape, (data.source.fps,)
    held_out = data.source.info().num_records.get(Split.HELD_OUT)
    examples = data.source.open(Split.HELD_OUT if held_out else Split.TRAIN)
    # Of which to know all rates, every record would have to be read.
    if isinstance(data.source, TFDSSet):
        return shape, (data.clips.clip_fps(examples[0].fps),)
    return shape, clip_rates(examples, data.clips)


def description(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """What a card says of a run beside its weights."""
    about: dict[str, Any] = {"run": workdir.name, "fingerprint": experiments.fingerprint(experiment)}
    return {**about, **experiment.task.describe(), "environment": environment()}


def unstyled(console: Console) -> Callable[[str], None]:
    """A function that prints messages on `console` as they are: names and paths in them are no markup."""
    return functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
