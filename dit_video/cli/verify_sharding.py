"""`dit-video verify-sharding`: compares training on one device with training sharded over eight."""

import argparse
import collections
import dataclasses
import json
from typing import Any

from rich.table import Table

from dit_video.cli.arguments import experiment_of, use_fake_devices
from dit_video.distributed.collectives import Traffic
from dit_video.progress import Terminal, counted, headed
from dit_video.verify.sharding import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    MESHES,
    NUM_DEVICES,
    TRAINING_TOLERANCE,
    Comparison,
    compare_shardings,
)


def main(arguments: argparse.Namespace) -> int:
    use_fake_devices(NUM_DEVICES)
    console, experiment = Terminal(stderr=arguments.json), experiment_of(arguments)
    comparisons = compare_shardings(experiment, num_steps=arguments.num_steps)
    found = list(counted(comparisons, "ways of splitting", total=len(MESHES), unit="ways", console=console))
    if arguments.json:
        print(json.dumps([to_json(comparison) for comparison in found], indent=1))
    else:
        console.print(_table(found, arguments.num_steps))
    for comparison in found:
        if comparison.refused is not None:
            console.print(f"not possible: {_name(comparison)}: {comparison.refused}")
    different = [comparison for comparison in found if comparison.refused is None and not comparison.equal]
    for comparison in different:
        which = f": {_name(comparison)}; the gradient of {comparison.gradient[0]} most"
        console.print(headed("differs", "bold red", which))
    tried = sum(comparison.refused is None for comparison in found)
    if not different:
        console.print(f"equal to one device in all {tried} ways that are possible")
    return 1 if different or not tried else 0


def _name(comparison: Comparison) -> str:
    sizes = dataclasses.asdict(comparison.mesh)
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)


def to_json(comparison: Comparison) -> dict[str, Any]:
    mesh = dataclasses.asdict(comparison.mesh)
    if comparison.refused is not None or comparison.traffic is None:
        return {"mesh": mesh, "refused": comparison.refused}
    parameter, difference = comparison.gradient
    return {
        "mesh": mesh,
        "equal": comparison.equal,
        "loss": comparison.loss,
        "gradient": {"parameter": parameter, "difference": difference},
        "training": comparison.training,
        "state_bytes": {"device": comparison.state, "whole": comparison.whole},
        "collectives": _counts(comparison.traffic),
    }


def _counts(traffic: Traffic) -> dict[str, int]:
    found: collections.Counter[str] = collections.Counter()
    for collective in traffic.collectives:
        found[collective.kind] += collective.count
    return found


def _table(found: list[Comparison], num_steps: int) -> Table:
    table = Table(title=f"{NUM_DEVICES} devices against one, relative differences")
    for heading in ("mesh", "loss", "gradient", f"{num_steps} steps", "state", "collectives of a step"):
        table.add_column(heading, justify="right" if heading not in ("mesh", "collectives of a step") else "left")
    for one in found:
        if one.refused is not None or one.traffic is None:
            continue
        table.add_row(
            _name(one),
            f"{one.loss:.0e}",
            f"{one.gradient[1]:.0e}",
            f"{one.training:.0e}",
            f"{one.state / one.whole:.0%}",
            "\n".join(f"{count:,} {kind}" for kind, count in _counts(one.traffic).items()),
        )
    table.caption = (
        f"allowed: loss {LOSS_TOLERANCE:g}, gradient of any parameter {GRADIENT_TOLERANCE:g}, losses of the steps "
        f"{TRAINING_TOLERANCE:g}; state: the part of all that one device holds"
    )
    return table
