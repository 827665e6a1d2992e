"""Condition inputs of an exported network: arrays by name, random examples, and their README text."""

import dataclasses
from typing import Any

import jax
import numpy as np

from dit_video.arrays import ImageCond, Text
from dit_video.data.captions import encode_captions
from dit_video.dit.condition import ClassCondition, Condition, EmbeddedText, TextCondition
from dit_video.dit.first_frame import FirstFrame

# Tokens of an image encoder: any number would do, and CLIP has these.
_NUM_IMAGE_TOKENS = 257


@dataclasses.dataclass(frozen=True)
class Input:
    """An input array of a program; the first axis of its shape is the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    meaning: str


def random_cond(
    condition: Condition | None, num_clips: int, latents: tuple[int, ...], caption_bytes: int | None
) -> Any:
    """Random condition, different for every clip; None where there is no condition.

    Args:
        latents: (t, h, w, c) of a clip.
        caption_bytes: of a network that reads captions.
    """
    rng = np.random.default_rng(1)
    if isinstance(condition, ClassCondition):
        return rng.integers(0, condition.num_classes, num_clips, np.int32, endpoint=True)
    if isinstance(condition, TextCondition):
        assert caption_bytes is not None, "a condition on captions comes with `caption_bytes`"
        return encode_captions(["video " * i for i in range(num_clips)], caption_bytes)
    if isinstance(condition, EmbeddedText):
        tokens = rng.standard_normal((num_clips, condition.num_tokens, condition.hidden_size), np.float32)
        num_tokens = rng.integers(1, condition.num_tokens, num_clips, np.int32, endpoint=True)
        return Text(tokens, num_tokens, rng.standard_normal((num_clips, condition.pooled_size), np.float32))
    if isinstance(condition, FirstFrame):
        text: Any = random_cond(condition.text, num_clips, latents, caption_bytes)
        cells = rng.standard_normal((num_clips, *latents[:3], condition.num_channels(latents[3])), np.float32)
        size = condition.image_size
        image = None if size is None else rng.standard_normal((num_clips, _NUM_IMAGE_TOKENS, size), np.float32)
        return ImageCond(text, cells, image)
    return None


def inputs_of(condition: Condition | None, latents: tuple[int, ...], caption_bytes: int | None) -> list[Input]:
    """Condition arrays in the order in which programs take them."""
    cond = random_cond(condition, 1, latents, caption_bytes)
    meanings = _meanings(condition, caption_bytes)
    leaves = jax.tree.leaves(cond)
    return [Input(name, x.shape, x.dtype, meanings[name]) for name, x in zip(meanings, leaves, strict=True)]


def _meanings(condition: Condition | None, caption_bytes: int | None) -> dict[str, str]:
    """Meaning of each array by name, in the order of the leaves."""
    if isinstance(condition, ClassCondition):
        return {"label": f"0 to {condition.num_classes - 1}, and {condition.num_classes} for none"}
    if isinstance(condition, TextCondition):
        return {
            "caption": "255, UTF-8, then zeros; 255 and zeros alone for no text. "
            f"`dit_video.data.captions.encode_captions([text], {caption_bytes})` makes it"
        }
    if isinstance(condition, EmbeddedText):
        return {
            "tokens": "what the text encoders make of a caption, and of an empty one for no text",
            "num_tokens": "how many of them mean something",
            "pooled": "the vector for the whole caption",
        }
    if isinstance(condition, FirstFrame):
        image = {} if condition.image_size is None else {"image": "tokens of the image encoder"}
        cells = {"cells": "a mask, 1 where frames are known, then latents that have the first frame in them"}
        return _meanings(condition.text, caption_bytes) | cells | image
    return {}
