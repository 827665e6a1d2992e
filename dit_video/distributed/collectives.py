"""Communication volume of a compiled program: collectives (all-gather, all-reduce, ...) read from its XLA HLO text.

The text names every collective with the groups of devices it joins. One that stands in the body of a loop runs as
often as the loop does; layers are scanned, so most stand in one.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

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
    bodies, entry = _computations(text)
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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One line of a computation: `%name = type opcode(arguments), rest`; `size` is bytes of its type."""

    computation: str
    size: int
    opcode: str
    arguments: str
    rest: str


_Bodies = Mapping[str, Mapping[str, _Instruction]]


def _computations(text: str) -> tuple[_Bodies, str]:
    """Parses HLO text: instructions by name of every computation by name, and the name of the entry computation."""
    bodies: dict[str, dict[str, _Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            name = header[2]
            bodies[name] = {}
            entry = name if header[1] else entry
        elif start := re.match(r"\s+(?:ROOT )?(%[\w.\-]+) = ", line):
            bodies[name][start[1]] = _instruction(name, line[start.end() :])
    return bodies, entry


def _instruction(computation: str, text: str) -> _Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, opening, _ = text[end:].partition("(")
    begin = end + len(opcode) + len(opening)
    close = _closing(text, begin - 1)
    return _Instruction(computation, _size(text[:end]), opcode.strip(), text[begin:close], text[close:])


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"not XLA text, a parenthesis stays open: {text[:120]}")


def _size(kind: str) -> int:
    """Bytes of a type such as f32[2,8]{1,0} or of a tuple of them; memory layout is not traffic."""
    bits = 0
    for name, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", kind):
        width = re.search(r"\d+", name.replace("pred", "u8"))
        bits += math.prod(_numbers(shape)) * (int(width[0]) if width else 0)
    return -(-bits // 8)


def _runs(bodies: _Bodies, name: str, times: int, unknown: set[str]) -> Iterator[tuple[_Instruction, str, int]]:
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
        rounds = _trips(bodies, instruction) if instruction.opcode == "while" else 1
        for called in _called(instruction.rest):
            for run in _runs(bodies, called, times * (rounds or 1), unknown):
                if rounds is None:
                    unknown.add(label)
                yield run


def _called(rest: str) -> Iterable[str]:
    """Computations that an instruction runs; every branch of a conditional is counted as if taken."""
    single = re.findall(r"\b(?:body|calls|to_apply|true_computation|false_computation)=(%[\w.\-]+)", rest)
    branches = re.search(r"branch_computations=\{(.*?)\}", rest)
    return [*single, *(re.findall(r"%[\w.\-]+", branches[1]) if branches else ())]


def _trips(bodies: _Bodies, loop: _Instruction) -> int | None:
    """Trip count of a loop.

    CPU and GPU compilers say so. TPU's do not: there it is the bound of the counter in the condition, which starts at 0
    and grows by 1 in every loop that `lax.scan` makes.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=(%[\w.\-]+)", loop.rest)
    if condition is None:
        return None
    bounds = [i.arguments for i in bodies[condition[1]].values() if i.opcode == "constant"]
    return int(bounds[0]) if len(bounds) == 1 and bounds[0].isdigit() else None


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
    return np.array([_numbers(row) for row in re.findall(r"\d+(?:,\d+)*", text)])


def _groups(instruction: _Instruction, domains: Sequence[int]) -> Groups:
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
        return _iota(iota[2]).reshape(_numbers(iota[1]))
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
    counted = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return counted.transpose(_numbers(axes)) if axes else counted


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
