"""Communication volume of a compiled program: collectives (all-gather, all-reduce, ...) read from its XLA HLO text.

The text names every collective with the groups of devices it joins. One that stands in the body of a loop runs as
often as the loop does; layers are scanned, so most stand in one.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from dit_video.distributed.hlo_text import Bodies, Instruction, called, computations, numbers, trips

Groups = Int[np.ndarray, "groups devices"]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same mesh axes, summed over one run of the program.

    Attributes:
        kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
        axes: the mesh axes along which the devices of a group lie.
        count: how often one runs.
        inner_bytes: what a device receives from its own domain (slice or node), at least.
        outer_bytes: what it receives from other domains, at least, if a domain shares the work among its devices.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    inner_bytes: int
    outer_bytes: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one run of a program.

    Attributes:
        loops_of_unknown_length: loops with collectives in them whose length XLA does not say; counted as one round.
    """

    collectives: tuple[Collective, ...]
    loops_of_unknown_length: int

    @property
    def inner_bytes(self) -> int:
        return sum(c.inner_bytes for c in self.collectives)

    @property
    def outer_bytes(self) -> int:
        return sum(c.outer_bytes for c in self.collectives)


_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def read_traffic(text: str, mesh: Mapping[str, int], domains: Sequence[int]) -> Traffic:
    """Collectives of a program compiled for a mesh, with bytes inside and between slices or nodes.

    Args:
        text: `compiled.as_text()`.
        mesh: devices along each axis, outermost first.
        domains: for each device, in the order of the mesh, the slice or node it is in.
    """
    bodies, entry = computations(text)
    unknown: set[str] = set()
    sums: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for instruction, kind, times in _runs(bodies, entry, 1, unknown):
        operands = re.findall(r"%[\w.\-]+", instruction.arguments)
        size = sum(bodies[instruction.computation][name].size for name in operands)
        groups = _groups(instruction, domains)
        if groups.shape[1] == 1:
            continue
        inner, outer = _received(kind, size, np.asarray(domains)[groups])
        total = sums.setdefault((kind, _axes(groups, mesh)), [0, 0, 0])
        for index, amount in enumerate((1, inner, outer)):
            total[index] += times * amount
    collectives = [Collective(kind, axes, *total) for (kind, axes), total in sorted(sums.items())]
    return Traffic(tuple(collectives), len(unknown))


def _runs(bodies: Bodies, name: str, times: int, unknown: set[str]) -> Iterator[tuple[Instruction, str, int]]:
    """Collectives that a computation runs, with their counts, loops multiplied; adds loops of unknown length."""
    # TPU compilers write a reduce-scatter as a computation of this name around an all-reduce.
    scatters = name.startswith("%all-reduce-scatter")
    for label, instruction in bodies[name].items():
        kind = instruction.opcode.removesuffix("-start")
        if kind in _KINDS:
            yield instruction, "reduce-scatter" if scatters else kind, times
            continue
        # Between slices TPU hosts carry the data: what a device hands to its host stands for the collective of it and
        # its like in every other slice. The groups of all other collectives are then written for one slice.
        if carried := re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest):
            if instruction.opcode == "send":
                kind = carried[1].lower().replace("_", "-")
                yield instruction, kind if kind in _KINDS else "collective-permute", times
            continue
        rounds = trips(bodies, instruction) if instruction.opcode == "while" else 1
        for inner in called(instruction.rest):
            for run in _runs(bodies, inner, times * (rounds or 1), unknown):
                if rounds is None:
                    unknown.add(label)
                yield run


def _received(kind: str, size: int, domains: Groups) -> tuple[int, int]:
    """Least bytes that a device receives in a collective, from its own domain and from others.

    A group of g devices in s domains: whatever crosses domains crosses once and is shared by the g / s devices of one,
    which pass it on inside.
    """
    num_devices = domains.shape[1]
    num_domains = max(len(set(group)) for group in domains.tolist())
    if kind == "collective-permute":
        crosses = domains[:, 0] != domains[:, 1]
        return (0 if crosses.all() else size), (size if crosses.any() else 0)
    if kind == "all-to-all":
        outer = size * (num_domains - 1) // num_domains
        return size * (num_devices - 1) // num_devices - outer, outer
    # What one device holds of the whole before a gather or after a scatter; an all-reduce is one and then the other.
    part = size if kind == "all-gather" else size // num_devices
    passes = 2 if kind == "all-reduce" else 1
    return passes * part * (num_devices - num_domains), passes * part * (num_domains - 1)


def _axes(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a group, numbered in the order of the mesh, differ."""
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(axis for axis, place in zip(mesh, places) if (place != place[:, :1]).any())


def _explicit(text: str) -> Groups:
    """Parses explicit groups: {0,1},{2,3}"""
    return np.array([numbers(row) for row in re.findall(r"\d+(?:,\d+)*", text)])


def _groups(instruction: Instruction, domains: Sequence[int]) -> Groups:
    """The devices that a collective joins, one group a row; of a permutation, pairs."""
    if instruction.opcode == "send":
        return np.array([[domains.index(domain) for domain in sorted(set(domains))]])
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.rest):
        return _explicit(pairs[1])
    return _replica_groups(instruction.rest, len(domains))


def _replica_groups(rest: str, num_devices: int) -> Groups:
    """The groups of a collective, in any of the three ways in which XLA writes them."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        order = _iota(mesh[2]) if mesh[2] else np.arange(num_devices)
        return _along(order.ravel(), sizes, re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[3]))
    if iota := re.search(r"replica_groups=(\[\d+,\d+\])<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _iota(iota[2]).reshape(numbers(iota[1]))
    if explicit := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return _explicit(explicit[1])
    return np.arange(num_devices)[None]


def _along(order: Int[np.ndarray, "total"], sizes: Mapping[str, int], axes: list[tuple[str, str, str]]) -> Groups:
    """Groups along axes of a mesh of XLA's own; an axis may be named in part, as (size of what is before it)size."""
    shape, joined = [], []
    parts = {name: (int(before), int(size)) if size else (1, sizes[name]) for name, before, size in axes}
    for name, size in sizes.items():
        before, part = parts.get(name, (size, 1))
        shape += [before, part, size // before // part]
        joined.append(len(shape) - 2)
    apart = [axis for axis in range(len(shape)) if axis not in joined]
    return order.reshape(shape).transpose(apart + joined).reshape(-1, math.prod(part for _, part in parts.values()))


def _iota(text: str) -> Int[np.ndarray, "..."]:
    """Parses iota groups: [2,4]T(1,0) counts up in this shape, transposed."""
    shape, _, axes = text.partition("T")
    counted = np.arange(math.prod(numbers(shape))).reshape(numbers(shape))
    return counted.transpose(numbers(axes)) if axes else counted
