"""Picture of class conditioning: one noise for all columns, one label a column, and guidance from row to row.

    python tools/draw_labels.py --workdir runs/demo/dit --scale 3 --out docs/labels.png
    python tools/draw_labels.py --workdir runs/grid_dit --labels zero two eight --seed 1

Rows: a held-out clip of that class; the sample at the run's guidance; at guidance scale 1; with the label withheld.
If the label changed nothing, the columns of a row would be equal; without guidance and label, they are.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from dit_video.cli.usage.arguments import add_weights
from dit_video.cli.weights import open_weights
from dit_video.data.batch import Batch
from dit_video.data.record import NO_LABEL, Split
from dit_video.data.signals import LABEL
from dit_video.run.open_run import evaluation_data
from dit_video.tasks.evaluator import EvaluationData
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import GENERATE
from dit_video.video.encode import grid, write_gif


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights(parser)
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="classes by name (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--scale", type=int, default=2, help="times larger (default 2)")
    parser.add_argument("--out", type=Path, default=Path("labels.gif"), metavar="FILE", help=".gif, or .png: one frame")
    arguments = parser.parse_args()
    opened = open_weights(arguments, Console())
    task, source = opened.experiment.task, opened.experiment.data.source
    if not isinstance(task, Denoise) or task.condition is None:
        parser.error(f"{arguments.workdir}: must be a run that is conditioned on a class")
    names = source.info().class_names
    chosen = arguments.labels or list(names)
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--labels {unknown[0]}: must be of {', '.join(names)}")
    denoise: Denoise = task
    labels = np.array([names.index(name) for name in chosen], np.int32)
    data = evaluation_data(opened.experiment)
    num_held_out = source.info().num_records[Split.HELD_OUT]

    def samples(scale: float, shown: np.ndarray) -> np.ndarray:
        guided = dataclasses.replace(denoise, guidance=dataclasses.replace(denoise.guidance, scale=scale))
        subject = dataclasses.replace(opened, experiment=dataclasses.replace(opened.experiment, task=guided)).subject()
        size = subject.batch_size(len(shown))
        keys = clip_keys(arguments.seed, np.zeros(size, int))
        return subject(GENERATE, Batch(signals={LABEL: np.resize(shown, size)}), keys, data.shape)[: len(shown)]

    rows = [
        real_clips(data, labels, num_held_out),
        samples(task.guidance.scale, labels),
        samples(1.0, labels),
        samples(1.0, np.full_like(labels, NO_LABEL)),
    ]
    picture = grid(np.concatenate(rows), columns=len(labels))
    size = (picture.shape[2] * arguments.scale, picture.shape[1] * arguments.scale)
    larger = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in picture])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.out.suffix == ".png":
        Image.fromarray(larger[len(larger) // 2]).save(arguments.out)
    else:
        write_gif(arguments.out, larger, data.fps)
    for name, row in zip(("at the run's guidance", "at guidance scale 1", "with the label withheld"), rows[1:]):
        print(f"samples {name}: mean difference between columns {between(row):.2f} grey levels")
    print(f"columns {', '.join(chosen)} -> {arguments.out}")


def real_clips(data: EvaluationData, labels: np.ndarray, num_clips: int) -> np.ndarray:
    """The first held-out clip of each class."""
    clips = {}
    for batch, valid in data.batches(Split.HELD_OUT, num_clips, 32):
        for label, video in zip(np.asarray(batch.require_signal(LABEL))[:valid], np.asarray(batch.require_video())):
            clips.setdefault(int(label), video)
        if clips.keys() >= set(labels.tolist()):
            break
    return np.stack([clips[label] for label in labels.tolist()])


def between(row: np.ndarray) -> float:
    """Mean absolute difference of every two clips of a row."""
    pairs = [(i, j) for i in range(len(row)) for j in range(i)]
    return float(np.mean([np.abs(row[i].astype(int) - row[j]).mean() for i, j in pairs]))


if __name__ == "__main__":
    main()
