"""Workload of a training step: shapes of its batch and frozen parts, tokens and model FLOPs. No device is touched."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.distributed.sharding import shard_frozen
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.tasks.task import Task
from dit_video.training.flops import count_dependent_flops, count_flops, peak_flops
from dit_video.training.throughput import Work


def shapes_of_batches(experiment: Experiment) -> list[tuple[Batch, Work]]:
    """Each shape of a global training batch, with the work of a step on it."""
    return [(abstract_batch(one), measure_work(one)) for one in experiment.by_shape()]


def measure_work(experiment: Experiment) -> Work:
    """Clips, tokens and FLOPs of one training step on clips of `Data.clips`, and the peak FLOP/s of devices here."""
    data, tokens = experiment.data, experiment.task.num_tokens(experiment.data)
    tokens = None if tokens is None else data.batch_size * tokens
    peak = peak_flops(jax.devices()[0].device_kind)
    total = None if peak is None else peak * jax.device_count()
    return Work(clips=data.batch_size, tokens=tokens, flops=step_flops(experiment), peak=total)


def step_flops(experiment: Experiment) -> int:
    """Model FLOPs of one training step on the clips of `Data.clips`; no device is touched."""
    task = experiment.task
    definition, frozen = define(task.init), abstract_frozen(task)

    def loss(params, frozen, batch, key, step):
        return task.loss(definition.bind(params), frozen, batch, key, step)[0]

    arguments = (
        frozen,
        abstract_batch(experiment),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    # Backward is two forwards of what depends on parameters: through a frozen codec none goes. What is recomputed to
    # save memory is not useful work and is not counted.
    backward = 2 * count_dependent_flops(loss, definition.shapes, *arguments)
    return count_flops(loss, definition.shapes, *arguments) + backward


def abstract_batch(experiment: Experiment) -> Batch:
    """Shapes of one global training batch of `Data.clips`, as `jax.eval_shape` gives them."""
    return _rows(experiment.task, experiment.data, experiment.data.batch_size)


def abstract_judged_batch(experiment: Experiment, batch_size: int) -> Batch:
    """Shapes of a batch that is evaluated: of clips, as held-out ones are read from no latent cache."""
    return _rows(experiment.task, dataclasses.replace(experiment.data, cache=None), batch_size)


def _rows(task: Task, data: Data, num_rows: int) -> Batch:
    # Of one row, so that no memory is asked for.
    row = task.example(data, 1)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape[1:]), jnp.asarray(x).dtype), row)


def abstract_frozen(task: Task, mesh: Mesh | None = None) -> Any:
    """Shapes of the frozen parts of a task, for plans and exports where no trained ones are needed.

    With a `mesh`, the shapes say where on it each array lives.
    """
    frozen = nnx.eval_shape(task.blank, jax.eval_shape(lambda: jax.random.key(0)))
    if mesh is None or frozen is None:
        return frozen
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, frozen, shard_frozen(frozen, mesh))
