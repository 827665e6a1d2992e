"""What must hold before a run starts: each is checked before anything is read, written or compiled."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from dit_video.config.user_file import ExperimentError
from dit_video.distributed import processes
from dit_video.distributed.sharding import batch_ways, platform_of
from dit_video.experiment import Experiment
from dit_video.run.folder import EXPERIMENT_FILE
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.denoise import Denoise


def check_joined() -> None:
    """The devices of other processes are of no use to a process that cannot speak with those."""
    if jax.process_count() > 1 and not processes.joined():
        raise ExperimentError(
            f"the devices here belong to {jax.process_count()} processes, which have not joined: start each with "
            f"--coordinator={processes.AUTO}"
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


def check_clips(experiment: Experiment) -> None:
    """Clips must fill whole latent cells, and latents whole patches, before anything is read."""
    task, clips = experiment.task, experiment.data.clips
    shape = (clips.num_frames, *clips.size)
    try:
        if isinstance(task, Autoencode):
            task.vae.latent_shape(shape)
        if isinstance(task, Denoise):
            cells, patch = task.codec.vae.latent_shape(shape), task.network.patch_size
            if any(n % p for n, p in zip(cells, patch)):
                raise ValueError(f"latents of {cells} do not divide into config.task.network.patch_size={patch}")
    except ValueError as error:
        raise ExperimentError(f"config.data.clips (num_frames, size) = {shape}: {error}") from error


def check_mesh(experiment: Experiment, mesh: Mesh, where: str = "devices") -> None:
    """The global batch must divide over the mesh, and the mesh have work for all its axes; `where` names it."""
    rows, parts, ways = experiment.data.batch_size, experiment.num_microbatches, batch_ways(mesh)
    if rows % (ways * parts):
        microbatches = f" times num_microbatches = {parts}" if parts > 1 else ""
        raise ExperimentError(
            f"config.data.batch_size={rows}: must be a multiple of data x fsdp = {ways} {where}{microbatches}; change "
            "it, or give devices to other axes with config.mesh"
        )
    idle = [axis for axis in ("context", "tensor") if mesh.shape[axis] > 1]
    if isinstance(experiment.task, Autoencode) and idle:
        raise ExperimentError(
            f"config.mesh.{idle[0]}={mesh.shape[idle[0]]}: an autoencoder is split along data and fsdp only; devices "
            f"along {' and '.join(idle)} would all do the same"
        )
