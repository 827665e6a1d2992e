"""`dit-video sample`: makes clips with a trained run and writes them as a grid."""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from rich.console import Console

from dit_video.cli.arguments import parse_size
from dit_video.cli.picture import continuing
from dit_video.cli.usage.sample import SamplerName
from dit_video.cli.video_modes import Maker, asked_of, pieces, task_for
from dit_video.cli.weights import open_weights
from dit_video.config.atomic import new_file, write_file
from dit_video.data.batch import Batch
from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Heun, Sampler
from dit_video.progress import Terminal
from dit_video.run.open_run import OpenRun, sampled_clip
from dit_video.run.prompts import rows, typed, with_negative
from dit_video.run.video_modes import Clips
from dit_video.tasks.media import Video
from dit_video.tasks.task import GENERATE, ClipShape, Task
from dit_video.video.encode import grid, stream_mp4

# Rows of pixels that a GIF can have; a video has fewer.
_MOST_ROWS = 65_535


SAMPLERS: dict[SamplerName, type[Sampler]] = {
    SamplerName.EULER: Euler,
    SamplerName.HEUN: Heun,
    SamplerName.DDIM: DDIM,
    SamplerName.ANCESTRAL: Ancestral,
    SamplerName.DPM_SOLVER: DPMSolver,
    SamplerName.UNIPC: UniPC,
}


def main(arguments: argparse.Namespace) -> int:
    console = Terminal()
    opened = open_weights(arguments, console)
    function = opened.experiment.task.functions().get(GENERATE)
    if function is None or function.medium is None:
        kind = type(opened.experiment.task).__name__
        raise ValueError(f"{arguments.workdir}: a run of {kind} generates nothing; see dit-video evaluate")
    for path in arguments.out:
        if path.suffix.lower() not in function.medium.suffixes:
            raise ValueError(f"--out={path}: must end in {' or '.join(function.medium.suffixes)}")
    asked = asked_of(arguments)
    opened, batches, shape = prompted(arguments, opened, console)
    trained = sampled_clip(opened.experiment)[0][0]
    task, longer = task_for(asked, opened.experiment.task, trained, shape[0], console)
    opened = _with_task(opened, task)
    rates = sampled_clip(opened.experiment)[1]
    if len(rates) > 1 and issubclass(function.medium, Video):
        console.print(
            f"the clips of this run have {min(rates):.4g} to {max(rates):.4g} frames a second; shown at {rates[0]:.4g}",
        )
    if issubclass(function.medium, Video) and len(batches) * shape[1] > _MOST_ROWS:
        raise ValueError(
            f"--label={arguments.label}: {len(batches)} rows of {shape[1]} pixels are more than the {_MOST_ROWS} that "
            "a picture has; name one class, or less with --size"
        )
    make = Maker(opened, batches, arguments.num_clips, arguments.seed)
    if asked.any or longer:
        parts = pieces(asked, opened, make, shape, console)
        if arguments.npy is None and all(path.suffix.lower() == ".mp4" for path in arguments.out):
            num_frames = _stream(arguments, parts, rates[0], console)
            return _said(arguments, make, f"clips of {(num_frames, *shape[1:])}", console)
        made = np.concatenate(list(parts), axis=1)
        shape = made.shape[1:4]
    else:
        made = make.rows(shape)
    medium = function.medium.of_rows(made, arguments.num_clips, rates[0])
    for path in arguments.out:
        medium.write(path)
    for line in medium.lines():
        console.print(line)
    if arguments.npy is not None:
        np.save(arguments.npy, made)
    return _said(arguments, make, f"clips of {shape}" if issubclass(function.medium, Video) else "samples", console)


def _said(arguments: argparse.Namespace, make: Maker, what: str, console: Console) -> int:
    console.print(f"{make.num_clips} {what}: {' '.join(map(str, arguments.out))}")
    return 0


def _stream(arguments: argparse.Namespace, parts: Iterable[Clips], fps: float, console: Console) -> int:
    """Writes the grid part by part, as they are made, to all of --out; returns its number of frames.

    The files are there whole or not at all.
    """

    def grids() -> Iterator[np.ndarray]:
        num_frames = 0
        for part in parts:
            num_frames += part.shape[1]
            yield grid(part, arguments.num_clips)
            console.print(f"{num_frames} frames", highlight=False)

    first, *others = arguments.out
    first.parent.mkdir(parents=True, exist_ok=True)
    with new_file(first) as temporary:
        num_frames = stream_mp4(temporary, grids(), fps)
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, first.read_bytes())
    return num_frames


def prompted(
    arguments: argparse.Namespace, opened: OpenRun, console: Console
) -> tuple[OpenRun, list[Batch], tuple[int, int, int]]:
    """The run as the options say that it is sampled, a batch of one for each row of the grid, and the clips' shape.

    Raises:
        ValueError: an option of which this run knows nothing, or a value that it refuses; names it.
    """
    task = opened.experiment.task
    sampler = None if arguments.sampler is None else SAMPLERS[SamplerName(arguments.sampler)]
    task = task.with_sampling(
        sampler,
        arguments.num_steps,
        arguments.guidance,
        history=arguments.history,
        steps_apart=arguments.steps_apart,
    )
    opened = _with_task(opened, task)

    def warn(message: str) -> None:
        console.print(message)

    label = None if arguments.label is None else [arguments.label]
    prompts = typed({"--label": label, "--text": arguments.text}, arguments.cond)
    batches = rows(opened, prompts, warn)
    opened = with_negative(opened, arguments.negative_prompt, warn)
    shape = _shape(arguments, sampled_clip(opened.experiment)[0])
    _check_size(opened, shape)
    task, batches = continuing(arguments.image, task, batches, shape[1:])
    return _with_task(opened, task), batches, shape


def _with_task(opened: OpenRun, task: Task) -> OpenRun:
    return dataclasses.replace(opened, experiment=dataclasses.replace(opened.experiment, task=task))


def _check_size(opened: OpenRun, shape: ClipShape) -> None:
    """Raises ValueError where clips of this shape are no whole latent cells, or these no whole patches."""
    task = opened.experiment.task
    codec = task.trained_codec()
    if codec is None:
        return
    try:
        cells = codec.vae.latent_shape(shape)
    except ValueError as error:
        raise ValueError(f"--num_frames, --size: {error}") from error
    if any(n % p for n, p in zip(cells, task.patch_size)):
        raise ValueError(
            f"--num_frames, --size: clips of {shape} are latents of {cells}, which do not divide into patches of "
            f"{task.patch_size}"
        )


def _shape(arguments: argparse.Namespace, trained: tuple[int, int, int]) -> tuple[int, int, int]:
    size = trained[1:]
    if arguments.size is not None:
        size = parse_size("--size", arguments.size)
    return (arguments.num_frames or trained[0], *size)
