"""Cycles of a Pallas kernel for TPU by libtpu's final schedule of it, which it writes without a device.

Grid steps that one core runs, times the bundles of a step: no stall for memory is counted, and what is run once for a
row of the grid (to begin and to end a sum) not either. libtpu is started with `DUMP_FLAGS`.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

# For LIBTPU_INIT_ARGS; libtpu reads it once, when it is loaded.
DUMP_FLAGS = "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
# A region that stores so much begins or ends a sum.
_STORES = 50
# Rows of the table of units: the matrix unit, and stores.
_MXU, _STORE = 0, 7


@dataclasses.dataclass(frozen=True)
class Region:
    """Bundles between two labels of a schedule: how deep in loops, and how many use the matrix unit or store."""

    depth: int
    bundles: int
    products: int
    stores: int


def kernel_cycles(folder: Path, name: str) -> dict[str, int]:
    """Cycles of each kernel in a dump whose name contains `name`, by its name."""
    cycles = {}
    for path in sorted(folder.glob(f"*{name}*-final_bundles.txt")):
        stem = re.sub(r"-\d+-final_bundles$", "", path.stem)
        text = path.read_text()
        bounds = [int(n) for n in re.findall(r"totalorder [^,\n]+, (\d+) /\* loop exit test", text)]
        # The loop that fetches ahead has one round before and one after the steps of the grid.
        steps = max(bounds, default=3) - 2
        cycles[re.sub(r"^\d+-", "", stem)] = steps * _bundles_of_a_step(list(_regions(folder, stem, text)))
    return cycles


def _bundles_of_a_step(regions: list[Region]) -> int:
    """Bundles of a step in the middle of a row. A body of its own for masked blocks is not run there."""
    inside = [region for region in regions if region.depth]
    most = max(region.products for region in inside)
    bodies = [i for i, region in enumerate(inside) if region.products > most / 2]
    before, after = inside[: bodies[0]], inside[bodies[-1] + 1 :]
    once = sum(region.stores for region in before)
    body = min(inside[i].bundles for i in bodies)
    return body + sum(r.bundles for r in before) - once + sum(r.bundles for r in after if r.stores < _STORES)


def _regions(folder: Path, stem: str, text: str) -> Iterator[Region]:
    lines = [re.match(r"\s*(0x[0-9a-f]+|0)\s+((?:[A-Z]{2}\s*)*): ?(>*)", line) for line in text.splitlines()]
    bundles = [(line[2], len(line[3])) for line in lines if line]
    (table,) = folder.glob(f"{stem}-*final_hlo-static-per-bundle-utilization.txt")
    rows = [line.split() for line in table.read_text().splitlines()]
    units = [[int(n) for n in row] for row in rows if len(row) == 10 and all(n.isdigit() for n in row)]
    cuts = sorted({0, len(bundles), *(i for i, (label, _) in enumerate(bundles) if label)})
    for first, last in itertools.pairwise(cuts):
        products, stores = (sum(row[unit] for row in units[first:last]) for unit in (_MXU, _STORE))
        yield Region(bundles[first][1], last - first, products, stores)
