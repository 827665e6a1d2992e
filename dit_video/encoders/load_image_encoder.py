"""Opening a pretrained image encoder from its folder, with a check of the digest of its weights."""

from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from dit_video.config.user_file import ExperimentError
from dit_video.encoders import clip_image_names
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.mesh_loading import load_params
from dit_video.nn.module import define
from dit_video.weights import names
from dit_video.weights.source import open_published


def opened(image: PretrainedImage, mesh: Mesh) -> CLIPVisionModel:
    """Opens the network in a folder, its weights in `image.precision` on the mesh.

    Raises:
        ExperimentError: the folder is missing, or holds another network than `image.encoder`.
        NamesMismatch: its tensors are not those of the network.
    """
    folder, dtype = Path(image.model), image.precision.dtype
    if not folder.is_dir():
        raise ExperimentError(
            f"config.task.image.model={image.model!r}: is no folder; name that of the published encoder with "
            "--config.task.image.model=FOLDER"
        )
    with open_published(folder, digests={folder / name: sha256 for name, sha256 in image.torch_files}) as published:
        config = None if published.config is None else clip_image_names.of_transformers(published.config)
        if config is None:
            raise ExperimentError(
                f"config.task.image.model={image.model!r}: holds no vision transformer of CLIP of transformers"
            )
        if config != image.encoder:
            raise ExperimentError(f"config.task.image.encoder: {image.model} holds {config}, not {image.encoder}")
        clip_image_names.check_processor(folder, config)
        definition = define(lambda key: CLIPVisionModel(config, dtype=dtype, rngs=nnx.Rngs(key)))
        table, source = clip_image_names.table(config), clip_image_names.tensors(published.source)
        try:
            return definition.bind(dict(load_params(table, source, definition, published.dialect, dtype, mesh)))
        except names.NamesMismatch as error:
            raise names.NamesMismatch(f"{image.model}: {error}") from error
