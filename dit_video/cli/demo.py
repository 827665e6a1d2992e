"""`dit-video demo`: data, both trainings, FVD, samples and export on embedded data, one after the other."""

import argparse
import dataclasses
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dit_video.cli.arguments import named
from dit_video.cli.report import write_report
from dit_video.cli.usage import evaluate, export, sample
from dit_video.config.user_file import ExperimentError
from dit_video.data.sources import MovingDigits
from dit_video.experiment import Experiment
from dit_video.progress import Terminal
from dit_video.run.latents import encode
from dit_video.run.train import train

EXPERIMENT = "experiments/quickstart.py"
NUM_CLIPS = 32
NUM_FRAMES = 9
# Subfolders of --workdir.
DIGITS, LATENTS, VAE = "moving_digits", "latents", "vae"
REPORT = "report.html"


def main(arguments: argparse.Namespace) -> int:
    console, folder = Terminal(), arguments.workdir
    console.print(f"everything goes to {folder}/\n")
    vae, dit = (_within(named(f"{EXPERIMENT}:{name}"), folder) for name in ("vae", "dit"))
    seconds: dict[str, float] = {}

    def station(title: str) -> None:
        seconds[title] = time.perf_counter()
        console.print(f"\n{len(seconds)} {title}", style="bold green")

    station("data: moving handwritten digits")
    info = vae.data.source.info()
    counts = ", ".join(f"{count} {split}" for split, count in info.num_records.items())
    console.print(f"{counts} videos in {folder / DIGITS}")

    station("train the video VAE")
    outcome = train(vae, folder / VAE, console=console)
    if not outcome.finished:
        return _stopped(console)

    station("encode latents")
    if not (folder / LATENTS).exists():
        encode(dit, clips_per_video=1, overwrite=False, console=console)

    station("train the DiT on latents")
    outcome = train(dit, folder / "dit", console=console)
    if not outcome.finished:
        return _stopped(console)

    station("FVD against held-out clips")
    _command(evaluate, f"run --workdir={folder}/dit --num_clips={NUM_CLIPS} --num_frames={NUM_FRAMES}")

    station("samples")
    outputs = f"{folder}/samples.mp4 {folder}/samples.gif"
    _command(sample, f"--workdir={folder}/dit --label=all --num_clips=6 --out {outputs}")

    station("export")
    if not (folder / "exported").exists():
        _command(export, f"--workdir={folder}/dit --out={folder}/exported")

    station("report")
    write_report([folder / VAE, folder / "dit"], folder / REPORT, title="dit-video demo")

    seconds["end"] = time.perf_counter()
    _summary(console, folder, outcome.step, seconds)
    return 0


def _within(experiment: Experiment, folder: Path) -> Experiment:
    """The same experiment with its data, cache and codec under `folder`."""
    data, task = experiment.data, experiment.task
    if not isinstance(data.source, MovingDigits):
        raise ExperimentError(f"{EXPERIMENT}: data.source={data.source}: the demo is made for MovingDigits")
    data = dataclasses.replace(data, source=dataclasses.replace(data.source, directory=str(folder / DIGITS)))
    if data.cache is not None:
        data = dataclasses.replace(data, cache=dataclasses.replace(data.cache, directory=str(folder / LATENTS)))
    if (codec := task.trained_codec()) is not None:
        task = task.with_codec(dataclasses.replace(codec, run=str(folder / VAE)))
    return dataclasses.replace(experiment, data=data, task=task)


def _command(module, words: str) -> None:
    """Runs another command of this program as its own command line would."""
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers())
    name = module.__name__.rpartition(".")[2]
    arguments = parser.parse_args([name, *words.split()])
    arguments.overrides = []
    arguments.run(arguments)


def _stopped(console: Console) -> int:
    console.print("stopped and saved; the same command goes on from there")
    return 3


def _summary(console: Console, folder: Path, step: int, seconds: dict[str, float]) -> None:
    times = Table("station", "seconds", title="time")
    names, marks = list(seconds), list(seconds.values())
    for name, begin, end in zip(names, marks, marks[1:]):
        times.add_row(name, f"{end - begin:.0f}")
    times.add_row("all", f"{marks[-1] - marks[0]:.0f}")
    console.print(times)
    files = Table("look at", "what it is", title="files")
    stem = folder / "dit" / "evaluation" / f"step_{step:07d}_ema"
    for path, meaning in (
        (folder / REPORT, "all of it on one page: open it in a browser"),
        (folder / "samples.gif", "samples, one row per digit 0 to 9 (also samples.mp4)"),
        (f"{stem}_samples.gif", "held-out clips above, samples of the same label below"),
        (f"{stem}_nearest.gif", "samples that lie nearest to training clips, above those clips"),
        (f"{stem}_fvd_n{NUM_CLIPS}.json", "the FVD card: a smoke value at this number of clips"),
        (folder / VAE / "samples", "reconstructions: held-out clips above, their reconstructions below"),
        (folder / VAE / "curves.png", "curves of the VAE"),
        (folder / "dit" / "curves.png", "curves of the DiT"),
        (folder / "exported", "weights as safetensors, denoiser and decoder as StableHLO"),
    ):
        files.add_row(str(path), meaning)
    console.print(files)
    console.print(f"curves in TensorBoard: tensorboard --logdir={folder}")
