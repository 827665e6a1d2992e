"""What must hold before a run starts: each is checked before anything is read, written or compiled."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from dit_video.config.user_file import ExperimentError
from dit_video.distributed import processes
from dit_video.distributed.seat import AUTO
from dit_video.distributed.sharding import batch_ways, platform_of
from dit_video.experiment import Experiment
from dit_video.run.folder import EXPERIMENT_FILE


def check_joined() -> None:
    """The devices of other processes are of no use to a process that cannot speak with those."""
    if jax.process_count() > 1 and not processes.joined():
        raise ExperimentError(
            f"the devices here belong to {jax.process_count()} processes, which have not joined: start each with "
            f"--coordinator={AUTO}"
        )


def check_source(experiment: Experiment) -> None:
    """A missing or damaged set is an error before anything is written, and so are hosts that have different sets."""
    source = experiment.data.source
    # A set that is made when it is first opened is made by one process.
    digest = processes.from_first(lambda: source.info().digest)
    if source.info().digest != digest:
        raise ExperimentError(f"config.data.source: this host has another set than process 0 ({source}); copy it again")


def check_shared(workdir: Path) -> None:
    """What the first process has written must be there for all."""
    if not (workdir / EXPERIMENT_FILE).is_file():
        raise ExperimentError(
            f"--workdir={workdir}: {EXPERIMENT_FILE} of process 0 is not there; all processes must see one folder"
        )


def check_compiler_options(experiment: Experiment, mesh: Mesh) -> None:
    """XLA must know them, before anything is read: it is asked with a program of nothing."""
    platform = platform_of(mesh)
    if options := experiment.compiler_options.get(platform):
        try:
            jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
            raise ExperimentError(f"config.compiler_options[{platform!r}]: {str(error).splitlines()[0]}") from error


def check_fields(experiment: Experiment, mesh: Mesh | None = None) -> None:
    """Rules between task, data, evaluators and mesh must hold, before anything is read."""
    try:
        experiment.task.check(experiment.data, mesh)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    for name, evaluator in experiment.evaluators.items():
        try:
            evaluator.check(experiment.task, experiment.data)
        except ValueError as error:
            raise ExperimentError(f"config.evaluators.{name}: {error}") from error


def check_mesh(experiment: Experiment, mesh: Mesh, where: str = "devices") -> None:
    """The global batch must divide over the mesh, and the mesh have work for all its axes; `where` names it."""
    rows, parts, ways = experiment.data.batch_size, experiment.num_microbatches, batch_ways(mesh)
    if rows % (ways * parts):
        microbatches = f" times num_microbatches = {parts}" if parts > 1 else ""
        raise ExperimentError(
            f"config.data.batch_size={rows}: must be a multiple of data x fsdp = {ways} {where}{microbatches}; change "
            "it, or give devices to other axes with config.mesh"
        )
