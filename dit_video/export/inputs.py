"""Condition inputs of an exported network: arrays by name, random examples, and their README text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dit_video.arrays import ImageCond
from dit_video.tasks.latent_diffusion import Denoise

# Tokens of an image encoder: any number would do, and CLIP has these.
_NUM_IMAGE_TOKENS = 257


@dataclasses.dataclass(frozen=True)
class Input:
    """An array of what a network is conditioned on, as a program takes it; the first axis of its shape is the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str


def random_cond(task: Denoise, num_clips: int, latents: tuple[int, ...], signals: Mapping[str, Any]) -> Any:
    """What each of `num_clips` clips is conditioned on, each on another; None where there is no condition.

    Args:
        latents: (t, h, w, c) of a clip.
        signals: of one clip, in the shapes of training.
    """
    if task.condition is None:
        return None
    rng = np.random.default_rng(1)
    rows = jax.tree.map(lambda x: np.repeat(x, num_clips, axis=0), dict(signals))
    examples = task.condition.example(rows, num_clips)
    cond = jax.tree.map(np.asarray, task.condition.read(task.condition.random(rng, examples)))
    channels = None if task.known is None else task.known.channels
    if channels is None:
        return cond
    cells = rng.standard_normal((num_clips, *latents[:3], channels.num_channels(latents[3])), np.float32)
    size = channels.image_size
    image = None if size is None else rng.standard_normal((num_clips, _NUM_IMAGE_TOKENS, size), np.float32)
    return ImageCond(cond, cells, image)


def inputs_of(task: Denoise, latents: tuple[int, ...], signals: Mapping[str, Any]) -> list[Input]:
    """The arrays of what a network is conditioned on, in the order in which programs take them."""
    leaves = jax.tree.leaves(random_cond(task, 1, latents, signals))
    meanings = {} if task.condition is None else dict(task.condition.inputs())
    if task.known is not None and task.known.channels is not None:
        meanings |= task.known.channels.inputs()
    return [Input(name, x.shape, x.dtype.name, meanings[name]) for name, x in zip(meanings, leaves, strict=True)]
