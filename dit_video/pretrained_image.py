"""A published image encoder at work: opened by folder, and held to the digest of its weights."""

import dataclasses
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from dit_video.checkpoint import weights_digest
from dit_video.experiment import Experiment, ExperimentError
from dit_video.export import names
from dit_video.export.families import clip_vision
from dit_video.export.source import open_published
from dit_video.image.clip import CLIPVisionModel
from dit_video.image.pretrained import PretrainedImage
from dit_video.nn.module import define, params_of
from dit_video.pretrained_text import placed
from dit_video.tasks.denoise import Denoise


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


def opened(image: PretrainedImage, mesh: Mesh) -> CLIPVisionModel:
    """The network in a folder, its weights of `image.precision` on the mesh; errors as of `with_image`."""
    folder, dtype = Path(image.model), image.precision.dtype
    if not folder.is_dir():
        raise ExperimentError(
            f"config.task.image.model={image.model!r}: is no folder; name that of the published encoder with "
            "--config.task.image.model=FOLDER"
        )
    with open_published(folder, digests={folder / name: sha256 for name, sha256 in image.torch_files}) as published:
        config = None if published.config is None else clip_vision.of_transformers(published.config)
        if config is None:
            raise ExperimentError(
                f"config.task.image.model={image.model!r}: holds no vision transformer of CLIP of transformers"
            )
        if config != image.encoder:
            raise ExperimentError(f"config.task.image.encoder: {image.model} holds {config}, not {image.encoder}")
        clip_vision.check_processor(folder, config)
        definition = define(lambda key: CLIPVisionModel(config, dtype=dtype, rngs=nnx.Rngs(key)))
        table, source = clip_vision.table(config), clip_vision.tensors(published.source)
        try:
            return definition.bind(dict(placed(table, source, definition, published.dialect, dtype, mesh)))
        except names.NamesMismatch as error:
            raise names.NamesMismatch(f"{image.model}: {error}") from error
