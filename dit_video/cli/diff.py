"""`dit-video diff`: the fields in which two experiments or runs differ."""

import argparse
import json
from typing import Any

from rich.table import Table

from dit_video.cli.arguments import named, run_of
from dit_video.config.components import flatten
from dit_video.config.json_file import in_short
from dit_video.progress import Terminal
from dit_video.run.folder import read_experiment

# What stands for the value on a side that has no such field, as where the components are of other classes.
_ABSENT = "-"
_LONGEST = 60


def main(arguments: argparse.Namespace) -> int:
    names = (arguments.a, arguments.b)
    runs = {name: run_of(name) for name in names}
    files = {name: named(name) for name, run in runs.items() if run is None}
    # A run may be made of the classes of the file that it is compared with.
    like = next(iter(files.values()), None)
    sides = [flatten(files[name] if (run := runs[name]) is None else read_experiment(run, like)) for name in names]
    changed = {
        f"config.{path}": [side.get(path, _ABSENT) for side in sides]
        for path in sorted(sides[0].keys() | sides[1].keys())
        if sides[0].get(path) != sides[1].get(path)
    }
    if arguments.json:
        print(json.dumps(changed, indent=1))
        return 0
    console = Terminal()
    if not changed:
        console.print("no difference")
        return 0
    table = Table("field", arguments.a, arguments.b)
    for column in table.columns:
        column.overflow = "fold"
    for path, values in changed.items():
        table.add_row(path, *_shown(values))
    console.print(table)
    return 0


def _shown(values: list[Any]) -> tuple[str, str]:
    """Both values, long ones about the place where they begin to differ."""
    if _ABSENT in values:
        first, second = (value if value == _ABSENT else json.dumps(value) for value in values)
        return first[:_LONGEST], second[:_LONGEST]
    return in_short(*values, length=_LONGEST)
