"""Draws the rooms of the package by floor, with the imports between them, from the real imports.

    python -m tools.draw_house                       writes docs/house.png

The floors are those of the import contract in pyproject.toml. The more imports a line stands for, the darker it is.
"""

import argparse
import collections
import itertools
import tomllib
from pathlib import Path

import grimp
import matplotlib

PACKAGE = "dit_video"


def floors(pyproject: Path = Path("pyproject.toml")) -> list[list[str]]:
    """Rooms by floor, the highest first, as the import contract has them."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip().removeprefix(f"{PACKAGE}.") for room in layer.split("|")] for layer in layers]


def imports() -> collections.Counter[tuple[str, str]]:
    """How many imports lead from one room into another."""
    graph = grimp.build_graph(PACKAGE)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            rooms = [name.split(".")[1] for name in (module, imported) if "." in name]
            if len(rooms) == 2 and rooms[0] != rooms[1]:
                counts[rooms[0], rooms[1]] += 1
    return counts


def draw(path: Path) -> None:
    """Writes the picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = floors()
    widest = max(map(len, rows))
    places = {
        room: ((index + 0.5) * widest / len(row), len(rows) - number)
        for number, row in enumerate(rows)
        for index, room in enumerate(row)
    }
    figure, axes = pyplot.subplots(figsize=(13, 8))
    counts = imports()
    for (importer, imported), count in counts.items():
        if importer in places and imported in places:
            (x0, y0), (x1, y1) = places[importer], places[imported]
            opacity = 0.08 + 0.5 * count / max(counts.values())
            axes.plot([x0, x1], [y0 - 0.18, y1 + 0.18], color="tab:blue", alpha=opacity, linewidth=1.2, zorder=1)
    for room, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "black"}
        axes.text(x, y, room, ha="center", va="center", fontsize=11, bbox=box, zorder=2)
    for number in range(len(rows)):
        axes.text(-0.35, len(rows) - number, str(len(rows) - number), ha="right", va="center", color="grey")
    axes.set_xlim(-0.6, widest)
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/house.png"))
    out = parser.parse_args().out
    draw(out)
    missing = {a for pair in imports() for a in pair} - set(itertools.chain(*floors()))
    print(
        f"{out}: {len(imports())} kinds of import" + (f"; on no floor: {', '.join(sorted(missing))}" if missing else "")
    )


if __name__ == "__main__":
    main()
