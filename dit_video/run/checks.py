"""Checks before a run starts: processes, fields that must fit together, mesh, compiler options, data, run folder."""

import resource
from pathlib import Path

import jax
from jax.sharding import Mesh

from dit_video.config.user_file import ExperimentError
from dit_video.distributed import processes
from dit_video.distributed.process_settings import AUTO
from dit_video.distributed.sharding import batch_ways, platform_of
from dit_video.experiment import Experiment
from dit_video.run.folder import EXPERIMENT_FILE

MIN_OPEN_FILES = 256
"""Files that a process must be allowed to open at once. A small run opens 55, in the middle of a save."""


def check_open_files() -> None:
    """Raises ExperimentError where too few files may be open at once: a save would fail, after some minutes."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < MIN_OPEN_FILES:
        raise ExperimentError(
            f"this shell allows {allowed} open files, and training takes {MIN_OPEN_FILES} at least, for data and "
            "checkpoints; raise the limit (ulimit -n 4096)"
        )


def check_joined() -> None:
    """Raises ExperimentError where the devices belong to several processes that have not joined each other."""
    if jax.process_count() > 1 and not processes.joined():
        raise ExperimentError(
            f"the devices here belong to {jax.process_count()} processes, which have not joined: start each with "
            f"--coordinator={AUTO}"
        )


def check_source(experiment: Experiment) -> None:
    """Raises where the data set is missing or damaged, or is another one on this host than on that of process 0."""
    source = experiment.data.source
    # A set that is made when it is first opened is made by one process.
    digest = processes.from_first(lambda: source.info().digest)
    if source.info().digest != digest:
        raise ExperimentError(f"config.data.source: this host has another set than process 0 ({source}); copy it again")


def check_shared(workdir: Path) -> None:
    """Raises ExperimentError where this process does not see the run folder that process 0 has written to."""
    if not (workdir / EXPERIMENT_FILE).is_file():
        raise ExperimentError(
            f"--workdir={workdir}: {EXPERIMENT_FILE} of process 0 is not there; all processes must see one folder"
        )


def check_compiler_options(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ExperimentError where XLA refuses a compiler option; an empty program is compiled to find out."""
    platform = platform_of(mesh)
    if options := experiment.compiler_options.get(platform):
        try:
            jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
            raise ExperimentError(f"config.compiler_options[{platform!r}]: {str(error).splitlines()[0]}") from error


def check_fields(experiment: Experiment, mesh: Mesh | None = None) -> None:
    """Checks the rules between task, data, evaluators and mesh: `Task.check` and `Evaluator.check`.

    Raises:
        ExperimentError: names the field, the value and the remedy.
    """
    for data in (experiment.data, *experiment.data.by_shape()):
        try:
            experiment.task.check(data, mesh)
        except ValueError as error:
            # What is said of `clips` is said of those of a shape, where these are.
            shape = data is not experiment.data and f"config.data.shapes: {data.clips.num_frames, *data.clips.size}: "
            raise ExperimentError(f"{shape or ''}{error}") from error
    for name, evaluator in experiment.evaluators.items():
        try:
            evaluator.check(experiment.task, experiment.data)
        except ValueError as error:
            raise ExperimentError(f"config.evaluators.{name}: {error}") from error


def check_mesh(experiment: Experiment, mesh: Mesh, where: str = "devices") -> None:
    """Checks that the global batch divides into microbatches and these over the mesh.

    Args:
        where: what the mesh is made of, for the message.

    Raises:
        ExperimentError: it does not; names both sizes.
    """
    parts, ways = experiment.num_microbatches, batch_ways(mesh)
    for name, rows in experiment.data.batch_sizes.items():
        if rows % (ways * parts):
            microbatches = f" times num_microbatches = {parts}" if parts > 1 else ""
            chosen = f", or config.data.batch_multiple={experiment.data.batch_multiple}" * bool(experiment.data.shapes)
            raise ExperimentError(
                f"config.data.{name}={rows}: must be a multiple of data x fsdp = {ways} {where}{microbatches}; change "
                f"it{chosen}, or give devices to other axes with config.mesh"
            )
