"""dit-video sample"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from dit_video.cli.arguments import command, local_path, parse_size
from dit_video.cli.first_frame import continuing
from dit_video.cli.weights import add_weights, open_weights
from dit_video.data.batch import Batch
from dit_video.data.captions import encode_captions, room_for
from dit_video.data.record import NO_LABEL
from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Heun, Sampler
from dit_video.distributed.sharding import replicated
from dit_video.dit.condition import ClassCondition, Cond, EmbeddedText, TextCondition
from dit_video.dit.first_frame import FirstFrame
from dit_video.run import text as pretrained_text
from dit_video.run.open import OpenRun, sampled_clip
from dit_video.tasks.denoise import Denoise
from dit_video.tasks.keys import clip_keys
from dit_video.video.encode import grid, write_gif, write_mp4

EXAMPLES = """  dit-video sample --workdir=runs/quickstart_dit --label=3 --num_clips=8 --out=threes.mp4
  dit-video sample --workdir=runs/quickstart_dit --label=all --out=digits.gif
  dit-video sample --workdir=runs/grid_dit --label=two --seed=7 --out=two.mp4 --guidance=1
  dit-video sample --workdir=runs/grid_dit --out=any.mp4 --sampler=unipc --num_steps=20
  dit-video sample --workdir=runs/grid_dit --label=two --num_frames=33 --size=96,96 --out=long.mp4
  dit-video sample --workdir=runs/text_dit --text="a seven moving up" --text="an eight moving up" --out=up.mp4
  dit-video sample --workdir=runs/text_dit --text="a seven moving up" --negative_prompt="moving down" --out=up.mp4
  dit-video sample --workdir=runs/wan_i2v --image=seven.png --text="a seven moving up" --out=up.mp4

--sampler, --num_steps, --guidance and what they leave, --config.task.sampler... and --config.task.guidance..., change
how this run is sampled. Clip i depends on seed and i
alone, so the same seed with another label, text or guidance is the same noise seen differently."""


class Prompts(NamedTuple):
    """What clips are made from.

    Attributes:
        rows: of the grid; a batch of one for each.
        nothing: what guidance leads away from, for one clip; None leaves it as it was in training.
    """

    rows: list[Batch]
    null: Cond | None = None


_NAMES_SHOWN = 20
# Rows of pixels that a GIF can have; a video has fewer.
_MOST_ROWS = 65_535


SAMPLERS: dict[str, type[Sampler]] = {
    "euler": Euler,
    "heun": Heun,
    "ddim": DDIM,
    "ancestral": Ancestral,
    "dpm_solver": DPMSolver,
    "unipc": UniPC,
}


def add_parser(subparsers) -> None:
    parser = command(subparsers, "sample", "make clips with a trained run", EXAMPLES)
    add_weights(parser)
    parser.add_argument("--label", metavar="NAME", help='class by name or number, or "all": one row per class')
    parser.add_argument(
        "--text", action="append", metavar="TEXT", help="what is to be seen; repeated, one row per text"
    )
    parser.add_argument("--num_clips", type=int, default=8, help="clips, or clips per class or text (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", choices=SAMPLERS, help="way from noise to data (default: the run's)")
    parser.add_argument("--num_steps", type=int, help="steps of the sampler (default: the run's)")
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="how strongly label or text is followed; 1 is off"
    )
    parser.add_argument("--negative_prompt", metavar="TEXT", help="what guidance leads away from (default: no text)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the first frame, which the clips continue")
    parser.add_argument("--num_frames", type=int, help="length of a clip (default: as trained)")
    parser.add_argument("--size", metavar="H,W", help="height and width (default: as trained)")
    parser.add_argument(
        "--out",
        type=local_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".mp4 or .gif, or both: a grid of the clips",
    )
    parser.add_argument("--npy", type=local_path, metavar="FILE", help="also save the clips, uint8 [N T H W 3]")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    console = Console()
    for path in arguments.out:
        if path.suffix not in (".mp4", ".gif"):
            raise ValueError(f"--out={path}: must end in .mp4 or .gif")
    opened = open_weights(arguments, console)
    if not isinstance(opened.experiment.task, Denoise):
        raise ValueError(f"{arguments.workdir} trained a codec, which makes no clips; see dit-video evaluate")
    opened = sampled_by_prompts(arguments, opened)
    trained, fps = sampled_clip(opened.experiment)
    rows, null = prompts(arguments, opened, console)
    if null is not None:
        assert opened.frozen is not None, "a denoiser has a codec"
        placed = jax.device_put(null, replicated(opened.mesh))
        opened = dataclasses.replace(opened, frozen=opened.frozen._replace(null=placed))
    shape = _shape(arguments, trained)
    sampled = opened.experiment.task
    assert isinstance(sampled, Denoise), "overrides keep the class of a task"
    rows = continuing(arguments.image, sampled, rows, shape[1:])
    if len(rows) * shape[1] > _MOST_ROWS:
        raise ValueError(
            f"--label={arguments.label}: {len(rows)} rows of {shape[1]} pixels are more than the {_MOST_ROWS} that a "
            "picture has; name one class, or less with --size"
        )
    # The same noise in every row of the grid: rows then differ by their label or text alone.
    subject, video = opened.subject(), []
    size = subject.batch_size(arguments.num_clips)
    keys = clip_keys(arguments.seed, range(size))
    for row in rows:
        batch = jax.tree.map(lambda x: np.repeat(x, size, axis=0), row)
        video.append(subject.generate(batch, keys, shape)[: arguments.num_clips])
    video = np.concatenate(video)
    picture = grid(video, columns=arguments.num_clips)
    for path in arguments.out:
        path.parent.mkdir(parents=True, exist_ok=True)
        (write_gif if path.suffix == ".gif" else write_mp4)(path, picture, fps)
    if arguments.npy is not None:
        np.save(arguments.npy, video)
    console.print(f"{len(video)} clips of {shape}: {' '.join(map(str, arguments.out))}", highlight=False)
    return 0


def sampled_by_prompts(arguments: argparse.Namespace, opened: OpenRun) -> OpenRun:
    """The run with --sampler, --num_steps and --guidance for its own; another sampler keeps its steps and spacing.

    Raises:
        ValueError: --guidance for a run that is not conditioned, or a value that sampler or guidance refuse.
    """
    task = opened.experiment.task
    assert isinstance(task, Denoise), "main refuses any other"
    sampler, guidance = task.sampler, task.guidance
    num_steps = sampler.num_steps if arguments.num_steps is None else arguments.num_steps
    kind = type(sampler) if arguments.sampler is None else SAMPLERS[arguments.sampler]
    if arguments.guidance is not None:
        if task.condition is None:
            raise ValueError(f"--guidance={arguments.guidance}: this run follows no label and no text; leave it out")
        guidance = dataclasses.replace(guidance, scale=arguments.guidance)
    sampler = kind(num_steps=num_steps, spacing=sampler.spacing)
    task = dataclasses.replace(task, sampler=sampler, guidance=guidance)
    return dataclasses.replace(opened, experiment=dataclasses.replace(opened.experiment, task=task))


def prompts(arguments: argparse.Namespace, opened: OpenRun, console: Console) -> Prompts:
    """What the run is told with --label, --text and --negative_prompt.

    Raises:
        ValueError: one of them for a run that is not conditioned on such, no such class, guidance that is off, or a
            text of which there is no embedding.
    """
    task = opened.experiment.task
    assert isinstance(task, Denoise), "main refuses any other, and overrides keep the class of a task"
    condition, name, texts, negative = task.condition, arguments.label, arguments.text, arguments.negative_prompt
    condition = condition.text if isinstance(condition, FirstFrame) else condition
    if isinstance(condition, TextCondition | EmbeddedText):
        if name is not None:
            raise ValueError(f"--label={name}: this run is conditioned on text; say what is to be seen with --text")
        if negative is not None and task.guidance.scale == 1:
            raise ValueError(f"--negative_prompt={negative!r}: guidance is off; switch it on with --guidance=SCALE")
        if isinstance(condition, EmbeddedText):
            return _embedded(texts or [""], negative or "", opened)
        null = None if negative is None else jnp.asarray(_caption(negative, opened, console, "--negative_prompt"))
        return Prompts([Batch(caption=_caption(text, opened, console, "--text")) for text in texts or [""]], null)
    for flag, text in {"--text": texts and texts[0], "--negative_prompt": negative}.items():
        if text is not None:
            remedy = "leave it out" if condition is None else "name a class with --label"
            raise ValueError(f"{flag}={text!r}: this run is not conditioned on text; {remedy}")
    if name is None:
        labels = [NO_LABEL]
    elif isinstance(condition, ClassCondition):
        labels = _labels(name, condition, opened)
    else:
        raise ValueError(f"--label={name}: this run is not conditioned on a class; leave it out")
    return Prompts([Batch(label=np.array([label], np.int32)) for label in labels])


def _embedded(texts: list[str], negative: str, opened: OpenRun) -> Prompts:
    """The encoders, where they have to be opened, are so once, for all texts."""
    found = pretrained_text.embeddings_of(opened.experiment, [*texts, negative], opened.mesh)
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], found) for i in range(len(texts) + 1)]
    return Prompts([Batch(text=text) for text in rows[:-1]], rows[-1])


def _caption(text: str, opened: OpenRun, console: Console, flag: str) -> np.ndarray:
    num_bytes = opened.experiment.data.caption_bytes
    assert num_bytes is not None, "a run on text was trained with captions"
    if len(text.encode()) > room_for(num_bytes):
        message = f"{flag}={text!r} is cut: config.data.caption_bytes={num_bytes} leaves room for {room_for(num_bytes)}"
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    return encode_captions([text], num_bytes)


def _labels(name: str, condition: ClassCondition, opened: OpenRun) -> list[int]:
    """Class numbers that --label names."""
    if name == "all":
        return list(range(condition.num_classes))
    names = opened.experiment.data.source.info().class_names
    # Of several words for one class, which ImageNet has, any.
    numbers = {word.strip(): number for number, words in enumerate(names) for word in [words, *words.split(",")]}
    if name in numbers:
        return [numbers[name]]
    if name.isdigit() and int(name) < condition.num_classes:
        return [int(name)]
    known = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    raise ValueError(f"--label={name}: must be one of {known}, a number under {condition.num_classes}, all")


def _shape(arguments: argparse.Namespace, trained: tuple[int, int, int]) -> tuple[int, int, int]:
    size = trained[1:]
    if arguments.size is not None:
        size = parse_size("--size", arguments.size)
    return (arguments.num_frames or trained[0], *size)
