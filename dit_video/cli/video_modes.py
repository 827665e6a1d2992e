"""Ways of making a video with `dit-video sample`: from a typed video, or longer than those of training."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from dit_video.data.batch import Batch
from dit_video.run.open_run import OpenRun, sampled_clip, unstyled
from dit_video.run.typed_video import Frames, read_at, read_mask
from dit_video.run.video_modes import (
    NOTHING,
    Asked,
    Clips,
    Lengths,
    Window,
    connection,
    extension,
    extension_before,
    from_nothing,
    painted,
    pattern_of,
)
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.known_frames import Pattern
from dit_video.tasks.task import EDIT, GENERATE, ClipShape, Task


def asked_of(arguments: argparse.Namespace) -> Asked:
    """What was typed, checked against itself."""
    asked = Asked(*(getattr(arguments, name) for name in Asked._fields))
    asked.check()
    if asked.any and arguments.image is not None:
        raise ValueError(f"--image={arguments.image}: a clip begins with a picture or is made of a video; type one")
    return asked


def task_for(asked: Asked, task: Task, trained: int, num_frames: int, console: Console) -> tuple[Task, bool]:
    """The task as it makes what is asked, and whether it makes more frames than it was trained on, by extension.

    Raises:
        ValueError: it was not trained for that; names the option and the share that is missing.
    """
    long = not asked.any and num_frames > trained
    pattern = pattern_of(asked)
    try:
        if asked.strength is not None:
            return task.with_strength(asked.strength), False
        made, warning = (task, None) if pattern is None else task.with_known(pattern)
    except ValueError as error:
        raise ValueError(f"{asked.words}: {error}") from error
    if pattern is not None:
        if warning is not None:
            unstyled(console)(warning)
        return made, False
    if long:
        try:
            made, warning = task.with_known(Pattern.FIRST)
        except ValueError:
            return task, False
        return (made, True) if warning is None else (task, False)
    return task, False


class Maker:
    """Makes the clips of windows for every row of a grid, with other noise in every window."""

    def __init__(self, opened: OpenRun, rows: Sequence[Batch], num_clips: int, seed: int):
        self._subject, self._rows, self._num_clips, self._seed = opened.subject(), rows, num_clips, seed
        self._size = self._subject.batch_size(num_clips)

    @property
    def num_clips(self) -> int:
        """Of the whole grid."""
        return len(self._rows) * self._num_clips

    def rows(self, shape: ClipShape, window: Window = NOTHING, piece: int = 0, name: str = GENERATE) -> Any:
        """What the function `name` makes for all rows of the grid, one after the other."""
        # The same noise in every row of the grid: rows then differ by their label or text alone.
        keys = clip_keys(self._seed, range(self._size), "sample" if piece == 0 else f"sample {piece}")
        made = []
        for number, row in enumerate(self._rows):
            batch = jax.tree.map(lambda x: np.repeat(x, self._size, axis=0), row)
            if window.video is not None:
                own = window.video[number * self._num_clips : (number + 1) * self._num_clips]
                batch = batch._replace(video=_filled(own, self._size))
            if window.known is not None:
                batch = batch._replace(known=window.known[None].repeat(self._size, axis=0))
            made.append(jax.tree.map(lambda x: x[: self._num_clips], self._subject(name, batch, keys, shape)))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *made)


def _filled(clips: Clips, size: int) -> Clips:
    """Clips followed by copies of the last, as many as a batch has."""
    return np.concatenate([clips, clips[-1:].repeat(size - len(clips), axis=0)])


def pieces(asked: Asked, opened: OpenRun, maker: Maker, shape: ClipShape, console: Console) -> Iterator[Clips]:
    """The video of every clip of the grid, in parts, the first first.

    Raises:
        ValueError: a video, a mask or a number that cannot be; names both numbers.
    """
    trained, rates = sampled_clip(opened.experiment)
    size = shape[1], shape[2]
    codec = opened.experiment.task.trained_codec()
    if codec is None:
        raise ValueError("this run makes no videos from latents, so that no part of one can be known")
    lengths, say = Lengths(codec.vae, trained[0]), unstyled(console)

    def make(window: Window, num_frames: int, piece: int) -> Clips:
        return maker.rows((num_frames, *size), window, piece)

    def read(option: str, path: Path) -> tuple[Frames, tuple[int, int]]:
        return read_at(option, path, rates[0], size, say)

    def shared(video: Frames) -> Clips:
        return np.broadcast_to(video, (maker.num_clips, *video.shape))

    if asked.video is None:
        if asked.loop:
            clips = make(NOTHING, trained[0], 0)
            return iter([clips, connection(lengths, clips, clips, _loop(lengths), make, say, option="--loop", piece=1)])
        return from_nothing(lengths, shape[0], make, say)
    video, own_size = read("--video", asked.video)
    if asked.extend is not None and asked.extend > 0:
        return _then(shared(video), extension(lengths, shared(video), asked.extend, make, say))
    if asked.extend is not None:
        return iter([extension_before(lengths, shared(video), -asked.extend, make, say), shared(video)])
    if asked.to is not None and asked.between is not None:
        last = shared(read("--to", asked.to)[0])
        return iter([shared(video), connection(lengths, shared(video), last, asked.between, make, say), last])
    if asked.loop:
        clips = shared(video)
        return iter([clips, connection(lengths, clips, clips, _loop(lengths), make, say, option="--loop")])
    length = lengths.whole(min(len(video), trained[0]))
    if length < len(video):
        say(f"--video={asked.video}: the first {length} of {len(video)} frames are taken, those of one clip of the run")
    clips = shared(video[:length])
    if asked.mask is not None:
        inside = read_mask(asked.mask, rates[0], length, own_size, size)
        return iter([painted(lengths, clips, ~inside, opened.experiment.task.patch_size, make)])
    return iter([maker.rows((length, *size), Window(clips, None), name=EDIT)])


def _then(first: Clips, rest: Iterator[Clips]) -> Iterator[Clips]:
    yield first
    yield from rest


def _loop(lengths: Lengths) -> int:
    """Frames between the end of a clip and its beginning: half of a window."""
    return lengths.group * max(lengths.most // 2, 1)
