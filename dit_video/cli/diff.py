"""`dit-video diff`: the fields in which two experiments or runs differ."""

import argparse
import json
from pathlib import Path

from rich.table import Table

from dit_video.cli.arguments import named
from dit_video.config.components import diff
from dit_video.progress import Terminal
from dit_video.run.folder import EXPERIMENT_FILE, read_experiment
from dit_video.storage.mirror import local_copy


def main(arguments: argparse.Namespace) -> int:
    names = (arguments.a, arguments.b)
    folders = {name: local_copy(Path(name), EXPERIMENT_FILE) for name in names}
    files = {name: named(name) for name in names if not folders[name].is_dir()}
    # A run may be made of the classes of the file that it is compared with.
    like = next(iter(files.values()), None)
    changed = diff(*(files.get(name) or read_experiment(folders[name], like) for name in names))
    console = Terminal()
    if not changed:
        console.print("no difference")
        return 0
    table = Table("field", arguments.a, arguments.b)
    for path, (a, b) in changed.items():
        table.add_row(f"config.{path}", json.dumps(a), json.dumps(b))
    console.print(table)
    return 0
