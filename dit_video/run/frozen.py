"""The frozen parts of an experiment: found, held to their digests and laid on the mesh."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from dit_video.config.user_file import ExperimentError
from dit_video.distributed.sharding import replicated
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.open_image import opened
from dit_video.experiment import Experiment
from dit_video.nn.module import params_of
from dit_video.run.codec import _trained
from dit_video.run.folder import EXPERIMENT_FILE
from dit_video.run.text import with_text
from dit_video.storage import bucket
from dit_video.tasks.denoise import Denoise, Frozen
from dit_video.weights.digest import weights_digest


def with_frozen(experiment: Experiment, mesh: Mesh, console: Console) -> tuple[Experiment, Frozen | None]:
    """Loads the frozen parts that an experiment names, and writes their digests into the experiment."""
    task = experiment.task
    if not isinstance(task, Denoise):
        return experiment, None
    codec, digest, _ = _trained(task.codec, mesh, console, experiment)
    trained = dataclasses.replace(task.codec, digest=digest)
    experiment, null = with_text(dataclasses.replace(experiment, task=dataclasses.replace(task, codec=trained)))
    experiment, image = with_image(experiment, mesh)
    return experiment, Frozen(codec, jax.device_put(null, replicated(mesh)), image)


def with_codec_inside(experiment: Experiment, workdir: Path) -> Experiment:
    """Names the codec that is in the run folder and was moved with it: an imported pipeline has its VAE there."""
    task = experiment.task
    if not isinstance(task, Denoise) or bucket.address(task.codec.run) is not None:
        return experiment
    inside = workdir / Path(task.codec.run).name
    if (Path(task.codec.run) / EXPERIMENT_FILE).is_file() or not (inside / EXPERIMENT_FILE).is_file():
        return experiment
    codec = dataclasses.replace(task.codec, run=str(inside))
    return dataclasses.replace(experiment, task=dataclasses.replace(task, codec=codec))


def with_image(experiment: Experiment, mesh: Mesh) -> tuple[Experiment, CLIPVisionModel | None]:
    """The image encoder that an experiment names, on the mesh, and the experiment with the digest of its weights.

    None where the task has none.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: pictures are prepared for it otherwise than here; names the file and the field.
        ExperimentError: it is no folder, or holds another encoder than the experiment says, or other weights than those
            that its digest is of; names the field.
        NamesMismatch: it holds weights that are not its own; lists them.
    """
    task = experiment.task
    if not isinstance(task, Denoise) or task.image is None:
        return experiment, None
    encoder = opened(task.image, mesh)
    digest, recorded = weights_digest(params_of(encoder)), task.image.digest
    if recorded is not None and recorded != digest:
        raise ExperimentError(
            f"config.task.image.digest={recorded[:12]}...: the encoder in {task.image.model} is now {digest[:12]}..., "
            "so its tokens would change under this run: restore it, or start a new workdir"
        )
    image = dataclasses.replace(task.image, digest=digest)
    return dataclasses.replace(experiment, task=dataclasses.replace(task, image=image)), encoder
