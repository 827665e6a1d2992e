"""A run: its folder, and how experiment, mesh, task, data, step and checkpoints are put together (only here).

A run folder holds
    experiment.json          the resolved experiment, overrides, fingerprint and versions, written before anything starts
    checkpoints/             steps; each is state, data position and experiment as one
    metrics.jsonl            the record: one line per step, evaluation and speed measurement
    curves.png, samples/, tensorboard/
    latent_statistics.json   of a codec: per-channel mean and deviation over the training set
"""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track

from dit_video import experiment as experiments
from dit_video.checkpoint import Checkpoints, weights_digest
from dit_video.data.batch import Batch, Clip, Split, collate
from dit_video.data.dataset import Data
from dit_video.data.latent_cache import write_latent_cache
from dit_video.data.loader import held_out_clips
from dit_video.data.transforms import usable
from dit_video.experiment import Experiment, ExperimentError
from dit_video.nn.module import Definition, Params, define, params_of
from dit_video.sharding import make_mesh, place, replicated
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.denoise import Denoise, TrainedCodec
from dit_video.tasks.task import EvaluationData, Subject
from dit_video.training import loop
from dit_video.training.curves import plot_record
from dit_video.training.flops import count_flops, peak_flops
from dit_video.training.step import Program, TrainState, make_program
from dit_video.training.tracker import Tracker
from dit_video.vae.codec import LatentCodec, latent_statistics

RECORD = "experiment.json"
STATISTICS = "latent_statistics.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A finished or interrupted run, opened to be judged, sampled from or exported.

    `params` are the averaged weights where `ema`, else the raw ones.
    """

    workdir: Path
    experiment: Experiment
    definition: Definition
    params: Params
    frozen: nnx.Module | None
    mesh: Mesh
    step: int
    ema: bool

    def subject(self) -> Subject:
        about = description(self.experiment, self.workdir)
        subject = Subject(self.experiment.task, self.definition, self.frozen, self.mesh, about)
        return subject.hold(self.params, step=self.step, ema=self.ema)


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    init_from: Path | None = None,
    allow_change: bool = False,
    profile: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Trains `experiment` in `workdir`, going on from its last checkpoint where there is one.

    Args:
        init_from: another run whose averaged weights a new run starts from.
        allow_change: go on although the experiment is not the one this folder was started with.
    """
    console = console or Console()
    mesh = make_mesh(experiment.mesh)
    _check_batch(experiment.data, mesh)
    experiment, frozen = _with_codec(experiment, mesh, console)
    _check_cache(experiment, frozen)
    _record(experiment, workdir, overrides, allow_change)
    program = make_program(
        experiment.task,
        experiment.optimizer,
        experiment.ema,
        num_steps=experiment.schedule.num_steps,
        num_microbatches=experiment.num_microbatches,
        mesh=mesh,
    )
    checkpoints = Checkpoints(workdir, experiment=experiments.to_json(experiment))
    state, next_batch = _initial_state(experiment, program, checkpoints, init_from, console)
    start = int(state.step)
    batches = experiment.data.train(
        experiment.seed, next_batch, process_index=jax.process_index(), process_count=jax.process_count()
    )
    tracker = Tracker(workdir, start=start, num_steps=experiment.schedule.num_steps, console=console)
    stop = loop.StopSignal()
    try:
        with stop.listen():
            state, step = loop.train(
                program,
                state,
                frozen=frozen,
                batches=batches,
                seed=experiment.seed,
                schedule=experiment.schedule,
                work=measure_work(experiment),
                evaluators=experiment.evaluators,
                subject=Subject(
                    experiment.task, program.definition, frozen, mesh, description(experiment, workdir)
                ),
                data=evaluation_data(experiment),
                tracker=tracker,
                saver=checkpoints,
                stop=stop,
                mesh=mesh,
                profile=loop.Profile(folder=str(workdir / "profile")) if profile else None,
            )
    finally:
        batches.close()
        checkpoints.wait()
        checkpoints.close()
        tracker.close()
        plot_record(workdir)
    finished = step == experiment.schedule.num_steps
    if finished and isinstance(experiment.task, Autoencode):
        codec_of_run(workdir, mesh, console)
    return Outcome(step, finished)


def encode(experiment: Experiment, *, clips_per_video: int, overwrite: bool, console: Console) -> None:
    """Writes the latent cache that `experiment.data.cache` names: moments of both splits of its source."""
    data, task = experiment.data, experiment.task
    if data.cache is None or not isinstance(task, Denoise):
        raise ExperimentError("config.data.cache is None: this experiment trains on video and has no cache to write")
    mesh = make_mesh(experiment.mesh)
    codec, digest, statistics = _trained(task.codec, mesh, console)
    folder, info = Path(data.cache.directory), data.source.info()
    if folder.exists() and overwrite:
        shutil.rmtree(folder)
    moments_of = jax.jit(lambda codec, video: codec.moments(video))

    def clips(split: Split) -> Iterator[Clip]:
        examples = data.source.open(split)
        num_starts = data.clips.num_starts(usable(examples, data.clips).num_frames)
        total = int(np.minimum(num_starts, clips_per_video).sum())
        cut = held_out_clips(examples, data.clips, num_clips=total, seed=experiment.seed)
        for rows in _chunks(track(cut, f"encoding {split}", total=total, console=console), data.batch_size):
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
        provenance=provenance(experiment, digest, statistics),
    )
    console.print(f"latent cache: {folder}", highlight=False)


def open_run(workdir: Path, *, step: int | None = None, ema: bool = True, console: Console | None = None) -> OpenRun:
    """Opens a run folder with its averaged (or raw) weights of `step`, the latest by default."""
    console = console or Console()
    experiment = read_experiment(workdir)
    mesh = make_mesh(experiment.mesh)
    experiment, frozen = _with_codec(experiment, mesh, console)
    definition = define(experiment.task.init)
    checkpoints = Checkpoints(workdir)
    try:
        params = checkpoints.restore_params(definition.shapes, mesh, ema=ema, step=step)
        step = checkpoints.latest if step is None else step
    finally:
        checkpoints.close()
    return OpenRun(workdir, experiment, definition, params, frozen, mesh, step, ema)


def read_experiment(workdir: Path) -> Experiment:
    """The experiment a run folder was started with."""
    path = workdir / RECORD
    if not path.is_file():
        raise ExperimentError(f"{workdir}: not a run folder (no {RECORD}); `dit-video train --workdir` makes one")
    return experiments.from_json(json.loads(path.read_text(encoding="utf-8"))["experiment"])


def evaluation_data(experiment: Experiment) -> EvaluationData:
    """The clips that a run is judged on, and what identifies them."""
    data = experiment.data
    clips = data.clips

    def batches(split: Split, num_clips: int, batch_size: int):
        return data.judged(split, num_clips, batch_size, seed=experiment.seed)

    info = data.source.info()
    return EvaluationData(
        batches=batches,
        shape=(clips.num_frames, *clips.size),
        fps=data.source.open(Split.HELD_OUT)[0].fps / clips.stride,
        protocol={
            "set": info.digest,
            "splits": {split.value: info.split_digest[split] for split in Split},
            "stride": clips.stride,
            "size": list(clips.size),
            "crop": "centre",
            "seed": experiment.seed,
        },
    )


def description(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """What a card says of a run beside its weights."""
    task = experiment.task
    found: dict[str, Any] = {"run": workdir.name, "fingerprint": experiments.fingerprint(experiment)}
    if isinstance(task, Denoise):
        found |= {
            "codec": task.codec.digest,
            "sampler": experiments.to_json(task.sampler),
            "guidance": experiments.to_json(task.guidance),
        }
    return found | {"environment": environment()}


def measure_work(experiment: Experiment) -> loop.Work:
    """What one training step amounts to on the devices of this machine."""
    task, data = experiment.task, experiment.data
    tokens = None
    if isinstance(task, Denoise):
        cells = task.codec.vae.latent_shape((data.clips.num_frames, *data.clips.size))
        tokens = data.batch_size * int(np.prod([n // p for n, p in zip(cells, task.network.patch_size)]))
    peak = peak_flops(jax.devices()[0].device_kind)
    total = None if peak is None else peak * jax.device_count()
    return loop.Work(clips=data.batch_size, tokens=tokens, flops=step_flops(experiment), peak=total)


def step_flops(experiment: Experiment) -> int:
    """Model FLOPs of one training step; no device is touched."""
    task = experiment.task
    definition, frozen = define(task.init), abstract_codec(task)

    def loss(params, frozen, batch, key, step):
        return task.loss(definition.bind(params), frozen, batch, key, step)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    forward = count_flops(loss, definition.shapes, frozen, abstract_batch(experiment), key, step)
    # Backward is two forwards: what is recomputed to save memory is not useful work and is not counted.
    return 3 * forward


def abstract_batch(experiment: Experiment) -> Batch:
    """Shapes of one global training batch."""
    data, task = experiment.data, experiment.task
    T, (H, W), B = data.clips.num_frames, data.clips.size, data.batch_size
    label = jax.ShapeDtypeStruct((B,), jnp.int32)
    if data.cache is not None and isinstance(task, Denoise):
        moments = (B, *task.codec.vae.latent_shape((T, H, W)), 2 * task.codec.vae.latent_channels)
        return Batch(moments=jax.ShapeDtypeStruct(moments, jnp.float32), label=label)
    return Batch(video=jax.ShapeDtypeStruct((B, T, H, W, 3), jnp.uint8), label=label)


def abstract_codec(task: Any) -> nnx.Module | None:
    """The frozen part of a task as shapes, so that everything but training works without a trained codec."""
    if not isinstance(task, Denoise):
        return None
    return nnx.eval_shape(task.codec.blank, jax.eval_shape(lambda: jax.random.key(0)))


def codec_of_run(workdir: Path, mesh: Mesh, console: Console) -> tuple[LatentCodec, str, Mapping[str, Any]]:
    """The codec that a run trained, the digest of its weights, and its latent statistics.

    Statistics are measured over the training set once for these weights, and kept in the run folder.
    """
    experiment = read_experiment(workdir)
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
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("codec") != digest:
        found = {"codec": digest} | _measure_statistics(experiment, vae, mesh, console)
        write_json(path, found)
    codec = LatentCodec(vae, jnp.asarray(found["mean"], jnp.float32), jnp.asarray(found["std"], jnp.float32))
    return jax.device_put(codec, replicated(mesh)), digest, found


def provenance(experiment: Experiment, digest: str, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """What a latent cache must have been made with to serve `experiment`."""
    return {
        "codec": digest,
        "statistics": {"mean": list(statistics["mean"]), "std": list(statistics["std"])},
        "clips": experiments.to_json(experiment.data.clips),
        "source": experiment.data.source.info().digest,
    }


def environment() -> dict[str, str]:
    """Software and hardware, as they go into records and cards."""
    packages = ("dit-video", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av")
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "cores": str(os.cpu_count()),
    }


def write_json(path: Path, data: Any) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _with_codec(experiment: Experiment, mesh: Mesh, console: Console) -> tuple[Experiment, LatentCodec | None]:
    """Loads the codec an experiment names, and writes its digest into the experiment."""
    task = experiment.task
    if not isinstance(task, Denoise):
        return experiment, None
    codec, digest, _ = _trained(task.codec, mesh, console)
    trained = dataclasses.replace(task.codec, digest=digest)
    return dataclasses.replace(experiment, task=dataclasses.replace(task, codec=trained)), codec


def _trained(codec: TrainedCodec, mesh: Mesh, console: Console) -> tuple[LatentCodec, str, Mapping[str, Any]]:
    folder = Path(codec.run)
    if not (folder / RECORD).is_file():
        raise ExperimentError(
            f"config.task.codec.run={codec.run!r}: there is no run in this folder; train its VAE first, "
            f"with --workdir {codec.run}, or name another with --config.task.codec.run=FOLDER"
        )
    opened, digest, statistics = codec_of_run(folder, mesh, console)
    if opened.vae.config != codec.vae:
        raise ExperimentError(
            f"config.task.codec.vae: the run {codec.run} trained {opened.vae.config}, the experiment says {codec.vae}"
        )
    if codec.digest not in (None, digest):
        raise ExperimentError(
            f"config.task.codec.digest={codec.digest[:12]}...: the codec in {codec.run} is now {digest[:12]}...; it has "
            "been trained on since, so latents would change under this run: restore it, or start a new workdir"
        )
    return opened, digest, statistics


def _check_cache(experiment: Experiment, codec: LatentCodec | None) -> None:
    cache = experiment.data.cache
    if cache is None:
        return
    if codec is None:
        raise ExperimentError("config.data.cache: only a run on latents reads a latent cache; leave it None")
    statistics = {"mean": np.asarray(codec.mean[...]).tolist(), "std": np.asarray(codec.std[...]).tolist()}
    wanted = provenance(experiment, experiment.task.codec.digest, statistics)
    found = cache.provenance()
    differ = [name for name, value in wanted.items() if found.get(name) != value]
    if differ:
        lines = [f"  {name}: cache {_short(found.get(name))}, this run {_short(wanted[name])}" for name in differ]
        raise ExperimentError(
            f"latent cache {cache.directory} was not made for this run; these fields differ:\n" + "\n".join(lines)
            + "\nencode again: dit-video encode --config ... --overwrite"
        )


def _check_batch(data: Data, mesh: Mesh) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if data.batch_size % ways:
        raise ExperimentError(
            f"config.data.batch_size={data.batch_size}: must be a multiple of data x fsdp = {ways} devices"
        )


def _record(experiment: Experiment, workdir: Path, overrides: Sequence[str], allow_change: bool) -> None:
    """Writes experiment.json; refuses a folder that was started with another experiment."""
    path = workdir / RECORD
    if path.is_file():
        before = read_experiment(workdir)
        if experiments.fingerprint(before) != experiments.fingerprint(experiment) and not allow_change:
            changed = experiments.diff(before, experiment)
            lines = [f"  {name}: {_short(a)} -> {_short(b)}" for name, (a, b) in changed.items()]
            raise ExperimentError(
                f"{workdir} was started with another experiment:\n" + "\n".join(lines)
                + "\nuse another --workdir, or --allow_change to go on with the new one"
            )
    write_json(
        path,
        {
            "fingerprint": experiments.fingerprint(experiment),
            "overrides": list(overrides),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "environment": environment(),
            "experiment": experiments.to_json(experiment),
        },
    )


def _initial_state(
    experiment: Experiment,
    program: Program,
    checkpoints: Checkpoints,
    init_from: Path | None,
    console: Console,
) -> tuple[TrainState, int]:
    """Four ways to start: go on; from another run's weights; afresh. Going on always wins."""
    if checkpoints.latest is not None:
        saved = checkpoints.restore(program.shapes)
        console.print(f"going on from step {saved.step}, batch {saved.next_batch}", highlight=False)
        return saved.state, saved.next_batch
    state = program.init(experiment.seed)
    if init_from is not None:
        source = Checkpoints(init_from)
        try:
            mesh = state.step.sharding.mesh
            params = source.restore_params(program.definition.shapes, mesh, ema=True)
        finally:
            source.close()
        shardings = jax.tree.map(lambda s: s.sharding, program.shapes.params)
        params = jax.device_put(params, shardings)
        state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params))
        console.print(f"starting from the averaged weights of {init_from}", highlight=False)
    return state, 0


def _measure_statistics(experiment: Experiment, vae: nnx.Module, mesh: Mesh, console: Console) -> dict[str, Any]:
    """Per-channel mean and deviation of latents over the training set: one clip of every video."""
    source = experiment.data.source
    total = source.info().num_records[Split.TRAIN]
    size = experiment.data.batch_size
    encode = jax.jit(lambda vae, video: LatentCodec(vae, jnp.zeros(1), jnp.ones(1)).moments(video))
    batches = experiment.data.judged(Split.TRAIN, total, size, seed=experiment.seed)

    def moments():
        shown = track(batches, "latent statistics", total=-(-total // size), console=console, transient=True)
        for batch, valid in shown:
            with jax.set_mesh(mesh):
                yield np.asarray(encode(vae, place(batch.video, mesh)))[:valid]

    # float32, as the codec holds them, so that records of them compare equal.
    mean, std = (np.asarray(x, np.float32).tolist() for x in latent_statistics(moments()))
    return {"num_clips": total, "set": source.info().digest, "mean": mean, "std": std}


def _chunks(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    iterator = iter(clips)
    while rows := list(itertools.islice(iterator, size)):
        yield rows


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
