"""Ahead-of-time compilation of an experiment's real programs for other accelerators: memory, collectives, roofline.

Memory, shapes and collectives are those of the compiled program. Time is a roofline: the least time of a
step or call by arithmetic, memory and communication, each at the peak of its data sheet and fully overlapped. A real
one takes longer. Targets `cpu:N` are compiled for fake devices: shardings, bytes of state and collectives are those of
the experiment, temporaries are the CPU compiler's, and there is no roofline.
"""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dit_video.distributed.collectives import Traffic, read_traffic
from dit_video.distributed.hardware import GIB
from dit_video.distributed.sharding import make_mesh
from dit_video.distributed.targets import Target
from dit_video.experiment import Experiment
from dit_video.plan.kernels import Place, costliest_places, read_kernels
from dit_video.plan.programs import Job, PlannedProgram, TrainStep
from dit_video.plan.roofline import Bound, StepCosts, roofline
from dit_video.run.checks import check_fields


@dataclasses.dataclass(frozen=True)
class MemoryPart:
    """Part of a device's memory between steps or calls: parameters, EMA, optimizer state, frozen parts or batch.

    Attributes:
        bytes: on one device.
        whole: those of them that every device holds too, because nothing splits them.
    """

    name: str
    bytes: int
    whole: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a program on one device, in bytes.

    Attributes:
        padding: what the parts take beyond their numbers, because tiles are filled up.
        temporaries: activations, gradients, what is made and whatever else lives during a step or call only.
        peak: the most at any time, as the compiler has it.
        hbm: what a program may use of the device's memory; None where nothing is known of the device.
        host: of its host's memory, for what is kept there until it is needed.
    """

    parts: tuple[MemoryPart, ...]
    padding: int
    temporaries: int
    peak: int
    hbm: int | None
    host: int = 0

    @property
    def fits(self) -> bool:
        return self.hbm is not None and self.peak <= self.hbm

    @property
    def excess(self) -> int:
        """Bytes by which the peak exceeds the device; 0 where it fits, or no limit is known."""
        return max(0, self.peak - self.hbm) if self.hbm is not None else 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Result of `plan`: memory, collectives, FLOPs and roofline of a compiled program.

    Attributes:
        program: "train", or the name of a function of the task.
        unit: what is measured, one "step" or one "call" of it.
        traffic: None where the program could not be compiled, because it does not fit.
        flops: of one step or call, all devices together, without what is computed a second time to save memory.
        recomputed_flops: what is computed a second time, as far as `remat` says so; a kernel may do more.
        job: what device hours are those of.
        bounds: arithmetic first; empty where nothing is known of the devices.
        counted: what `clips` are: clips, or frames of one.
        costliest: places of the source that cost most, where they were asked for.
    """

    program: str
    unit: str
    target: str
    device_kind: str
    mesh: dict[str, int]
    memory: Memory
    traffic: Traffic | None
    flops: int
    recomputed_flops: int
    clips: int
    tokens: int | None
    job: Job
    bounds: tuple[Bound, ...]
    compile_seconds: float
    counted: str = "clips"
    costliest: tuple[Place, ...] = ()

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def binding(self) -> Bound | None:
        """The binding bound of the roofline: the largest time, the best case of a step or call."""
        return max(self.bounds, key=lambda bound: bound.seconds, default=None)

    @property
    def seconds_in_turn(self) -> float:
        """Seconds of a step or call without overlap: the bounds one after the other."""
        return sum(bound.seconds for bound in self.bounds)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation in the best case, an upper bound."""
        if self.binding is None:
            return None
        useful = self.flops / (self.flops + self.recomputed_flops)
        return useful * self.bounds[0].seconds / self.binding.seconds

    def device_hours(self) -> float | None:
        """Device hours of the job in the best case: of training without evaluations and pauses."""
        return None if self.binding is None else self.binding.seconds * self.job.num_calls * self.num_devices / 3600


def plan(
    experiment: Experiment,
    target: Target,
    program: PlannedProgram | None = None,
    *,
    dump: Path | None = None,
    num_places: int = 0,
) -> Plan:
    """Compiles a program of `experiment` for `target` and measures it; nothing is computed or read.

    Args:
        program: None for the train step.
        dump: folder for XLA's own account of the program: its text before and after, buffers, memory over time.
        num_places: of the source, that cost most, to be found.

    Raises:
        ValueError: the experiment cannot run on such devices, or what compiles for them is not installed.
    """
    mesh = make_mesh(experiment.mesh, target.devices())
    check_fields(experiment, mesh)
    prepared = (program or TrainStep()).prepare(experiment, mesh, f"on {target.name}")
    kind = mesh.devices.flat[0]
    parts = tuple(_part(name, tree) for name, tree in prepared.parts.items())
    started = time.monotonic()
    options = target.compiler_options | ({"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True} if dump else {})
    compiled = _compile(prepared.lower(), parts, options)
    seconds = time.monotonic() - started
    if isinstance(compiled, Memory):
        memory, traffic, bounds, costliest = compiled, None, (), ()
    else:
        stats, text = compiled.memory_analysis(), compiled.as_text()
        assert stats is not None, "XLA's compilers for CPU, GPU and TPU all provide memory statistics"
        assert text is not None, "XLA's compilers for CPU, GPU and TPU all provide the program's text"
        memory = _measured(stats, parts, kind.platform, target.memory)
        traffic = read_traffic(text, mesh.shape, [domain(device) for device in mesh.devices.flat])
        done = StepCosts(
            flops=prepared.flops / mesh.size,
            recomputed_flops=prepared.recomputed_flops / mesh.size,
            memory_bytes=stats.argument_size_in_bytes + stats.output_size_in_bytes,
            inner_bytes=traffic.inner_bytes,
            outer_bytes=traffic.outer_bytes,
        )
        bounds = () if target.chip is None else roofline(target.chip, done)
        costliest = costliest_places(read_kernels(text), num_places) if num_places else ()
    return Plan(
        program=prepared.name,
        unit=prepared.unit,
        target=target.name,
        device_kind=kind.device_kind,
        mesh=dict(mesh.shape),
        memory=memory,
        traffic=traffic,
        flops=prepared.flops,
        recomputed_flops=prepared.recomputed_flops,
        clips=prepared.clips,
        tokens=prepared.tokens,
        job=prepared.job,
        bounds=bounds,
        compile_seconds=seconds,
        counted=prepared.counted,
        costliest=costliest,
    )


def domain(device: jax.Device) -> int:
    """Slice (TPU) or node (GPU) of a device: fast links join devices inside, a data-centre network between them."""
    return device.process_index if device.platform == "gpu" else getattr(device, "slice_index", None) or 0


# How libtpu says that a program does not fit: early, by its temporaries alone, or late, with all that it holds.
_TOO_LARGE = (
    r"HLO temporaries \((?P<used>[\d.]+)G\) exceeds available HBM \((?P<limit>[\d.]+)G\)",
    r"Used (?P<used>[\d.]+)G of (?P<limit>[\d.]+)G hbm",
)


def _compile(
    lowered: jax.stages.Lowered, parts: tuple[MemoryPart, ...], options: Mapping[str, bool | str]
) -> jax.stages.Compiled | Memory:
    """Compiles a program; or the memory that the compiler reports where it fails because the program does not fit."""
    try:
        return lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        return refused(error, parts)


def refused(error: jax.errors.JaxRuntimeError, parts: tuple[MemoryPart, ...]) -> Memory:
    """Parses memory from a compiler's out-of-memory error; any other `error` is raised."""
    early, late = (re.search(pattern, str(error)) for pattern in _TOO_LARGE)
    state_bytes = sum(part.bytes for part in parts)
    if refusal := early or late:
        used, limit = (round(float(refusal[name]) * GIB) for name in ("used", "limit"))
        return Memory(parts, 0, used if early else used - state_bytes, used + state_bytes if early else used, limit)
    raise error


def _part(name: str, tree: Any) -> MemoryPart:
    total = whole = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += size
        whole += size if leaf.sharding.is_fully_replicated and leaf.sharding.num_devices > 1 else 0
    return MemoryPart(name, total, whole)


def _measured(stats: Any, parts: tuple[MemoryPart, ...], platform: str, hbm: int | None) -> Memory:
    """Memory from the compiler's statistics; donated state is overwritten in place and counts once."""
    arguments = stats.argument_size_in_bytes
    allocated = arguments + stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    # What a TPU's compiler calls the peak is what lives at one time, packed without gaps. Elsewhere all temporaries are
    # one block, taken whole for a step; the CPU compiler's peak leaves them out.
    peak = stats.peak_memory_in_bytes if platform == "tpu" else allocated
    padding = arguments - sum(part.bytes for part in parts)
    return Memory(parts, padding, peak - arguments, peak, hbm, stats.host_temp_size_in_bytes)
