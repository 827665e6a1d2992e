"""PSNR of every way of making a video against the truth, on digits whose motion is deterministic.

    python -m tools.any_frames_bench --runs runs --steps 1000

Trains what is not trained yet (experiments/any_frames.py: one model for all, and with --single one of the same size and
steps for each mode alone), continues what was interrupted, keeps each result in RUNS/any_frames.jsonl, and prints the
table. The codec is runs/quickstart_vae, data and latents are made on the way.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from dit_video.cli.video_modes import Maker
from dit_video.data.batch import Batch
from dit_video.data.record import Split
from dit_video.data.transforms import ClipTransform
from dit_video.run.open_run import OpenRun, open_run
from dit_video.run.video_modes import Lengths, Make, Window, connection, extension, extension_before, painted

EXPERIMENT = "experiments/any_frames.py"
Clips = UInt8[np.ndarray, "..."]
# Frames from what is known at which the error is told.
AT = (1, 4, 16)


class Made(NamedTuple):
    """What a mode made of clips, the truth, and what stands for it without a model, frames counted from the known."""

    frames: Clips
    truth: Clips
    copy: Clips
    blend: Clips | None = None
    where: Bool[np.ndarray, "H W"] | None = None


def extended(lengths: Lengths, video: Clips, make: Make, num_new: int) -> Made:
    context = video[:, :13]
    made = np.concatenate(list(extension(lengths, context, num_new, make, _quiet)), axis=1)
    return Made(made, video[:, 13 : 13 + num_new], context[:, -1:])


def extended_before(lengths: Lengths, video: Clips, make: Make, num_new: int) -> Made:
    context = video[:, num_new : num_new + 12]
    made = extension_before(lengths, context, num_new, make, _quiet)
    return Made(made[:, ::-1], video[:, :num_new][:, ::-1], context[:, :1])


def connected(lengths: Lengths, video: Clips, make: Make, num_new: int) -> Made:
    first, last = video[:, :9], video[:, 9 + num_new : 13 + num_new]
    made = connection(lengths, first, last, num_new, make, _quiet)
    share = (np.arange(num_new) + 1)[:, None, None, None] / (num_new + 1)
    blend = first[:, -1:] * (1 - share) + last[:, :1] * share
    return Made(made, video[:, 9 : 9 + num_new], first[:, -1:], np.rint(blend).astype(np.uint8))


def in_painted(lengths: Lengths, video: Clips, make: Make, num_new: int) -> Made:
    clips, hole = video[:, :num_new], np.zeros(video.shape[2:4], bool)
    hole[8:24, 8:24] = True
    outside = np.broadcast_to(~hole, (num_new, *hole.shape))
    made = painted(lengths, clips, outside, (1, 1, 1), make)
    return Made(made, clips, np.full_like(clips[:, :1], np.median(clips)), None, hole)


class Mode(NamedTuple):
    """A way of making a video, how many frames it makes, and the share of training that it is alone."""

    call: Callable[[Lengths, Clips, Make, int], Made]
    num_new: int
    single: str


MODES = {
    "extend 8": Mode(extended, 8, "first"),
    "extend 32": Mode(extended, 32, "first"),
    "before 8": Mode(extended_before, 8, "last"),
    "between 8": Mode(connected, 8, "ends"),
    "in-paint": Mode(in_painted, 21, "region"),
}


def _quiet(message: str) -> None:
    del message


def psnr(made: Clips, truth: Clips, where: Bool[np.ndarray, "H W"] | None) -> list[float]:
    """PSNR in dB of each frame, of the mean squared error over clips."""
    error = np.square(made.astype(float) - truth)
    error = error if where is None else error[:, :, where]
    return (10 * np.log10(255**2 / error.mean(axis=(0, *range(2, error.ndim))))).tolist()


def judged(opened: OpenRun, video: Clips, mode: Mode) -> dict[str, list[float]]:
    """PSNR by frame of what a run makes, beside copying the nearest known frame and a linear blend."""
    task = opened.experiment.task
    codec = task.trained_codec()
    assert codec is not None, "it learns latents"
    lengths = Lengths(codec.vae, opened.experiment.data.clips.num_frames)
    maker = Maker(opened, [Batch()], len(video), 0)

    def make(window: Window, num_frames: int, piece: int) -> Clips:
        return maker.rows((num_frames, *video.shape[2:4]), window, piece)

    made = mode.call(lengths, video, make, mode.num_new)
    copy = np.broadcast_to(made.copy, made.truth.shape)
    found = {"model": psnr(made.frames, made.truth, made.where), "copy": psnr(copy, made.truth, made.where)}
    return found if made.blend is None else found | {"blend": psnr(made.blend, made.truth, made.where)}


def held_out(opened: OpenRun, num_clips: int) -> Clips:
    """The first held-out clips, whole."""
    source = opened.experiment.data.source.open(Split.HELD_OUT)
    num_frames = int(source[0].num_frames or 0)
    cut = ClipTransform(num_frames=num_frames, size=opened.experiment.data.clips.size)
    clips = [cut.at(source[i], 0, np.random.default_rng(0)).video for i in range(num_clips)]
    return np.stack([clip for clip in clips if clip is not None])


def train(name: str, workdir: Path, steps: int) -> None:
    """Trains, or goes on with what was interrupted; at once where it is done."""
    command = [sys.executable, "-m", "dit_video", "train", f"--config={EXPERIMENT}:{name}", f"--workdir={workdir}"]
    subprocess.run([*command, f"--config.schedule.num_steps={steps}"], check=True)


def table(results: Mapping[tuple[str, str], Mapping[str, list[float]]]) -> str:
    """Rows of a Markdown table: mode, by what, PSNR at frames 1, 4, 16 and the mean."""
    rows = ["| mode | made by | frame 1 | frame 4 | frame 16 | mean |", "|---|---|---|---|---|---|"]
    for (mode, run), found in results.items():
        for by, values in found.items():
            if by != "model" and run != "all":
                continue
            name = {"model": "one model for all" if run == "all" else f"trained for {run} alone"}.get(by, by)
            cells = [f"{values[at - 1]:.1f}" if at <= len(values) else "" for at in AT]
            rows.append(f"| {mode} | {name} | {' | '.join(cells)} | {np.mean(values):.1f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--num_clips", type=int, default=32)
    parser.add_argument("--single", nargs="*", default=[], help="first, last, ends, region: models for that alone")
    arguments = parser.parse_args()
    kept = arguments.runs / "any_frames.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    results = {(line["mode"], line["run"]): line["psnr"] for line in lines}
    for run in ("all", *arguments.single):
        modes = {name: mode for name, mode in MODES.items() if run in ("all", mode.single)}
        if all((name, run) in results for name in modes):
            continue
        workdir = arguments.runs / f"any_{run}"
        train(run, workdir, arguments.steps)
        opened = open_run(workdir)
        video = held_out(opened, arguments.num_clips)
        for name, mode in modes.items():
            if (name, run) not in results:
                results[name, run] = judged(opened, video, mode)
                line = {"mode": name, "run": run, "steps": arguments.steps, "psnr": results[name, run]}
                with kept.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(dict(sorted(results.items()))))


if __name__ == "__main__":
    main()
