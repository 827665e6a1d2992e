"""A codec that a run trained: opened by folder and digest, its latent statistics, and caches of its latents."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from dit_video import experiment as experiments
from dit_video import object_store
from dit_video.checkpoint import Checkpoints, weights_digest
from dit_video.data.batch import Clip, Split, collate
from dit_video.data.latent_cache import write_latent_cache
from dit_video.data.loader import held_out_clips
from dit_video.data.transforms import ClipTransform, Usable, usable
from dit_video.data.video_set import MANIFEST
from dit_video.experiment import Experiment, ExperimentError
from dit_video.json_file import read_object
from dit_video.nn.module import define, params_of
from dit_video.pretrained_image import with_image
from dit_video.pretrained_text import with_text
from dit_video.processes import from_first
from dit_video.progress import counted
from dit_video.run_copy import at_hand
from dit_video.run_folder import RECORD, other_values, read_experiment, write_json
from dit_video.sharding import fetch, make_mesh, place, place_whole, replicated, shard_frozen
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.denoise import Denoise, Frozen, TrainedCodec
from dit_video.user_cache import keep_compiled_programs
from dit_video.vae.codec import LatentCodec, latent_statistics

STATISTICS = "latent_statistics.json"


def with_frozen(experiment: Experiment, mesh: Mesh, console: Console) -> tuple[Experiment, Frozen | None]:
    """Loads the frozen parts that an experiment names, and writes their digests into the experiment."""
    task = experiment.task
    if not isinstance(task, Denoise):
        return experiment, None
    codec, digest, _ = _trained(task.codec, mesh, console, experiment)
    trained = dataclasses.replace(task.codec, digest=digest)
    experiment, nothing = with_text(dataclasses.replace(experiment, task=dataclasses.replace(task, codec=trained)))
    experiment, image = with_image(experiment, mesh)
    return experiment, Frozen(codec, jax.device_put(nothing, replicated(mesh)), image)


def with_codec_inside(experiment: Experiment, workdir: Path) -> Experiment:
    """Names the codec that is in the run folder and was moved with it: an imported pipeline has its VAE there."""
    task = experiment.task
    if not isinstance(task, Denoise) or object_store.address(task.codec.run) is not None:
        return experiment
    inside = workdir / Path(task.codec.run).name
    if (Path(task.codec.run) / RECORD).is_file() or not (inside / RECORD).is_file():
        return experiment
    codec = dataclasses.replace(task.codec, run=str(inside))
    return dataclasses.replace(experiment, task=dataclasses.replace(task, codec=codec))


def codec_of_run(
    workdir: Path, mesh: Mesh, console: Console, like: Experiment
) -> tuple[LatentCodec, str, Mapping[str, Any]]:
    """The codec that a run trained, the digest of its weights, and its latent statistics.

    `like` has the classes of the user's own that its experiment is made of.

    Statistics are measured over the training set once for these weights, and kept in the run folder.
    """
    experiment = read_experiment(workdir, like)
    task = experiment.task
    if not isinstance(task, Autoencode):
        raise ExperimentError(f"{workdir}: trained {type(task).__name__}, not a codec; name the run of a VAE")
    definition = define(task.init)
    checkpoints = Checkpoints(workdir)
    try:
        params = checkpoints.restore_params(definition.shapes, mesh, ema=True)
    finally:
        checkpoints.close()
    vae = definition.bind(params).vae
    digest = weights_digest(params_of(vae))
    path = workdir / STATISTICS
    found = from_first(lambda: read_object(path) if path.is_file() else {})
    if found.get("codec") != digest:
        found = {"codec": digest} | _measure_statistics(experiment, vae, mesh, console)
        from_first(lambda: write_json(path, found))
    codec = LatentCodec(vae, jnp.asarray(found["mean"], jnp.float32), jnp.asarray(found["std"], jnp.float32))
    return jax.device_put(codec, shard_frozen(codec, mesh)), digest, found


def write_statistics(workdir: Path, digest: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Latent statistics that were published with the VAE of a run, whose weights have this digest: none is measured."""
    write_json(workdir / STATISTICS, {"codec": digest, "mean": list(mean), "std": list(std)})


def encode(experiment: Experiment, *, clips_per_video: int, overwrite: bool, console: Console) -> None:
    """Writes the latent cache that `experiment.data.cache` names: moments of both splits of its source."""
    data, task = experiment.data, experiment.task
    if data.cache is None or not isinstance(task, Denoise):
        raise ExperimentError("config.data.cache is None: this experiment trains on video and has no cache to write")
    keep_compiled_programs()
    mesh = make_mesh(experiment.mesh)
    codec, digest, statistics = _trained(task.codec, mesh, console, experiment)
    folder, info = Path(data.cache.directory), data.source.info()
    totals = {
        split: _num_clips(usable(data.source.open(split), data.clips), data.clips, clips_per_video) for split in Split
    }
    made_with = provenance(experiment, digest, statistics)
    if folder.exists() and overwrite:
        data.cache.info()  # an error unless it is a latent cache: nothing else is ever deleted
        shutil.rmtree(folder)
    if (folder / MANIFEST).exists() and (data.cache.provenance(), data.cache.info().num_records) == (made_with, totals):
        console.print(f"latent cache: {folder} is there already", highlight=False)
        return
    moments_of = jax.jit(lambda codec, video: codec.moments(video))

    def clips(split: Split) -> Iterator[Clip]:
        total = totals[split]
        cut = held_out_clips(data.source.open(split), data.clips, num_clips=total, seed=experiment.seed)
        for rows in _chunks(counted(cut, f"encoding {split}", total=total, console=console), data.batch_size):
            # One shape is compiled: a short last batch is filled up with its last clip.
            filled = rows + [rows[-1]] * (data.batch_size - len(rows))
            with jax.set_mesh(mesh):
                found = np.asarray(moments_of(codec, place(collate(filled).video, mesh)))
            for clip, moments in zip(rows, found):
                yield dataclasses.replace(clip, video=None, moments=moments)

    write_latent_cache(
        folder,
        {split: clips(split) for split in Split},
        class_names=info.class_names,
        split_digests=info.split_digest,
        provenance=made_with,
    )
    console.print(f"latent cache: {folder}", highlight=False)


def _num_clips(records: Usable, transform: ClipTransform, clips_per_video: int) -> int:
    if records.num_frames is None:
        raise ExperimentError("config.data.source: holds latents already; name a source of video")
    return int(np.minimum(transform.num_starts(records.num_frames), clips_per_video).sum())


def check_cache(experiment: Experiment, frozen: Frozen | None) -> None:
    cache, task = experiment.data.cache, experiment.task
    if cache is None:
        return
    if frozen is None or not isinstance(task, Denoise):
        raise ExperimentError("config.data.cache: only a run on latents reads a latent cache; leave it None")
    codec = frozen.codec
    statistics = {"mean": np.asarray(codec.mean[...]).tolist(), "std": np.asarray(codec.std[...]).tolist()}
    assert task.codec.digest is not None, "with_frozen writes the digest of the codec it loads"
    wanted = provenance(experiment, task.codec.digest, statistics)
    found = cache.provenance()
    if lines := other_values(found, wanted, "this run"):
        raise ExperimentError(
            f"latent cache {cache.directory} was not made for this run; these fields differ:\n"
            + "\n".join(lines)
            + "\nencode again: dit-video encode --config ... --overwrite"
        )


def provenance(experiment: Experiment, digest: str, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """What a latent cache must have been made with to serve `experiment`."""
    return {
        "codec": digest,
        "statistics": {"mean": list(statistics["mean"]), "std": list(statistics["std"])},
        "clips": experiments.to_json(experiment.data.clips),
        "source": experiment.data.source.info().digest,
    }


def _trained(
    codec: TrainedCodec, mesh: Mesh, console: Console, like: Experiment
) -> tuple[LatentCodec, str, Mapping[str, Any]]:
    folder = at_hand(Path(codec.run), RECORD)
    if not (folder / RECORD).is_file():
        raise ExperimentError(
            f"config.task.codec.run={codec.run!r}: there is no run in this folder; train its VAE first, "
            f"with --workdir {codec.run}, or name another with --config.task.codec.run=FOLDER"
        )
    opened, digest, statistics = codec_of_run(folder, mesh, console, like)
    if opened.vae.config != codec.vae:
        raise ExperimentError(
            f"config.task.codec.vae: the run {codec.run} trained {opened.vae.config}, the experiment says {codec.vae}"
        )
    if codec.digest is not None and codec.digest != digest:
        raise ExperimentError(
            f"config.task.codec.digest={codec.digest[:12]}...: the codec in {codec.run} is now {digest[:12]}...; it "
            "has been trained on since, so latents would change under this run: restore it, or start a new workdir"
        )
    return opened, digest, statistics


def _measure_statistics(experiment: Experiment, vae: nnx.Module, mesh: Mesh, console: Console) -> dict[str, Any]:
    """Per-channel mean and deviation of latents over the training set: one clip of every video."""
    source = experiment.data.source
    total = source.info().num_records[Split.TRAIN]
    size = experiment.data.batch_size
    encode = jax.jit(lambda vae, video: LatentCodec(vae, jnp.zeros(1), jnp.ones(1)).moments(video))
    batches = experiment.data.judged(Split.TRAIN, total, size, seed=experiment.seed)

    def moments():
        shown = counted(batches, "latent statistics", total=total, size=lambda item: item[1], console=console)
        for batch, valid in shown:
            with jax.set_mesh(mesh):
                yield fetch(encode(vae, place_whole(batch.video, mesh)))[:valid]

    # float32, as the codec holds them, so that records of them compare equal.
    mean, std = (np.asarray(x, np.float32).tolist() for x in latent_statistics(moments()))
    return {"num_clips": total, "set": source.info().digest, "mean": mean, "std": std}


def _chunks(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    iterator = iter(clips)
    while rows := list(itertools.islice(iterator, size)):
        yield rows
