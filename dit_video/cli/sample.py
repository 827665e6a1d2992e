"""dit-video sample"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console

from dit_video import run
from dit_video.cli.arguments import add_weights, command, parse_size
from dit_video.data.batch import NO_LABEL, Batch
from dit_video.data.video import grid, write_gif, write_mp4
from dit_video.experiment import override
from dit_video.tasks.denoise import Denoise
from dit_video.tasks.task import clip_keys

EXAMPLES = """  dit-video sample --workdir=runs/quickstart_dit --label=3 --num_clips=8 --out=threes.mp4
  dit-video sample --workdir=runs/quickstart_dit --label=all --out=digits.gif
  dit-video sample --workdir=runs/grid_dit --label=two --seed=7 --out=two.mp4 --config.task.guidance.scale=1
  dit-video sample --workdir=runs/grid_dit --out=any.mp4 --config.task.sampler.num_steps=20
  dit-video sample --workdir=runs/grid_dit --label=two --num_frames=33 --size=96,96 --out=long.mp4

--config.task.sampler... and --config.task.guidance... change how this run is sampled. Clip i depends on seed and i
alone, so the same seed with another label or guidance is the same noise seen differently."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "sample", "make clips with a trained run", EXAMPLES)
    add_weights(parser)
    parser.add_argument("--label", metavar="NAME", help='class by name or number, or "all": one row per class')
    parser.add_argument("--num_clips", type=int, default=8, help="clips, or clips per class (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_frames", type=int, help="length of a clip (default: as trained)")
    parser.add_argument("--size", metavar="H,W", help="height and width (default: as trained)")
    parser.add_argument(
        "--out", type=Path, nargs="+", required=True, metavar="FILE", help=".mp4 or .gif, or both: a grid of the clips"
    )
    parser.add_argument("--npy", type=Path, metavar="FILE", help="also save the clips, uint8 [N T H W 3]")
    parser.set_defaults(run=main, config=None)


def main(arguments: argparse.Namespace) -> int:
    console = Console()
    for path in arguments.out:
        if path.suffix not in (".mp4", ".gif"):
            raise ValueError(f"--out={path}: must end in .mp4 or .gif")
    opened = run.open_run(arguments.workdir, step=arguments.step, ema=not arguments.raw, console=console)
    if not isinstance(opened.experiment.task, Denoise):
        raise ValueError(f"{arguments.workdir} trained a codec, which makes no clips; see dit-video evaluate")
    if arguments.overrides:
        opened = dataclasses.replace(opened, experiment=override(opened.experiment, arguments.overrides))
    data = run.evaluation_data(opened.experiment)
    labels = _labels(arguments.label, opened)
    rows = np.repeat(np.asarray(labels, np.int32), arguments.num_clips)
    shape = _shape(arguments, data.shape)
    # The same noise in every row of the grid: rows then differ by their label alone.
    subject, video = opened.subject(), []
    size = subject.batch_size(arguments.num_clips)
    keys = clip_keys(arguments.seed, range(size))
    for label in labels:
        batch = Batch(label=np.full(size, label, np.int32))
        video.append(subject.generate(batch, keys, shape)[: arguments.num_clips])
    video = np.concatenate(video)
    picture = grid(video, columns=arguments.num_clips)
    for path in arguments.out:
        path.parent.mkdir(parents=True, exist_ok=True)
        (write_gif if path.suffix == ".gif" else write_mp4)(path, picture, data.fps)
    if arguments.npy is not None:
        np.save(arguments.npy, video)
    console.print(f"{len(rows)} clips of {shape}: {' '.join(map(str, arguments.out))}", highlight=False)
    return 0


def _labels(name: str | None, opened: run.OpenRun) -> list[int]:
    """Class numbers that --label names."""
    task = opened.experiment.task
    assert isinstance(task, Denoise), "main refuses any other, and overrides keep the class of a task"
    condition = task.condition
    if name is None:
        return [NO_LABEL]
    if condition is None:
        raise ValueError(f"--label={name}: this run is not conditioned on a class; leave it out")
    if name == "all":
        return list(range(condition.num_classes))
    names = opened.experiment.data.source.info().class_names
    if name in names:
        return [names.index(name)]
    if name.isdigit() and int(name) < condition.num_classes:
        return [int(name)]
    raise ValueError(f"--label={name}: must be one of {', '.join(names)}, a number under {condition.num_classes}, all")


def _shape(arguments: argparse.Namespace, trained: tuple[int, int, int]) -> tuple[int, int, int]:
    size = trained[1:]
    if arguments.size is not None:
        size = parse_size("--size", arguments.size)
    return (arguments.num_frames or trained[0], *size)
