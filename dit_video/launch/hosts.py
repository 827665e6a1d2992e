"""Number of hosts of a target and of devices per host, for TPU slices and GPU nodes."""

import dataclasses
import math

from dit_video.distributed.targets import GPUS, TPUS, Target

# docs.cloud.google.com/tpu/docs/v5e and v6e: flat slices come in these sizes only.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
# docs.cloud.google.com/tpu/docs/v5p: the largest job; XPK's system_characteristics.py for tpu7x: 144 cubes of 4x4x4.
_MAX_CHIPS = {"v5p": 6144, "tpu7x": 9216}
_CHIPS_PER_HOST = 4
_MAX_GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """Hosts of a target; each runs one process for all its devices.

    Attributes:
        num_slices: groups that only a data-centre network joins; 1 for GPUs.
        hosts_per_slice: machines in each.
        devices_per_host: chips or GPUs in each machine.
    """

    num_slices: int
    hosts_per_slice: int
    devices_per_host: int


def hosts_of(target: Target) -> Hosts:
    """Hosts of a TPU or GPU target.

    Raises:
        ValueError: there is no such slice, with those that there are; or no such node.
    """
    if target.family in GPUS:
        nodes, gpus = target.size
        if gpus > _MAX_GPUS_PER_NODE:
            raise ValueError(
                f"{target.name}: a node has at most {_MAX_GPUS_PER_NODE} GPUs; {target.family}:16x8 is 16 nodes of 8"
            )
        return Hosts(num_slices=1, hosts_per_slice=nodes, devices_per_host=gpus)
    if target.family not in TPUS:
        raise ValueError(f"{target.name}: must be a TPU or a GPU, such as v6e:16x16 or h100:16x8")
    _check_slice(target)
    chips = math.prod(target.size)
    devices = min(chips, _CHIPS_PER_HOST)
    hosts = Hosts(num_slices=target.num_slices, hosts_per_slice=chips // devices, devices_per_host=devices)
    if hosts.num_slices > 1 and hosts.hosts_per_slice == 1:
        # docs.cloud.google.com/tpu/docs/tpu-gke-multislice
        raise ValueError(f"{target.name}: several slices need at least two hosts each, {2 * _CHIPS_PER_HOST} chips")
    return hosts


def _check_slice(target: Target) -> None:
    shape = "x".join(map(str, target.size))
    if target.family not in _MAX_CHIPS:
        if shape not in _FLAT:
            raise ValueError(f"{target.name}: {target.family} has no slice {shape}; it has {', '.join(_FLAT)}")
        return
    largest = _MAX_CHIPS[target.family]
    small = ("1x1x1", *_SMALL_DEEP) if target.family == "tpu7x" else _SMALL_DEEP
    cubes = (
        len(target.size) == 3
        and all(side % 4 == 0 for side in target.size)
        and list(target.size) == sorted(target.size)
        and math.prod(target.size) <= largest
    )
    if shape not in small and not cubes:
        raise ValueError(
            f"{target.name}: {target.family} has no slice {shape}; it has {', '.join(small)}, and AxBxC "
            f"with A <= B <= C, all multiples of 4, of at most {largest} chips"
        )
