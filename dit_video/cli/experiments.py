"""`dit-video experiments`: lists the experiments that come with this package."""

import argparse
import json

from rich.table import Table

from dit_video.config.user_file import packaged_experiments
from dit_video.progress import Terminal


def main(arguments: argparse.Namespace) -> int:
    found = packaged_experiments()
    if arguments.json:
        print(json.dumps([one._asdict() for one in found], indent=1))
        return 0
    table = Table("--config=", "what it trains", "after a colon")
    for one in found:
        table.add_row(one.name, one.summary, one.argument)
    Terminal().print(table)
    return 0
