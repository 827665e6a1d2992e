"""What a step of an experiment is made of: shapes and FLOPs. No device is touched."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dit_video.arrays import Text
from dit_video.data.batch import Batch
from dit_video.distributed.sharding import shard_frozen
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.tasks.denoise import Denoise, Frozen
from dit_video.training.flops import count_dependent_flops, count_flops, peak_flops
from dit_video.training.throughput import Work


def measure_work(experiment: Experiment) -> Work:
    """What one training step amounts to on the devices of this machine."""
    task, data = experiment.task, experiment.data
    tokens = None
    if isinstance(task, Denoise):
        cells = task.codec.vae.latent_shape((data.clips.num_frames, *data.clips.size))
        tokens = data.batch_size * int(np.prod([n // p for n, p in zip(cells, task.network.patch_size)]))
    peak = peak_flops(jax.devices()[0].device_kind)
    total = None if peak is None else peak * jax.device_count()
    return Work(clips=data.batch_size, tokens=tokens, flops=step_flops(experiment), peak=total)


def step_flops(experiment: Experiment) -> int:
    """Model FLOPs of one training step; no device is touched."""
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
    """Shapes of one global training batch, as `jax.eval_shape` gives them."""
    data, task = experiment.data, experiment.task
    T, (H, W), B = data.clips.num_frames, data.clips.size, data.batch_size

    def batch() -> Batch:
        caption = None if data.caption_bytes is None else jnp.zeros((B, data.caption_bytes), jnp.uint8)
        condition = task.condition if isinstance(task, Denoise) else None
        blank = None if condition is None else condition.blank_null()
        text = jax.tree.map(lambda x: jnp.repeat(x, B, axis=0), blank) if isinstance(blank, Text) else None
        told = {"label": jnp.zeros((B,), jnp.int32), "caption": caption, "text": text}
        if data.cache is not None and isinstance(task, Denoise):
            moments = (B, *task.codec.vae.latent_shape((T, H, W)), 2 * task.codec.vae.latent_channels)
            return Batch(moments=jnp.zeros(moments, jnp.float32), **told)
        return Batch(video=jnp.zeros((B, T, H, W, 3), jnp.uint8), **told)

    return jax.eval_shape(batch)


def abstract_frozen(task: Any, mesh: Mesh | None = None) -> Frozen | None:
    """The frozen parts of a task as shapes, so that everything but training works without trained ones.

    With a `mesh`, the shapes say where on it each array lives.
    """
    if not isinstance(task, Denoise):
        return None
    frozen = nnx.eval_shape(task.blank, jax.eval_shape(lambda: jax.random.key(0)))
    if mesh is None:
        return frozen
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, frozen, shard_frozen(frozen, mesh))
