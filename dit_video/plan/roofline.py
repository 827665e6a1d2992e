"""Roofline model: the least time of a step or call, with compute, memory and communication at peak and overlapped."""

import dataclasses

from dit_video.distributed.hardware import Chip


@dataclasses.dataclass(frozen=True)
class Bound:
    """Lower bound on the time of a step, and its assumptions."""

    name: str
    seconds: float
    supposes: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCosts:
    """FLOPs and bytes of one device in a step or call.

    Attributes:
        flops: model FLOPs, by which MFU is defined.
        recomputed_flops: what is computed a second time, so that it needs not be kept.
        memory_bytes: moved to and from its memory.
        inner_bytes: received from devices of its own slice or node.
        outer_bytes: received from other slices or nodes.
    """

    flops: int | float
    recomputed_flops: int | float
    memory_bytes: int | float
    inner_bytes: int | float
    outer_bytes: int | float


def roofline(chip: Chip, work: StepCosts) -> tuple[Bound, ...]:
    """Lower bounds on the time of a step, compute first; the largest binds."""
    again = "nothing computed twice"
    if work.recomputed_flops:
        again = f"{work.recomputed_flops / work.flops:.0%} more for what is computed twice"
    bounds = [
        Bound(
            "compute",
            (work.flops + work.recomputed_flops) / chip.flops,
            f"model FLOPs at the dense bfloat16 peak, {again}",
        ),
        Bound("memory", work.memory_bytes / chip.hbm_bandwidth, "all that is held read once, all results written once"),
        Bound("links", work.inner_bytes / chip.links, "all links of a device busy, whatever the axis"),
    ]
    if chip.network is not None and work.outer_bytes:
        supposes = "what crosses between slices or nodes crosses once, spread over all devices"
        bounds.append(Bound("network", work.outer_bytes / chip.network, supposes))
    return tuple(bounds)
