"""Import of published weights as a run: a diffusers folder (a pipeline or one network), or an official file.

Such a run is like one that was trained here: `train --init_from`, `sample`, `evaluate` and `export` take it. What
weights do not say (data, and of a denoiser its codec) comes from an experiment or from other parts of the pipeline.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.checkpoint.slices import Layout, Slice, save_slices
from dit_video.config import components
from dit_video.config.json_file import write_json
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import Data
from dit_video.data.sources import NoData
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.guidance import Guidance
from dit_video.dit.known_frames import LevelZero
from dit_video.experiment import Experiment
from dit_video.published.family import DenoiserFamily, Family
from dit_video.published.recognise import is_published_vae, recognise_within
from dit_video.published.scheduler import PIPELINES, Usual, read_scheduler
from dit_video.published.vae_family import VAEFamily
from dit_video.run.codec import write_statistics
from dit_video.run.folder import read_experiment, record
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.known_frames import FirstFrame
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import Encoders
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.weights import names
from dit_video.weights.adapters import foreign
from dit_video.weights.digest import name_weights
from dit_video.weights.finite import count_not_finite
from dit_video.weights.folder import CONFIG, PIPELINE, folder_of, is_of_folder, read_json
from dit_video.weights.pipeline import parts_of, write_parts
from dit_video.weights.source import NO_DIGESTS, PROVENANCE, Digests, Published, digests_in, open_published

# In the folder of a run made of a pipeline: the run of its VAE.
CODEC = "vae"
# A pipeline of diffusers whose first frame is known, where its index says that every frame has its own timestep.
_IMAGE_TO_VIDEO = "WanImageToVideoPipeline"
# (height, width) in the experiment of an imported VAE, which takes clips of any size.
_VAE_SIZE = (256, 256)
# Items of the checkpoint: the weights are saved as raw and as averaged ones.
_ITEMS = ("params", "ema")
_KEEP = "export --format=diffusers writes the whole pipeline, with what is no part of the run from {}: keep it"
# How many tensors an error names.
_SHOWN = 10
# Names that diffusers gives and official code does not.
_OF_DIFFUSERS = re.compile(r"(^|\.)(transformer_blocks|down_blocks|up_blocks|condition_embedder)\.|\.to_(q|out\.0)\.")
# Prefix of a VAE's parameters in a run, whose other ones are those of the critic.
_VAE = "vae."


@dataclasses.dataclass(frozen=True)
class Part:
    """What was imported of one network.

    Attributes:
        network: what kind of network they are of.
        num_tensors, num_params: tensors that were read, and numbers in them.
        dtypes: of the published tensors, that of most of them first.
        notes: what a user should know of what was read and what was not.
        not_followed: settings of the pipeline's scheduler that samplers here do not have.
        sampled: how the run is sampled where nobody says otherwise; empty of what is not sampled.
        needs: folders that the run reads when it is used, beside its own.
    """

    network: str
    num_tensors: int
    num_params: int
    dtypes: tuple[np.dtype, ...]
    notes: tuple[str, ...] = ()
    not_followed: tuple[str, ...] = ()
    sampled: str = ""
    needs: tuple[str, ...] = ()


def import_run(
    source: Path,
    folder: Path,
    *,
    out: Path,
    experiment: Experiment | None,
    overrides: tuple[str, ...] = (),
    codec: Path | None = None,
    digests: Digests = NO_DIGESTS,
    allow_not_finite: bool = False,
) -> list[Part]:
    """Makes `folder` a run of the weights at `source`; every tensor is mapped exactly once.

    Args:
        out: where `folder` will be in the end, by which the experiment names its own codec.
        experiment: what the weights are for; None: an experiment is made of what is known of them.
        codec: the run whose codec a denoiser without an experiment works on; None: that of its pipeline.
        digests: that files were published with; torch files are not read without.
        allow_not_finite: take weights among which are NaN or infinite ones.

    Raises:
        ValueError: weights of no known family, or of another network than the experiment's, or numbers that are not
            finite, or an experiment cannot be made; says what is missing.
    """
    source = folder_of(source)
    parts, named, pipeline = [], codec, _pipeline(source)
    if pipeline == source and any(_read(source / PIPELINE).get("transformer_2") or ()):
        raise ExperimentError(
            f"{source / PIPELINE}: the pipeline has two networks, for high and for low noise, and each is a run of its "
            f"own: import {source / CODEC}, then {source / 'transformer'} and {source / 'transformer_2'} with --codec"
        )
    if experiment is None and codec is None and pipeline == source:
        codec, named = folder / CODEC, out / CODEC
        codec.mkdir()
        parts += import_run(
            *(source / CODEC, codec), out=named, experiment=None, digests=digests, allow_not_finite=allow_not_finite
        )
    with open_published(source, digests=digests) as published:
        network, published = _recognised(published, None if experiment is None else experiment.task, source)
        dtypes = _checked(network, published, source)
        not_followed: tuple[str, ...] = ()
        if experiment is None:
            experiment, not_followed = _made_for(network, published, source, codec, named)
            experiment = _with_torch_files(experiment, digests)
        counts: dict[str, int] = {}
        published = dataclasses.replace(published, source=count_not_finite(published.source, counts))
        record(experiment, folder, overrides, allow_change=False)
        write_json(folder / PROVENANCE, _provenance(published, source, dtypes))
        if pipeline is not None and isinstance(network, DenoiserFamily):
            write_parts(parts_of(pipeline), folder)
        layout, slices = _saved_as(network, published, source, None if allow_not_finite else counts)
        saved = save_slices(folder, _ITEMS, layout, slices, experiment=components.record(experiment))
        if isinstance(network, VAEFamily):
            mean, std = network.statistics
            arrays = {n.removeprefix(_VAE): (layout.shapes[n], "float32", digest) for n, digest in saved.items()}
            write_statistics(folder, name_weights(arrays), mean, std)
        named_codec = experiment.task.trained_codec()  # None of a codec itself
        whole = named_codec is not None and is_published_vae(named_codec.vae)
        keep = (_KEEP.format(pipeline.resolve()),) if pipeline is not None and whole else ()
        taken = (f"taken though not finite: {_listed(counts)}",) if counts else ()
        return [
            *parts,
            Part(
                network=type(network).__name__,
                num_tensors=len(published.source),
                num_params=sum(map(math.prod, layout.shapes.values())),
                dtypes=dtypes,
                notes=(*published.notes, *taken, *keep),
                not_followed=not_followed,
                sampled=_sampled(experiment),
                needs=_needed(experiment),
            ),
        ]


def _sampled(experiment: Experiment) -> str:
    """A line that says how a run is sampled, with the options that change it."""
    task = experiment.task.latent_denoiser()
    if task is None:
        return ""
    guided = f"guidance {task.guidance.scale:g} (--guidance)" if task.guided else "guidance off (--guidance)"
    return f"sampled in {task.sampler.num_steps} steps (--num_steps) with {guided}"


def _needed(experiment: Experiment) -> tuple[str, ...]:
    text, image = experiment.task.encoders()
    needed = () if text is None else tuple(encoder.model for encoder in text.encoders.values())
    return needed if image is None else (*needed, image.model)


def _recognised(published: Published, task: Any, path: Path) -> tuple[Family, Published]:
    """The network that weights are of, which is that of `task` where there is one, and its tensors alone.

    Raises:
        ValueError: no family has such weights, or the task has another network; names the fields that differ.
    """
    try:
        recognised = recognise_within(published, task)
    except ValueError as error:
        raise ValueError(f"{path}: {foreign(published.source) or error}") from error
    if recognised is None:
        raise ValueError(f"{path}: {_unknown(published)}")
    network, published = recognised
    if task is not None and (differences := network.differences(task)):
        lines = "\n".join(f"  {line}" for line in differences)
        raise ExperimentError(f"{path}: weights of another network than the experiment's; they need\n{lines}")
    return network, published


def _unknown(published: Published) -> str:
    """What weights of no family are, and what to do."""
    if kind := foreign(published.source):
        return kind
    if published.config is not None:
        found = f"_class_name={published.config.get('_class_name')!r}"
    elif is_of_folder(published.files[0].name) or any(_OF_DIFFUSERS.search(name) for name in published.source):
        return (
            "a file of a folder of diffusers without the config.json that says its sizes: put that beside it, and "
            "name the folder"
        )
    else:
        found = f"tensors such as {', '.join(list(published.source)[:3])}"
    return f"{found}: of no family that is known here; `dit-video import --help` lists them"


def _checked(network: Family, published: Published, path: Path) -> tuple[np.dtype, ...]:
    try:
        return names.check(network.table(), published.dialect, published.source)
    except names.NamesMismatch as error:
        raise names.NamesMismatch(f"{path}: {error}") from error


def _made_for(
    network: Family, published: Published, source: Path, codec: Path | None, named: Path | None
) -> tuple[Experiment, tuple[str, ...]]:
    """An experiment that has the network of published weights and no data, and what its sampler does not follow.

    Args:
        codec: where the run of a denoiser's codec is now.
        named: where the experiment is to look for it.
    """
    not_followed: tuple[str, ...] = ()
    if isinstance(network, VAEFamily):
        # Two groups of frames after the first: enough for every part that looks back.
        frames = network.config.compression[0] * network.config.frame_group
        num_frames = 1 if frames == 1 else 1 + 2 * frames
        task, size, class_names = Autoencode(vae=network.config), _VAE_SIZE, ()
    elif isinstance(network, DenoiserFamily):
        task, not_followed = _denoise(network, source, codec, named)
        try:
            t, h, w = network.usual_latents(published.config or {})
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        frames, rows, columns = task.codec.vae.compression
        num_frames, size = 1 + (t - 1) * frames, (h * rows, w * columns)
        class_names = _class_names(source)
    else:
        raise ValueError(f"{source}: {type(network).__name__} is no denoiser and no VAE")
    experiment = Experiment(
        task=task,
        data=Data(
            source=NoData(class_names=class_names), clips=ClipTransform(num_frames=num_frames, size=size), batch_size=1
        ),
        optimizer=AdamW(),
        schedule=Schedule(num_steps=1),
    )
    return experiment, not_followed


def _denoise(
    network: DenoiserFamily, source: Path, codec: Path | None, named: Path | None
) -> tuple[Denoise, tuple[str, ...]]:
    if codec is None or named is None:
        raise ExperimentError(
            f"{source}: weights of a denoiser do not say of which latents: give the run of their VAE with --codec "
            "(`dit-video import` makes one of the VAE's folder), an experiment with --config, or the folder of the "
            f"whole pipeline, which has a {PIPELINE}"
        )
    vae = read_experiment(codec).task.learnt_vae
    if vae is None:
        raise ExperimentError(f"--codec {codec}: is no run of a VAE")
    if vae.latent_channels != network.channels:
        raise ExperimentError(
            f"{source}: is for latents of {network.channels} channels, the VAE of --codec has {vae.latent_channels}"
        )
    pipeline = _pipeline(source)
    found = Path() if pipeline is None else pipeline.resolve()
    said = _read(found / PIPELINE)
    sampled = read_scheduler(found / "scheduler" / "scheduler_config.json", network.objective())
    text = None if pipeline is None else network.text_encoders(str(found))
    condition = network.condition if text is None else network.condition_on(text)
    continues = said.get("_class_name") == _IMAGE_TO_VIDEO and said.get("expand_timesteps") is True
    usual = PIPELINES.get(str(said.get("_class_name")), Usual(sampled.sampler.num_steps, 1.0))
    task = Denoise(
        network=network.config,
        codec=TrainedCodec(vae=vae, run=str(named.resolve())),
        condition=condition,
        text=text,
        image=None if pipeline is None else network.image_encoder(str(found)),
        known=FirstFrame(shown=network.known or LevelZero()) if continues or network.known is not None else None,
        objective=sampled.objective,
        sampler=dataclasses.replace(sampled.sampler, num_steps=usual.num_steps),
        guidance=Guidance(scale=1.0 if condition is None else usual.guidance_scale),
    )
    return task, sampled.not_followed


def _with_torch_files(experiment: Experiment, digests: Digests) -> Experiment:
    """An experiment that knows the digests of the torch files of its encoders, which it reads when it is used."""
    text, image = encoders = experiment.task.encoders()
    if encoders == Encoders():
        return experiment
    if text is not None:
        known: dict[str, Any] = {
            name: dataclasses.replace(encoder, torch_files=digests_in(Path(encoder.model), digests))
            for name, encoder in text.encoders.items()
        }
        text = dataclasses.replace(text, **known)
    if image is not None:
        image = dataclasses.replace(image, torch_files=digests_in(Path(image.model), digests))
    return dataclasses.replace(experiment, task=experiment.task.with_encoders(Encoders(text, image)))


def _class_names(source: Path) -> tuple[str, ...]:
    """Class names by label, as the index of a pipeline lists them; empty where it lists none."""
    pipeline = _pipeline(source)
    labels = {} if pipeline is None else _read(pipeline / PIPELINE).get("id2label", {})
    if not isinstance(labels, dict):
        return ()
    return tuple(str(labels.get(str(number), number)) for number in range(len(labels)))


def _pipeline(source: Path) -> Path | None:
    """The folder of the pipeline that weights are of, or are a part of; None where they are of none."""
    folder = source.parent if source.is_file() and (source.parent / CONFIG).is_file() else source
    return next((folder for folder in (folder, folder.parent) if (folder / PIPELINE).is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    """An object, empty where there is no such file: a network alone has none of its pipeline's."""
    return read_json(path) if path.is_file() else {}


def _saved_as(
    network: Family, published: Published, path: Path, not_finite: Mapping[str, int] | None
) -> tuple[Layout, Callable[[], Iterator[Slice]]]:
    """How the parameters of a network are saved, and what makes all slices of them, each read when it is its turn.

    After the last slice it raises ValueError where by then `not_finite` has something.
    """
    prefix, table = _VAE if isinstance(network, VAEFamily) else "", network.table()
    shapes = {
        prefix + row.ours: (row.num_layers, *row.our_shape) if row.stacked else row.our_shape for row in table.rows
    }
    stacked = frozenset(prefix + row.ours for row in table.rows if row.stacked)

    def slices() -> Iterator[Slice]:
        found = names.read_slices(table, published.dialect, published.source)
        try:
            # A loop would hold a slice while the next one is read.
            yield from map(lambda one: (prefix + one[0], *one[1:]), found)
        except names.NamesMismatch as error:
            raise names.NamesMismatch(f"{path}: {error}") from error
        if not_finite:
            raise ValueError(
                f"{path}: numbers that are not finite, so the network computes none: {_listed(not_finite)}; "
                "--allow_not_finite takes them as they are"
            )

    return Layout(shapes, stacked), slices


def _listed(not_finite: Mapping[str, int]) -> str:
    """Tensors with how many of their numbers are not finite."""
    more = [f"and {len(not_finite) - _SHOWN} more tensors"] if len(not_finite) > _SHOWN else []
    return ", ".join([*(f"{name} ({count})" for name, count in list(not_finite.items())[:_SHOWN]), *more])


def _provenance(published: Published, path: Path, dtypes: tuple[np.dtype, ...]) -> dict[str, Any]:
    """Origin of the weights of a run as JSON: folder, dialect, dtypes, digests of files, config."""
    digests = {}
    for name in published.files:
        with name.open("rb") as file:
            digests[name.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "source": path.name,
        "dialect": published.dialect.value,
        "dtype": " and ".join(map(str, dtypes)),
        "sha256": digests,
        "config": published.config,
    }
