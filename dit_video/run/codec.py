"""A codec that a run trained: opened by folder and digest, its latent statistics, and caches of its latents."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.folder import steps_of
from dit_video.config.components import to_json
from dit_video.config.json_file import other_values, read_object, write_json
from dit_video.config.user_file import ExperimentError
from dit_video.data.record import Split
from dit_video.data.sources import check_prepared
from dit_video.data.transforms import usable
from dit_video.distributed.processes import from_first
from dit_video.distributed.sharding import fetch, place_whole, shard_frozen
from dit_video.experiment import Experiment
from dit_video.nn.module import define, params_of
from dit_video.progress import counted
from dit_video.run.folder import EXPERIMENT_FILE, read_experiment
from dit_video.run.places import located
from dit_video.storage.mirror import local_copy
from dit_video.vae.codec import LatentCodec, latent_statistics
from dit_video.vae.trained_codec import TrainedCodec, name_codec_as
from dit_video.weights.digest import name_as, seal, weights_digest

STATISTICS = "latent_statistics.json"
_REMEDY = "Bring the file back; or remove it, and statistics are measured again over the training set"
# Of float32, in which the codec holds them.
_LARGEST = float(np.finfo(np.float32).max)


def codec_of_run(
    workdir: Path, mesh: Mesh, console: Console, like: Experiment, *, writes: bool = True
) -> tuple[LatentCodec, Mapping[str, Any]]:
    """The codec that a run trained, and its latent statistics.

    Statistics are measured over the training set once for these weights, and kept in the run folder where `writes`.

    Args:
        like: an experiment with the classes of the user's own that the run's is made of.

    Raises:
        FileNotFoundError: they would have to be measured, and the set is not there; or there are no checkpoints.
        ExperimentError: the run trained no codec, or its statistics are not those that were written.
    """
    experiment = located(read_experiment(workdir, like), workdir / EXPERIMENT_FILE)
    task = experiment.task
    if task.learnt_vae is None:
        raise ExperimentError(f"{workdir}: trained {type(task).__name__}, not a codec; name the run of a VAE")
    definition = define(task.init)
    if not (steps := steps_of(workdir)).exists():  # opening would make it
        raise FileNotFoundError(f"{steps.path}: there are no checkpoints of this codec; bring them back")
    checkpoints = Checkpoints(workdir)
    try:
        params = checkpoints.restore_params(definition.shapes, mesh, ema=experiment.ema is not None)
    finally:
        checkpoints.close()
    vae = definition.bind(params).vae
    path = workdir / STATISTICS
    statistics = from_first(lambda: read_statistics(path, vae.config.latent_channels) if path.is_file() else {})
    digest = name_as(statistics.get("codec"), params_of(vae))
    if statistics.get("codec") != digest:
        measured = _measure_statistics(experiment, vae, mesh, console)
        statistics = _sealed({"codec": weights_digest(params_of(vae))} | measured)
        if writes:
            from_first(lambda: write_json(path, statistics))
    mean, std = (jnp.asarray(statistics[name], jnp.float32) for name in ("mean", "std"))
    codec = LatentCodec(vae, mean, std)
    return jax.device_put(codec, shard_frozen(codec, mesh)), statistics


def read_statistics(path: Path, channels: int) -> dict[str, Any]:
    """Latent statistics of a run folder; those of before have no seal.

    Raises:
        ValueError: they are not what was written, or cannot be statistics; names the field.
    """
    statistics = read_object(path, {"codec": str, "mean": list, "std": list})
    sealed = statistics.get("seal")
    if sealed is not None and _sealed({n: v for n, v in statistics.items() if n != "seal"})["seal"] != sealed:
        raise ValueError(f"{path}: has changed since it was written. {_REMEDY}")
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        if problem := _problem(statistics[name], channels, least):
            raise ValueError(f"{path}: damaged: {name}={reprlib.repr(statistics[name])}: {problem}. {_REMEDY}")
    return statistics


def _problem(values: list[Any], channels: int, least: float) -> str:
    """Why values cannot be a statistic of each channel; empty where they can."""
    if len(values) != channels:
        return f"must be {channels} numbers, one for each latent channel"
    if any(type(x) not in (int, float) or not least < x < _LARGEST or x <= -_LARGEST for x in values):
        return "must be finite numbers" + (" above 0" if least == 0 else "")
    return ""


def _sealed(statistics: Mapping[str, Any]) -> dict[str, Any]:
    return {**statistics, "seal": seal(statistics)}


def write_statistics(workdir: Path, digest: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Writes latent statistics [c] that were published with the VAE of a run, so that none are measured.

    Args:
        digest: of the VAE's weights, which the statistics belong to.
    """
    write_json(workdir / STATISTICS, _sealed({"codec": digest, "mean": list(mean), "std": list(std)}))


def trained_codec(
    codec: TrainedCodec,
    mesh: Mesh,
    console: Console,
    like: Experiment,
    recorded: str | None = None,
    *,
    writes: bool = True,
) -> tuple[LatentCodec, str, Mapping[str, Any]]:
    """The codec that an experiment names, its digest, and its latent statistics; as `codec_of_run`.

    Args:
        recorded: a digest on record, in whose form that of the codec is returned where the experiment has none.

    Raises:
        ExperimentError: there is no such run, or its VAE or its digest is not what the experiment says.
    """
    folder = local_copy(Path(codec.run), EXPERIMENT_FILE)
    if not (folder / EXPERIMENT_FILE).is_file():
        raise ExperimentError(
            f"config.task.codec.run={codec.run!r}: there is no run in this folder; train its VAE first, "
            f"with --workdir {codec.run}, or name another with --config.task.codec.run=FOLDER"
        )
    opened, statistics = codec_of_run(folder, mesh, console, like, writes=writes)
    digest = name_codec_as(codec.digest or recorded, opened)
    if opened.vae.config != codec.vae:
        settings = {"config.task.codec.vae": to_json(opened.vae.config)}, {"config.task.codec.vae": to_json(codec.vae)}
        lines = other_values(*settings, "this experiment", actually=f"run {codec.run}")
        raise ExperimentError(
            "\n".join([f"{codec.run}: trained another VAE than this experiment names; these fields differ:", *lines])
        )
    if codec.digest is not None and codec.digest != digest:
        raise ExperimentError(
            f"config.task.codec.digest={codec.digest[:12]}...: the codec in {codec.run} is now {digest[:12]}...; it "
            "has been trained on since, or its latent statistics are others, so latents would change under this run: "
            "restore it, or start a new workdir"
        )
    return opened, digest, statistics


def _measure_statistics(experiment: Experiment, vae: nnx.Module, mesh: Mesh, console: Console) -> dict[str, Any]:
    """Per-channel mean and deviation of latents over the training set: one clip of every video."""
    source = experiment.data.source
    check_prepared(source)
    total = len(usable(source.open(Split.TRAIN), experiment.data.clips))
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
