"""What a run says of itself before its first step is compiled: all of it from shapes, so that it is there at once."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from rich.filesize import decimal

from dit_video.data.batch import Batch
from dit_video.experiment import Experiment
from dit_video.training.step import Program
from dit_video.training.throughput import Work


def lines(
    experiment: Experiment, program: Program, mesh: Mesh, shapes: Sequence[tuple[Batch, Work]], *, num_records: int
) -> Iterator[str]:
    """Lines for the console: devices and mesh, parameters and bytes of the state, the batch and what it takes.

    Args:
        shapes: of batches, each with the work of a step.
        num_records: to train on: videos, clips in a latent cache, or rows of text.
    """
    device, processes = mesh.devices.flat[0], jax.process_count()
    split = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "not split"
    of = f" of {processes} processes" if processes > 1 else ""
    yield f"devices: {mesh.size} x {device.device_kind}{of}, mesh: {split}"
    whole, each = state_bytes(program.shapes)
    share = f", {decimal(each)} on each device" if each < whole else ""
    kind = type(experiment.task).__name__
    yield f"{kind}: {program.definition.num_params:,} parameters; training state {decimal(whole)}{share}"
    steps, parts = experiment.schedule.num_steps, experiment.num_microbatches
    for batch, work in shapes:
        arrays = ", ".join(f"{leaf.dtype} {list(leaf.shape)}" for leaf in jax.tree.leaves(batch))
        cut = f" in {parts} microbatches" if parts > 1 else ""
        tokens = "" if work.tokens is None else f", {work.tokens:,} tokens"
        each = f"; a step {work.flops:.3g} model FLOPs" if len(shapes) > 1 else ""
        yield f"batch: {work.clips} clips{cut}{tokens}: {arrays}{each}"
    if len(shapes) == 1:
        flops = shapes[0][1].flops
        yield f"step: {flops:.3g} model FLOPs; {steps:,} steps: {steps * flops:.3g}"
        times = steps * shapes[0][1].clips / max(num_records, 1)
        yield f"data: {num_records:,} training examples, each seen {times:.3g} times"


def state_bytes(shapes: Any) -> tuple[int, int]:
    """Bytes of a sharded training state, whole and of the part that one device holds."""
    leaves = jax.tree.leaves(shapes)
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    each = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return whole, each
