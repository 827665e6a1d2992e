"""Compiled programs as XLA writes them: the instructions of every computation, what they call, how often loops run.

Layers are scanned, so that most of what a step does stands in the body of a loop and runs as often as the loop does.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = type opcode(arguments), rest`.

    Attributes:
        root: whether it is the result of the computation.
    """

    computation: str
    type: str
    opcode: str
    arguments: str
    rest: str
    root: bool

    @property
    def size(self) -> int:
        """Bytes of its type."""
        return bytes_of_type(self.type)

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%[\w.\-]+", self.arguments)


Bodies = Mapping[str, Mapping[str, Instruction]]


def computations(text: str) -> tuple[Bodies, str]:
    """Parses HLO text: instructions by name of every computation by name, and the name of the entry computation."""
    bodies: dict[str, dict[str, Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            name = header[2]
            bodies[name] = {}
            entry = name if header[1] else entry
        elif start := re.match(r"\s+(ROOT )?(%[\w.\-]+) = ", line):
            bodies[name][start[2]] = _instruction(name, line[start.end() :], root=bool(start[1]))
    return bodies, entry


def _instruction(computation: str, text: str, *, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, opening, _ = text[end:].partition("(")
    begin = end + len(opcode) + len(opening)
    close = _closing(text, begin - 1)
    return Instruction(computation, text[:end], opcode.strip(), text[begin:close], text[close:], root)


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"not XLA text, a parenthesis stays open: {text[:120]}")


def bytes_of_type(kind: str) -> int:
    """Bytes of a type such as f32[2,8]{1,0} or of a tuple of them; memory layout is not traffic."""
    bits = 0
    for name, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", kind):
        width = re.search(r"\d+", name.replace("pred", "u8"))
        bits += math.prod(numbers(shape)) * (int(width[0]) if width else 0)
    return -(-bits // 8)


def called(rest: str) -> Iterable[str]:
    """Computations that an instruction runs; every branch of a conditional is counted as if taken."""
    single = re.findall(r"\b(?:body|calls|to_apply|true_computation|false_computation)=(%[\w.\-]+)", rest)
    branches = re.search(r"branch_computations=\{(.*?)\}", rest)
    return [*single, *(re.findall(r"%[\w.\-]+", branches[1]) if branches else ())]


def trips(bodies: Bodies, loop: Instruction) -> int | None:
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


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
