"""Frozen parts of an experiment (codec, text and image encoders): loaded, compared with digests, placed on the mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from dit_video.arrays import Text
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import Data
from dit_video.distributed.sharding import replicated, shard_frozen
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.load_image_encoder import opened
from dit_video.experiment import Experiment
from dit_video.nn.module import params_of
from dit_video.run.codec import trained_codec
from dit_video.run.folder import EXPERIMENT_FILE
from dit_video.run.text import open_cache, text_cache
from dit_video.storage import bucket
from dit_video.tasks.keys import purpose_key
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.weights.digest import name_as


def with_frozen(
    experiment: Experiment,
    mesh: Mesh,
    console: Console,
    recorded: Experiment | None = None,
    *,
    writes: bool = True,
) -> tuple[Experiment, Any]:
    """Loads the frozen parts that an experiment names, and writes their digests into the experiment.

    Args:
        recorded: an experiment with digests on record, in whose form digests are written.
        writes: latent statistics that had to be measured are kept in the run of the codec.

    Raises:
        ExperimentError: a part is not there, or is not what the experiment says; names the field.
    """
    opener = FolderOpener(experiment, mesh, console, recorded, writes=writes)
    task, frozen = experiment.task.open(opener)
    opener.check_all_read()
    return dataclasses.replace(experiment, task=task, data=opener.data), frozen


def with_random_frozen(experiment: Experiment, mesh: Mesh) -> tuple[Experiment, Any]:
    """Frozen parts with random weights, the same at every start, and the experiment without a latent cache.

    For proofs and measurements of a run whose codec is not trained yet: what is learnt means nothing.
    """
    task, key = experiment.task, purpose_key(experiment.seed, "random frozen parts")
    frozen = jax.jit(task.blank)(key)
    data = dataclasses.replace(experiment.data, cache=None)
    placed = None if frozen is None else jax.device_put(frozen, shard_frozen(frozen, mesh))
    return dataclasses.replace(experiment, data=data), placed


class FolderOpener:
    """Loads frozen parts from run folders, buckets and folders of published encoders (`tasks.opener.Opener`).

    Attributes:
        data: of the experiment, with the digest of its text cache.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        console: Console,
        recorded: Experiment | None = None,
        *,
        writes: bool = True,
    ):
        """`recorded` and `writes` as of `with_frozen`."""
        self._experiment, self._mesh, self._console, self._writes = experiment, mesh, console, writes
        named = None if recorded is None else recorded.task.trained_codec()
        self._codec_on_record = None if named is None else named.digest
        image = None if recorded is None else recorded.task.encoders().image
        self._image_on_record = None if image is None else image.digest
        self.data: Data = experiment.data
        self._read_text = False

    def codec(self, codec: TrainedCodec) -> tuple[TrainedCodec, LatentCodec]:
        opened_codec, digest, _ = trained_codec(
            codec, self._mesh, self._console, self._experiment, self._codec_on_record, writes=self._writes
        )
        return dataclasses.replace(codec, digest=digest), opened_codec

    def image(self, image: PretrainedImage) -> tuple[PretrainedImage, CLIPVisionModel]:
        """Raises as `Opener` says, and

        FileNotFoundError: the folder lacks a file.
        ValueError: pictures are prepared for it otherwise than here; names the file and the field.
        NamesMismatch: it holds weights that are not its own; lists them.
        """
        encoder = opened(image, self._mesh)
        digest = name_as(image.digest or self._image_on_record, params_of(encoder))
        if image.digest is not None and image.digest != digest:
            raise ExperimentError(
                f"config.task.image.digest={image.digest[:12]}...: the encoder in {image.model} is now {digest[:12]}"
                "..., so its tokens would change under this run: restore it, or start a new workdir"
            )
        return dataclasses.replace(image, digest=digest), encoder

    def empty_text(self, sizes: tuple[int, ...] | None) -> Text | None:
        if sizes is None:
            return None
        self._read_text = True
        self.data, text = open_cache(self._experiment, sizes)
        return jax.device_put(text, replicated(self._mesh))

    def check_all_read(self) -> None:
        """Raises ExperimentError where the data name a text cache that the task does not read."""
        if not self._read_text and text_cache(self.data) is not None:
            raise ExperimentError(
                "config.data.signals.text: only a run on embedded text reads a text cache; leave it out"
            )


def with_codec_inside(experiment: Experiment, workdir: Path) -> Experiment:
    """Names the codec that is in the run folder and was moved with it: an imported pipeline has its VAE there."""
    codec = experiment.task.trained_codec()
    if codec is None or bucket.address(codec.run) is not None:
        return experiment
    inside = workdir / Path(codec.run).name
    if (Path(codec.run) / EXPERIMENT_FILE).is_file() or not (inside / EXPERIMENT_FILE).is_file():
        return experiment
    task = experiment.task.with_codec(dataclasses.replace(codec, run=str(inside)))
    return dataclasses.replace(experiment, task=task)
