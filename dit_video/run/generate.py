"""Clips of a run, each with a prompt and a number of its own, made in batches that its devices split evenly."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dit_video.data.batch import Batch
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, ClipShape

BATCH_SIZE = 8


def generate(
    subject: Subject, rows: Sequence[Batch], clips: Sequence[int], *, seed: int, shape: ClipShape
) -> Iterator[Any]:
    """What "generate" makes of each row, on the host; it depends on seed, row and number, and not on the others.

    Args:
        rows: batches of one.
        clips: the number of the clip that each row makes.
        shape: (T, H, W) of a clip.
    """
    size = subject.batch_size(min(BATCH_SIZE, len(rows)))
    for begin in range(0, len(rows), size):
        part, numbers = list(rows[begin : begin + size]), list(clips[begin : begin + size])
        rest = size - len(part)
        batch = jax.tree.map(lambda *x: np.concatenate(x), *part, *part[-1:] * rest)
        made = subject(GENERATE, batch, clip_keys(seed, numbers + numbers[-1:] * rest), shape)
        for i in range(len(part)):
            yield jax.tree.map(lambda x, i=i: x[i], made)
