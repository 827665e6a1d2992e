"""What a run says of itself before its first step is compiled: all of it from shapes, so that it is there at once."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from rich.filesize import decimal

from dit_video.experiment import Experiment
from dit_video.run.workload import abstract_batch
from dit_video.training.step import Program
from dit_video.training.throughput import Work


def lines(experiment: Experiment, program: Program, mesh: Mesh, work: Work) -> Iterator[str]:
    """Lines for the console: devices and mesh, parameters and bytes of the state, the batch and what it takes."""
    device, processes = mesh.devices.flat[0], jax.process_count()
    split = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "not split"
    of = f" of {processes} processes" if processes > 1 else ""
    yield f"devices: {mesh.size} x {device.device_kind}{of}, mesh: {split}"
    whole, each = state_bytes(program.shapes)
    share = f", {decimal(each)} on each device" if each < whole else ""
    kind = type(experiment.task).__name__
    yield f"{kind}: {program.definition.num_params:,} parameters; training state {decimal(whole)}{share}"
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(abstract_batch(experiment))]
    batch = ", ".join(f"{dtype} {list(shape)}" for shape, dtype in shapes)
    parts = f" in {experiment.num_microbatches} microbatches" if experiment.num_microbatches > 1 else ""
    tokens = "" if work.tokens is None else f", {work.tokens:,} tokens"
    yield f"batch: {work.clips} clips{parts}{tokens}: {batch}"
    steps, flops = experiment.schedule.num_steps, work.flops
    yield f"step: {flops:.3g} model FLOPs; {steps:,} steps: {steps * flops:.3g}"


def state_bytes(shapes: Any) -> tuple[int, int]:
    """Bytes of a sharded training state, whole and of the part that one device holds."""
    leaves = jax.tree.leaves(shapes)
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    each = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return whole, each
