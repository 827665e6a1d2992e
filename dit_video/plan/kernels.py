"""What a compiled program runs: each kernel with how often, its bytes, FLOPs, a TPU's estimated cycles, and its source.

Read from XLA's text of the program, in which loops count as often as they run. Bytes are those that pass the memory of
the device: a fusion that slices an operand reads the slice, and one that updates a part in place writes the part.
"""

import collections
import dataclasses
import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from dit_video.distributed.hlo_text import Bodies, Instruction, called, computations, numbers, trips


class Kind(enum.Enum):
    """What a kernel is for."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    COLLECTIVE = "collective"
    OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a compiled program; all numbers are of all its runs together.

    Attributes:
        runs: how often it runs in one execution.
        cycles: as libtpu estimates them; 0 elsewhere, and for attention, of which it knows nothing.
        flops: of matrix products; 0 for attention.
        source: file:line of the innermost place in this package that it was traced from; empty where there is none.
    """

    name: str
    kind: Kind
    runs: int
    cycles: int
    bytes: int
    flops: int
    source: str


# Nothing is run for these.
_FREE = re.compile(
    r"parameter|constant|bitcast|tuple|get-tuple-element|after-all|partition-id|replica-id|opt-barrier|domain"
    r"|optimization-barrier|add-dependency|.*-done|async-update"
)
_COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|send|recv)(-start)?")
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "reshape", "convert", "copy")
_PACKAGE = "/dit_video/"


def read_kernels(text: str) -> list[Kernel]:
    """Kernels of `compiled.as_text()`, in the order of the text; a loop of unknown length counts as one round."""
    bodies, entry = computations(text)
    sources = _sources(text)
    return [
        Kernel(
            name=name,
            kind=kind,
            runs=runs,
            cycles=runs * _cycles(instruction),
            bytes=runs * _bytes(bodies, instruction),
            flops=runs * sum(_flops(bodies, one) for one in _products(bodies, instruction)),
            source=_source(bodies, instruction, sources),
        )
        for name, instruction, runs in _walk(bodies, entry, 1)
        for kind in [_kind(bodies, instruction)]
    ]


@dataclasses.dataclass(frozen=True)
class Place:
    """What is run for one place of the source.

    Attributes:
        source: file:line in this package; empty for what the compiler added.
        bytes: that pass the memory of a device.
        share: of the cycles of all kernels, or of their bytes where no cycles are known.
    """

    source: str
    bytes: int
    share: float


def costliest_places(kernels: Sequence[Kernel], num: int) -> tuple[Place, ...]:
    """The `num` places with the most cycles, or bytes where no cycles are known."""
    total = sum(kernel.cycles for kernel in kernels)
    costs: collections.Counter[str] = collections.Counter()
    moved: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        costs[kernel.source] += kernel.cycles if total else kernel.bytes
        moved[kernel.source] += kernel.bytes
    whole = max(1, sum(costs.values()))
    return tuple(Place(source, moved[source], cost / whole) for source, cost in costs.most_common(num))


def _walk(bodies: Bodies, computation: str, runs: int) -> Iterator[tuple[str, Instruction, int]]:
    """Instructions that are run as kernels, with how often."""
    for name, instruction in bodies[computation].items():
        if instruction.opcode in ("while", "call", "conditional", "async-start"):
            rounds = trips(bodies, instruction) or 1 if instruction.opcode == "while" else 1
            for inner in called(instruction.rest):
                yield from _walk(bodies, inner, runs * rounds)
        elif not _FREE.fullmatch(instruction.opcode):
            yield name, instruction, runs


def _inside(bodies: Bodies, instruction: Instruction) -> Iterator[Instruction]:
    """The instruction, and all that a fusion fuses."""
    yield instruction
    for computation in called(instruction.rest):
        for one in bodies[computation].values():
            yield from _inside(bodies, one)


def _kind(bodies: Bodies, instruction: Instruction) -> Kind:
    inside = list(_inside(bodies, instruction))
    targets = " ".join(one.rest for one in inside if one.opcode == "custom-call")
    if re.search(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha)', targets):
        return Kind.ATTENTION
    if any(_COLLECTIVE.fullmatch(one.opcode) for one in inside):
        return Kind.COLLECTIVE
    return Kind.MATMUL if any(_is_product(one) for one in inside) else Kind.OTHER


def _is_product(instruction: Instruction) -> bool:
    opcode = instruction.opcode
    return opcode in ("dot", "convolution") or (
        opcode == "custom-call" and bool(re.search("gemm|matmul", instruction.rest))
    )


def _products(bodies: Bodies, instruction: Instruction) -> list[Instruction]:
    return [one for one in _inside(bodies, instruction) if _is_product(one)]


def _flops(bodies: Bodies, product: Instruction) -> int:
    """FLOPs of a matrix product, whichever way a compiler writes it.

    Of arrays of b m k, b k n and b m n elements, their product over b is (b m k n)^2: no axis has to be known but the
    batch, which only `dot` has.
    """
    here = bodies[product.computation]
    left, right, *_ = (_elements(here[name].type) for name in product.operands)
    batch = re.search(r"lhs_batch_dims=\{([\d,]*)\}", product.rest)
    shape = _shape(here[product.operands[0]].type)
    rows = math.prod(shape[axis] for axis in numbers(batch[1])) if batch else 1
    return round(2 * math.sqrt(left * right * _elements(product.type) / rows))


def _shape(kind: str) -> list[int]:
    """Of an array, or of the first of a tuple."""
    first = re.search(r"[a-z]\w*\[([\d,]*)\]", kind)
    return numbers(first[1]) if first else []


def _elements(kind: str) -> int:
    return math.prod(_shape(kind))


def _cycles(instruction: Instruction) -> int:
    estimate = re.search(r'"estimated_cycles":"?(\d+)', instruction.rest)
    return int(estimate[1]) if estimate else 0


def _bytes(bodies: Bodies, instruction: Instruction) -> int:
    """Bytes that a kernel reads and writes."""
    here = bodies[instruction.computation]
    if instruction.opcode in _SLICES:
        return 2 * instruction.size
    if instruction.opcode == "dynamic-update-slice":
        return 2 * here[instruction.operands[1]].size
    operands = [here[name].size for name in instruction.operands if name in here]
    inner = list(called(instruction.rest))
    if instruction.opcode != "fusion" or not inner:
        return instruction.size + sum(operands)
    body = bodies[inner[0]]
    parameters = {
        name: operands[int(one.arguments)]
        for name, one in body.items()
        if one.opcode == "parameter" and int(one.arguments) < len(operands)
    }
    written, in_place = _written(body)
    return written + sum(
        min(size, _read(body, name, size)) for name, size in parameters.items() if name not in in_place
    )


def _written(body: Mapping[str, Instruction]) -> tuple[int, set[str]]:
    """Bytes that a fusion writes, and the parameters that it updates in place."""
    root = next(one for one in body.values() if one.root)
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total, in_place = 0, set()
    for result in results:
        made = _through_views(body, result)
        if made.opcode != "dynamic-update-slice":
            total += result.size
            continue
        total += body[made.operands[1]].size
        name = made.operands[0]
        while body[name].opcode in _VIEWS:
            name = body[name].operands[0]
        in_place.add(name)
    return total, in_place


def _through_views(body: Mapping[str, Instruction], one: Instruction) -> Instruction:
    while one.opcode in _VIEWS and one.operands and one.operands[0] in body:
        one = body[one.operands[0]]
    return one


def _read(body: Mapping[str, Instruction], name: str, size: int) -> int:
    """Bytes of a parameter of `size` that a fusion reads: its slices, where it takes nothing else of it."""
    total = 0
    for user, one in body.items():
        if name not in one.operands:
            continue
        if one.opcode in _SLICES and one.operands[0] == name:
            total += one.size
        elif one.opcode in ("bitcast", "reshape"):
            total += _read(body, user, size)
        elif one.opcode != "dynamic-update-slice" or one.operands[0] != name:
            return size
    return total


def _source(bodies: Bodies, instruction: Instruction, sources: Mapping[str, str]) -> str:
    """Place of a kernel, or of most of what it fuses."""
    own = re.search(r"stack_frame_id=(\d+)", instruction.rest)
    if own:
        return sources.get(own[1], "")
    frames = (re.search(r"stack_frame_id=(\d+)", one.rest) for one in _inside(bodies, instruction))
    places = collections.Counter(sources.get(frame[1], "") for frame in frames if frame)
    return places.most_common(1)[0][0] if places else ""


def _sources(text: str) -> dict[str, str]:
    """By the number of a stack frame, file:line of the innermost place in this package."""
    tables: dict[str, dict[str, str]] = collections.defaultdict(dict)
    title = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            title = line
        elif row := re.match(r"(\d+) (.*)", line):
            tables[title][row[1]] = row[2]
        elif line.startswith(("%", "ENTRY")):
            break
    files = {number: name.strip('"') for number, name in tables["FileNames"].items()}
    places = {}
    for number, location in tables["FileLocations"].items():
        file, line = (re.search(rf"\b{key}=(\d+)", location) for key in ("file_name_id", "line"))
        _, package, path = files[file[1]].rpartition(_PACKAGE) if file else ("", "", "")
        places[number] = f"{path}:{line[1]}" if package and line else ""
    frames = {}
    for number, frame in tables["StackFrames"].items():
        place, parent = (re.search(rf"\b{key}=(\d+)", frame) for key in ("file_location_id", "parent_frame_id"))
        # The outer frame is the one before the number that is written: 1 is for none.
        frames[number] = (place[1] if place else "", str(int(parent[1]) - 1) if parent else "")
    return {number: _innermost(number, frames, places) for number in frames}


def _innermost(number: str, frames: Mapping[str, tuple[str, str]], places: Mapping[str, str]) -> str:
    while number in frames:
        place, parent = frames[number]
        if places.get(place):
            return places[place]
        number = parent
    return ""
