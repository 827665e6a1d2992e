"""`dit-video sample`: makes clips with a trained run and writes them as a grid."""

import argparse
import dataclasses
import itertools
import time

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dit_video.cli.arguments import parse_size
from dit_video.cli.picture import continuing
from dit_video.cli.usage.sample import SamplerName
from dit_video.cli.weights import open_weights
from dit_video.data.batch import Batch
from dit_video.data.text_tokens import prompt_pattern
from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Heun, Sampler
from dit_video.diffusion.unmasking import Confidence, EntropyBound, Order, RandomOrder, Spread, Threshold
from dit_video.progress import Terminal, shown
from dit_video.run.open_run import OpenRun, sampled_clip
from dit_video.run.prompts import rows, typed, with_negative
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, REFINE, ClipShape, Task

# Rows of pixels that a GIF can have; a video has fewer.
_MOST_ROWS = 65_535


SAMPLERS: dict[SamplerName, type[Sampler] | type[Order]] = {
    SamplerName.EULER: Euler,
    SamplerName.HEUN: Heun,
    SamplerName.DDIM: DDIM,
    SamplerName.ANCESTRAL: Ancestral,
    SamplerName.DPM_SOLVER: DPMSolver,
    SamplerName.UNIPC: UniPC,
    SamplerName.RANDOM: RandomOrder,
    SamplerName.SPREAD: Spread,
    SamplerName.CONFIDENCE: Confidence,
    SamplerName.THRESHOLD: Threshold,
    SamplerName.ENTROPY_BOUND: EntropyBound,
}
# Of --show: how long a pass stays on the console.
_SECONDS_A_PASS = 0.08


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
    opened, batches, shape = prompted(arguments, opened, console)
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
    # The same noise in every row of the grid: rows then differ by their label or text alone.
    subject, made = opened.subject(), []
    size = subject.batch_size(arguments.num_clips)
    keys = clip_keys(arguments.seed, range(size))
    for row in batches:
        batch = jax.tree.map(lambda x: np.repeat(x, size, axis=0), row)
        made.append(jax.tree.map(lambda x: x[: arguments.num_clips], subject(GENERATE, batch, keys, shape)))
    made = jax.tree.map(lambda *parts: np.concatenate(parts), *made)
    medium = function.medium.of_rows(made, arguments.num_clips, rates[0])
    if arguments.show:
        show_passes(opened.subject(), batches[0], shape, arguments.seed, console)
    for path in arguments.out:
        medium.write(path)
    for line in medium.lines():
        console.print(line)
    if arguments.npy is not None:
        np.save(arguments.npy, made)
    num_made, files = len(batches) * arguments.num_clips, " ".join(map(str, arguments.out))
    what = f"clips of {shape}" if issubclass(function.medium, Video) else "samples"
    console.print(f"{num_made} {what}: {files}")
    return 0


def show_passes(subject: Subject, row: Batch, shape: ClipShape, seed: int, console: Console) -> None:
    """Shows the first sample as it stood after every pass; in a file or pipe, one below the other.

    Raises:
        ValueError: the task refines nothing.
    """
    size = subject.batch_size(1)
    batch = jax.tree.map(lambda x: np.repeat(x, size, axis=0), row)
    passes = subject(REFINE, batch, clip_keys(seed, range(size)), shape)[0]
    medium = subject.show(REFINE, passes, 1, 1.0)
    assert medium is not None, "what is refined can be looked at"
    states = [state for state, _ in itertools.groupby(medium.lines())]
    with Live(console=console, auto_refresh=False) as live:
        for number, state in enumerate(states):
            text = Text(f"after {number} of {len(states) - 1} passes\n{shown(state)}")
            if console.is_terminal:
                live.update(text, refresh=True)
                time.sleep(_SECONDS_A_PASS)
            else:
                console.print(text)


def prompted(
    arguments: argparse.Namespace, opened: OpenRun, console: Console
) -> tuple[OpenRun, list[Batch], tuple[int, int, int]]:
    """The run as the options say that it is sampled, a batch of one for each row of the grid, and the clips' shape.

    Raises:
        ValueError: an option of which this run knows nothing, or a value that it refuses; names it.
    """
    task = opened.experiment.task
    sampler = None if arguments.sampler is None else SAMPLERS[SamplerName(arguments.sampler)]
    task = task.with_sampling(sampler, arguments.num_steps, arguments.guidance)
    opened = _with_task(opened, task)

    def warn(message: str) -> None:
        console.print(message)

    label = None if arguments.label is None else [arguments.label]
    begun = None if arguments.prompt is None else [prompt_pattern(text) for text in arguments.prompt]
    flags = {"--label": label, "--text": arguments.text, "--prompt": begun, "--infill": arguments.infill}
    prompts = typed(flags, arguments.cond)
    batches = rows(opened, prompts, warn)
    opened = with_negative(opened, arguments.negative_prompt, warn)
    shape = _shape(arguments, sampled_clip(opened.experiment)[0])
    task, batches = continuing(arguments.image, task, batches, shape[1:])
    return _with_task(opened, task), batches, shape


def _with_task(opened: OpenRun, task: Task) -> OpenRun:
    return dataclasses.replace(opened, experiment=dataclasses.replace(opened.experiment, task=task))


def _shape(arguments: argparse.Namespace, trained: tuple[int, int, int]) -> tuple[int, int, int]:
    size = trained[1:]
    if arguments.size is not None:
        size = parse_size("--size", arguments.size)
    return (arguments.num_frames or trained[0], *size)
