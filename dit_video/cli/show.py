"""`dit-video show`: prints a resolved experiment with its parameters and FLOPs."""

import argparse
import json

from rich.table import Table

from dit_video import experiment as experiments
from dit_video.cli.arguments import experiment_of, run_of
from dit_video.config.components import flatten, record
from dit_video.data.sources import check_prepared
from dit_video.nn.module import define
from dit_video.progress import Terminal
from dit_video.run import workload
from dit_video.run.checks import check_fields
from dit_video.run.preflight import preflight
from dit_video.run.shapes import balanced


def main(arguments: argparse.Namespace) -> int:
    experiment = experiment_of(arguments)
    if arguments.json:
        print(json.dumps(record(experiment), indent=1))
        return 0
    console = Terminal()
    if arguments.check:
        if run_of(arguments.config) is not None:
            check_prepared(experiment.data.source)
        experiment = balanced(experiment)
        check_fields(experiment)
        lines = preflight(experiment)
        for line in lines:
            console.print(f"warning: {line}", style="yellow")
        warned = f"with {len(lines)} warning{'s' * (len(lines) > 1)}" if lines else "no warning"
        console.print(f"fits its data: {warned}")
        return 0
    for path, value in flatten(experiment).items():
        if not path.endswith("class"):
            console.print(f"config.{path} = {json.dumps(value)}")
    definition = define(experiment.task.init)
    table = Table(title=f"{type(experiment.task).__name__}: parameters")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    parts: dict[str, int] = {}
    for name, shape in definition.shapes.items():
        part = ".".join(name.split(".")[: 2 if name.startswith(("blocks.", "vae.")) else 1])
        parts[part] = parts.get(part, 0) + shape.size
    for part, count in parts.items():
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("all", f"{definition.num_params:,}")
    console.print(table)
    experiment = balanced(experiment)
    for number, one in enumerate(experiment.by_shape()):
        flops, batch = workload.step_flops(one), one.data.batch_size
        of = f" of {experiment.data.shapes[number]}" if experiment.data.shapes else ""
        step = f"FLOPs of a training step (forward and backward, batch {batch}{of}): {flops:.4g}"
        console.print(f"{step}; of a clip: {flops / batch:.4g}")
    console.print(f"fingerprint: {experiments.fingerprint(experiment)}")
    return 0
