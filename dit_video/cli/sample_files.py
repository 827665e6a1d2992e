"""`dit-video sample --out_dir`: every clip in a file of its own, of one prompt or of a file of prompts, resumably.

A file is called PROMPT-NUMBER.mp4, as VBench (2311.17982) reads them, and holds its prompt, seed and number as JSON in
its comment; a clip of one frame is a PNG. What is there is not made again, and is the same whenever it is made: it is a
function of run, prompt, seed and number.
"""

import argparse
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from dit_video.config.atomic import write_file
from dit_video.data.batch import Batch
from dit_video.data.signals import CAPTION, LABEL, TEXT
from dit_video.distributed import processes
from dit_video.progress import counted
from dit_video.run.generate import generate
from dit_video.run.open_run import OpenRun
from dit_video.run.prompts import ALL
from dit_video.tasks.media import Video
from dit_video.tasks.task import GENERATE, ClipShape, Task
from dit_video.video.encode import encode_mp4

# Bytes of a name that file systems take, less what is added to it.
_LONGEST = 200
_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f\x7f]")
COMMENT = "comment"


def take_prompts(arguments: argparse.Namespace, task: Task) -> None:
    """Puts the lines of --prompts where the options of single prompts are, and the number of clips of each.

    Raises:
        ValueError: the file holds none, or the run follows neither text nor label.
    """
    if arguments.num_per_prompt is not None:
        arguments.num_clips = arguments.num_per_prompt
    if arguments.prompts is None:
        return
    if arguments.text or arguments.label or arguments.cond:
        raise ValueError(f"--prompts={arguments.prompts}: has all prompts; leave out --text, --label and --cond")
    lines = [line.strip() for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise ValueError(f"--prompts={arguments.prompts}: holds no prompt; write one to a line")
    if CAPTION in task.reads or TEXT in task.reads:
        arguments.text = prompts
    elif LABEL in task.reads:
        arguments.cond = [f"{LABEL}={','.join(prompts)}"]
    else:
        raise ValueError(f"--prompts={arguments.prompts}: this run follows neither text nor label; leave it out")


def write_clips(
    arguments: argparse.Namespace,
    opened: OpenRun,
    rows: Sequence[Batch],
    shape: ClipShape,
    fps: float,
    console: Console,
) -> int:
    """Writes `arguments.num_clips` clips of each row, those that are not there yet; returns the exit code.

    Raises:
        ValueError: the run makes no clips.
    """
    medium = opened.experiment.task.functions()[GENERATE].medium
    if medium is None or not issubclass(medium, Video):
        raise ValueError(f"--out_dir={arguments.out_dir}: this run makes no clips; use --out")
    suffix = ".png" if shape[0] == 1 else ".mp4"
    prompts, numbers = _prompts(arguments, opened, len(rows)), range(arguments.num_clips)
    wanted = [(row, prompt, i) for row, prompt in zip(rows, prompts) for i in numbers]
    path_of = lambda prompt, i: arguments.out_dir / f"{file_stem(prompt)}-{i}{suffix}"  # noqa: E731
    # All processes make the same clips, so one of them looks.
    there = processes.from_first(lambda: [path_of(prompt, i).is_file() for _, prompt, i in wanted])
    missing = [one for one, done in zip(wanted, there) if not done]
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    if missing:
        subject = opened.subject()
        made = generate(
            subject, [row for row, _, _ in missing], [i for *_, i in missing], seed=arguments.seed, shape=shape
        )
        about = {"run": opened.workdir.resolve().name, "step": opened.step, "ema": opened.ema}
        for clip, (_, prompt, i) in zip(counted(made, "sample", total=len(missing), console=console), missing):
            comment = json.dumps({"prompt": prompt, "seed": arguments.seed, "clip": i, **about})
            if processes.is_first():
                write_file(path_of(prompt, i), encoded(clip, fps, comment))
    kept = f", {len(wanted) - len(missing)} were there" if len(missing) < len(wanted) else ""
    console.print(f"{len(missing)} clips of {shape}: {arguments.out_dir}{kept}")
    return 0


def encoded(clip: UInt8[np.ndarray, "T H W 3"], fps: float, comment: str) -> bytes:
    """A clip as mp4, one of a single frame as PNG, with a comment in the file."""
    if len(clip) > 1:
        return encode_mp4(clip, fps, comment=comment)
    buffer, info = io.BytesIO(), PngInfo()
    info.add_itxt(COMMENT, comment)
    Image.fromarray(clip[0]).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def file_stem(prompt: str) -> str:
    """A prompt as the name of a file: itself, where it can be one; else what can, and a digest of the whole."""
    name = _NOT_IN_NAMES.sub("_", prompt).lstrip(".")
    short = name.encode()[:_LONGEST].decode(errors="ignore")
    return short if short == prompt else f"{short}~{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def _prompts(arguments: argparse.Namespace, opened: OpenRun, num_rows: int) -> list[str]:
    """What each row of clips is of, in words."""
    values = [word.partition("=")[2].split(",") for word in arguments.cond]
    typed: list[Any] = arguments.text or [value for row in values for value in row]
    if arguments.label is not None and arguments.label != ALL:
        typed = [arguments.label]
    elif arguments.label == ALL:
        typed = list(opened.experiment.data.source.info().class_names)
    if len(typed) == num_rows:
        return list(map(str, typed))
    return [f"clip {row}" if num_rows > 1 else "clip" for row in range(num_rows)]


def require_place(out: Sequence[Path] | None, out_dir: Path | None, num_per_prompt: int | None) -> None:
    """Raises ValueError unless the options say in one way where clips go."""
    if (out is None) == (out_dir is None):
        raise ValueError("--out, --out_dir: name files for a grid of the clips, or a folder for a file of each")
    if out is not None and processes.joined():
        raise ValueError(f"--out={out[0]}: several processes write a file of each clip; use --out_dir")
    if out_dir is None and num_per_prompt is not None:
        raise ValueError(f"--num_per_prompt={num_per_prompt}: is of --out_dir; in a grid it is --num_clips")
