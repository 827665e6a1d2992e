"""What an experiment would need and do on accelerators that are not there: its real train step, compiled for them.

Memory, shapes and collectives are those of the compiled program. Time is a roofline: what the step takes at least,
by arithmetic, by memory and by what devices send each other, each at the peak of its data sheet and all at once. A real
step takes longer. Targets `cpu:N` are compiled for fake devices: shardings, bytes of state and collectives are those of
the experiment, temporaries are the CPU compiler's, and there is no roofline.
"""

import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dit_video import run
from dit_video.collectives import Traffic, read_traffic
from dit_video.dit.dit import Remat
from dit_video.experiment import Experiment
from dit_video.hardware import CHIPS, GIB, Chip
from dit_video.sharding import along_batch, batch_ways, make_mesh, replicated
from dit_video.tasks.denoise import Denoise

_TPUS = ("v5e", "v5p", "v6e", "tpu7x")
_GPUS = ("a100", "h100", "h200", "b200")
_EXAMPLES = "v6e:16x16, v6e:16x16*4 (four slices), v5p:8x8x4 or cpu:256"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices to compile for.

    Attributes:
        name: as it was given.
        chip: None for fake devices, of which nothing is known.
        family: what stands before the colon.
        size: chips along each side of a slice; of fake devices, their number.
    """

    name: str
    chip: Chip | None
    family: str
    size: tuple[int, ...]
    num_slices: int = 1

    def devices(self) -> Sequence[jax.Device]:
        """The devices of the target; fake ones must have been asked for before JAX started its backend."""
        if self.family == "cpu":
            there = jax.devices("cpu")
            if len(there) < self.size[0]:
                raise ValueError(f"{self.name}: this process was started with {len(there)} fake devices")
            return there[: self.size[0]]
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(
                f"{self.name}: compiling for a TPU needs its compiler, libtpu, and no TPU: "
                "pip install -c constraints.txt -e '.[plan-tpu]' (about 700 MB on disk); without it, "
                f"--target=cpu:{math.prod(self.size) * self.num_slices} is an estimate on fake devices"
            )
        topology = f"{self.family}:{'x'.join(map(str, self.size))}"
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=self.num_slices)
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"{self.name}: libtpu knows no topology {topology}: {str(error)[:300]}") from error
        return found.devices


def parse_target(text: str) -> Target:
    """`cpu:N`, or a TPU with the sides of its slice and, after `*`, how many slices.

    Raises:
        ValueError: naming what is wrong and what would be right.
    """
    family, _, rest = text.partition(":")
    if family in _GPUS:
        raise ValueError(
            f"{text}: GPU targets cannot be compiled yet; cpu:N with as many fake devices shows shardings, bytes of "
            "state and collectives"
        )
    if family not in (*_TPUS, "cpu"):
        raise ValueError(f"{text}: {family or 'a target'} is not known; give one such as {_EXAMPLES}")
    sides, _, slices = rest.partition("*")
    shape = r"[1-9]\d*" if family == "cpu" else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if not re.fullmatch(shape, sides) or ("*" in rest and (family == "cpu" or not re.fullmatch(r"[1-9]\d*", slices))):
        form = "cpu:N" if family == "cpu" else f"{family}:ROWSxCOLUMNS (x DEPTH), with *SLICES for several"
        raise ValueError(f"{text}: must be {form}; such as {_EXAMPLES}")
    size = tuple(int(n) for n in sides.split("x"))
    return Target(name=text, chip=CHIPS.get(family), family=family, size=size, num_slices=int(slices or 1))


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of what stays in a device's memory between steps.

    Attributes:
        bytes: on one device.
        whole: those of them that every device holds too, because nothing splits them.
    """

    name: str
    bytes: int
    whole: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        padding: what the parts take beyond their numbers, because tiles are filled up.
        temporaries: activations, gradients and whatever else lives during a step only.
        peak: the most at any time, as the compiler has it.
    """

    parts: tuple[Part, ...]
    padding: int
    temporaries: int
    peak: int
    hbm: int | None

    @property
    def excess(self) -> int:
        """By how much it does not fit; 0 where it does, or where no limit is known."""
        return max(0, self.peak - self.hbm) if self.hbm is not None else 0


@dataclasses.dataclass(frozen=True)
class Bound:
    """A time that no step goes below, and what that supposes."""

    name: str
    seconds: float
    supposes: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` found.

    Attributes:
        traffic: None where the program could not be compiled, because it does not fit.
        flops: of one step, all devices together, without what is computed a second time to save memory.
        bounds: arithmetic first; empty where nothing is known of the devices.
        remedies: what would make it fit, best first; each an override with its reason.
    """

    target: str
    device_kind: str
    mesh: dict[str, int]
    memory: Memory
    traffic: Traffic | None
    flops: int
    clips: int
    tokens: int | None
    num_steps: int
    bounds: tuple[Bound, ...]
    remedies: tuple[tuple[str, str], ...]
    compile_seconds: float

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def binding(self) -> Bound | None:
        """The bound that is reached first: its time is the best case of a step."""
        return max(self.bounds, key=lambda bound: bound.seconds, default=None)

    @property
    def mfu(self) -> float | None:
        """The part of a step in the best case that is arithmetic: no run has a higher MFU."""
        return None if self.binding is None else self.bounds[0].seconds / self.binding.seconds

    def device_hours(self) -> float | None:
        """Of the whole run in the best case, evaluations and pauses not counted."""
        return None if self.binding is None else self.binding.seconds * self.num_steps * self.num_devices / 3600


def plan(experiment: Experiment, target: Target) -> Plan:
    """Compiles the train step of `experiment` for `target` and says what it takes; nothing is trained or read.

    Raises:
        ValueError: the experiment cannot run on such devices, or what compiles for them is not installed.
    """
    run.check_clips(experiment)
    mesh = make_mesh(experiment.mesh, target.devices())
    run.check_batch(experiment.data, mesh, f"on {target.name}")
    program = run.program_of(experiment, mesh)
    frozen = _sharded(run.abstract_codec(experiment.task), replicated(mesh))
    batch = _sharded(run.abstract_batch(experiment), along_batch(mesh))
    state, kind = program.shapes, mesh.devices.flat[0]
    seed = jax.ShapeDtypeStruct((), "int32", sharding=replicated(mesh))
    parts = (
        _part("parameters", state.params),
        _part("their average (EMA)", state.ema),
        _part("optimizer", (state.step, state.opt_state)),
        _part("frozen parts", frozen),
        _part("batch", (batch, seed)),
    )
    work = run.measure_work(experiment)
    started = time.monotonic()
    compiled = _compile(program.lower(frozen, batch), parts)
    seconds = time.monotonic() - started
    if isinstance(compiled, Memory):
        memory, traffic, bounds = compiled, None, ()
    else:
        stats, text = compiled.memory_analysis(), compiled.as_text()
        assert stats is not None, "the compilers of CPU, GPU and TPU say this"
        assert text is not None, "and this"
        memory = _measured(stats, parts, kind.platform, None if target.chip is None else target.chip.hbm)
        domains = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
        traffic = read_traffic(text, mesh.shape, domains)
        moved = stats.argument_size_in_bytes + stats.output_size_in_bytes
        bounds = () if target.chip is None else _roofline(target.chip, work.flops / mesh.size, moved, traffic)
    return Plan(
        target=target.name,
        device_kind=kind.device_kind,
        mesh=dict(mesh.shape),
        memory=memory,
        traffic=traffic,
        flops=work.flops,
        clips=work.clips,
        tokens=work.tokens,
        num_steps=experiment.schedule.num_steps,
        bounds=bounds,
        remedies=tuple(_remedies(experiment, mesh, memory)) if memory.excess else (),
        compile_seconds=seconds,
    )


# How libtpu says that a program does not fit: early, by its temporaries alone, or late, with all that it holds.
_TOO_LARGE = (
    r"HLO temporaries \((?P<used>[\d.]+)G\) exceeds available HBM \((?P<limit>[\d.]+)G\)",
    r"Used (?P<used>[\d.]+)G of (?P<limit>[\d.]+)G hbm",
)


def _compile(lowered: jax.stages.Lowered, parts: tuple[Part, ...]) -> jax.stages.Compiled | Memory:
    """The compiled step, or what a compiler says that gave up because it does not fit."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return refused(error, parts)


def refused(error: jax.errors.JaxRuntimeError, parts: tuple[Part, ...]) -> Memory:
    """Memory as a compiler says it that gave up because the program does not fit; any other `error` is raised."""
    early, late = (re.search(pattern, str(error)) for pattern in _TOO_LARGE)
    held = sum(part.bytes for part in parts)
    if found := early or late:
        used, limit = (round(float(found[name]) * GIB) for name in ("used", "limit"))
        return Memory(parts, 0, used if early else used - held, used + held if early else used, limit)
    raise error


def _sharded(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _part(name: str, tree: Any) -> Part:
    total = whole = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += size
        whole += size if leaf.sharding.is_fully_replicated and leaf.sharding.num_devices > 1 else 0
    return Part(name, total, whole)


def _measured(stats: Any, parts: tuple[Part, ...], platform: str, hbm: int | None) -> Memory:
    """Memory as the compiler counts it; donated state is overwritten in place and counts once."""
    held = stats.argument_size_in_bytes
    allocated = held + stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    # The CPU compiler's peak leaves temporaries out; a TPU's counts what lives at one time, packed without gaps.
    peak = allocated if platform == "cpu" else stats.peak_memory_in_bytes
    return Memory(parts, held - sum(part.bytes for part in parts), peak - held, peak, hbm)


def _roofline(chip: Chip, flops: float, moved: int, traffic: Traffic) -> tuple[Bound, ...]:
    """The bounds of one device, arithmetic first."""
    bounds = [
        Bound("compute", flops / chip.flops, "model FLOPs at the dense bfloat16 peak, nothing computed twice"),
        Bound("memory", moved / chip.hbm_bandwidth, "state and batch read once, new state written once, no more"),
        Bound("links", traffic.inner_bytes / chip.links, "all links of a device busy, whatever the axis"),
    ]
    if chip.network is not None and traffic.outer_bytes:
        supposes = "what crosses between slices crosses once, spread over all devices"
        bounds.append(Bound("network", traffic.outer_bytes / chip.network, supposes))
    return tuple(bounds)


def _remedies(experiment: Experiment, mesh: Mesh, memory: Memory) -> Iterable[tuple[str, str]]:
    """Overrides that lower the peak, those that cost nothing first; none of them has been compiled."""
    rows, parts, ways = experiment.data.batch_size, experiment.num_microbatches, batch_ways(mesh)
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    state = sum(part.bytes for part in memory.parts)
    split = (
        f"--config.mesh.data=1 --config.mesh.fsdp={data * fsdp}",
        f"splits parameters, EMA and optimizer into {data} times as many parts; no more arithmetic, more gathering",
    )
    activations = []
    if rows % (2 * parts) == 0 and (rows // (2 * parts)) % ways == 0:
        activations.append(
            (f"--config.num_microbatches={2 * parts}", "about halves what activations take; the same update")
        )
    task = experiment.task
    if isinstance(task, Denoise) and task.network.remat is not Remat.FULL:
        reason = "keeps block inputs only; one more forward pass, a third more arithmetic at most"
        activations.insert(0, (f"--config.task.network.remat={Remat.FULL.value}", reason))
    more = [split] if data > 1 else []
    assert memory.hbm is not None, "what has no limit exceeds none"
    yield from more + activations if 2 * state > memory.hbm else activations + more
    if rows // 2 >= ways and (rows // 2) % ways == 0:
        yield f"--config.data.batch_size={rows // 2}", "halves activations; another experiment, with other results"
    yield "--target", f"more devices than {mesh.size}, or such with more memory"
