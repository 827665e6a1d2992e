"""Conditions of a denoiser: class labels and captions, and dropping them for classifier-free guidance.

A condition reads signals of a batch (data/signals.py) and builds the modules by which a network takes them in. One of
your own is a frozen dataclass derived from `Condition` in the experiment's file.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key

from dit_video.arrays import Captions, Labels, Text
from dit_video.config.bounds import at_least, share
from dit_video.data.batch import require_signal
from dit_video.data.captions import encode_captions
from dit_video.data.inventory import Inventory, lacking
from dit_video.data.signals import CAPTION, LABEL, TEXT
from dit_video.dit.text_encoder import TextEncoder
from dit_video.nn.embed import LabelEmbedding

_CAPTIONS_REMEDY = "make the set with captions (dit-video data ingest --caption), or set config.task.condition to None"

# Values of a condition for the clips of a batch, as its `read` makes them: a pytree of arrays [B ...].
Cond = Any
Signals = Mapping[str, Any]


def required(cond: Cond | None) -> Any:
    """`cond`, checked to be there, for a conditioned network.

    Raises:
        ValueError: there is none.
    """
    if cond is None:
        raise ValueError("this network is conditioned: pass `cond`, which `read` of its condition makes of a batch")
    return cond


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """Condition of a network: which signal it reads, its null value, and the modules that embed it.

    While training, it is dropped (replaced by the null condition) with probability `drop_rate`, so that the same
    network also learns the unconditional distribution that classifier-free guidance needs (2207.12598, algorithm 1).

    Attributes:
        drop_rate: probability of dropping, in [0, 1).
    """

    drop_rate: float = 0.1

    def __post_init__(self):
        share(self, "drop_rate")

    @property
    @abc.abstractmethod
    def reads(self) -> str:
        """Name of the signal that it reads."""

    @abc.abstractmethod
    def read(self, signals: Signals) -> Cond:
        """Values of the condition, from the signals of a batch.

        Raises:
            ValueError: the batch lacks the signal, or has it in another shape.
        """

    @abc.abstractmethod
    def empty(self, cond: Any) -> Any:
        """Null condition ("no label", "no text") of the shape of `cond`, where it can be made without weights.

        Raises:
            ValueError: it cannot, and is loaded with the frozen parts.
        """

    def null(self, cond: Any, loaded: Cond | None = None) -> Any:
        """Null condition, for every clip or for one: the loaded one, else that of `empty`."""
        return self.empty(cond) if loaded is None else loaded

    def drop(self, rng: Key[Array, ""], cond: Cond, null: Cond) -> Cond:
        """Condition dropping: replaces that of each clip by the null condition, with probability `drop_rate`."""
        num_clips = jax.tree.leaves(cond)[0].shape[0]
        dropped = jax.random.bernoulli(rng, self.drop_rate, (num_clips,))
        return jax.tree.map(lambda a, b: jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), b, a), cond, null)

    # For export, planning and checks, where there are no data: shapes, random values, descriptions.

    def blank_null(self) -> Cond | None:
        """Zeros of the shape of a null condition that is loaded, for one clip; None where `empty` makes it."""
        return None

    def example(self, signals: Signals, batch_size: int) -> Signals:
        """`signals` with zeros for the one that is read, where the data do not say its shape."""
        del batch_size
        return signals

    def random(self, rng: np.random.Generator, signals: Signals) -> Signals:
        """`signals` with random values for the one that is read, another for every clip; on the host."""
        shape = np.shape(signals[self.reads])
        return {**signals, self.reads: rng.standard_normal(shape, np.float32)}

    @abc.abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """Descriptions of the arrays of `read` by name, in the order of its leaves."""

    def check(self, signals: Signals) -> None:
        """Raises ValueError where signals, as host arrays, have values out of range; by default none are."""
        del signals

    def check_data(self, inventory: Inventory) -> list[str]:
        """Warnings of what training clips lack as this condition; by default none.

        Raises:
            ValueError: they do not fit it; names both numbers and what to change.
        """
        del inventory
        return []

    # Modules by which a network takes it in: one vector, tokens of text, or both.

    @property
    def num_text_tokens(self) -> int | None:
        """Number of text tokens of every caption, where the condition fixes it."""
        return None

    @property
    def by_frame(self) -> bool:
        """Whether it has a value for each latent frame, `cond` [B t ...], such as what was done there."""
        return False

    def check_frames(self, frames_per_latent: int) -> None:  # noqa: B027 (most are of whole clips)
        """Raises ValueError where it does not fit a codec that puts so many frames into a latent frame."""

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> Any:
        """Module that embeds it as one vector [B D], or one for each latent frame [B t D], which modulates the blocks
        beside the noise level; or None.
        """
        del hidden_size, rngs
        return None

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "TextEncoder | IdentityTextEncoder | None":
        """Module that encodes it as tokens, which the blocks attend to, and one vector for all of them, or None."""
        del dtype, rngs
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCondition(Condition):
    """Condition on a class label, 0 to `num_classes` - 1; `num_classes` itself stands for "no label"."""

    num_classes: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_classes")

    @property
    def reads(self) -> str:
        return LABEL

    def read(self, signals: Signals) -> Labels:
        """Labels as the network takes them: a clip without one (-1) becomes "no label".

        One that is no class is beyond the table, also where it would be the row of no label.
        """
        label = jnp.asarray(require_signal(signals, LABEL))
        # The row after the classes is that of no label, and the one after that is not in the table.
        beyond = jnp.where(label < self.num_classes, label, self.num_classes + 1)
        return jnp.where(label < 0, self.num_classes, beyond)

    def empty(self, cond: Labels) -> Labels:
        return jnp.full_like(cond, self.num_classes)

    def random(self, rng: np.random.Generator, signals: Signals) -> Signals:
        labels = rng.integers(0, self.num_classes, np.shape(signals[LABEL]), np.int32)
        return {**signals, LABEL: labels}

    def inputs(self) -> Mapping[str, str]:
        return {"label": f"0 to {self.num_classes - 1}, and {self.num_classes} for none"}

    def check(self, signals: Signals) -> None:
        label: Int[np.ndarray, "B"] = np.asarray(require_signal(signals, LABEL))
        if label.size and label.max() >= self.num_classes:
            raise ValueError(f"label {label.max()}: must be a number under num_classes={self.num_classes}")

    def check_data(self, inventory: Inventory) -> list[str]:
        # A label beyond the table is NaN, which would end the run at the first batch that has one, without saying why.
        if len(inventory.class_names) > self.num_classes:
            number = len(inventory.class_names)
            raise ValueError(
                f"ClassCondition.num_classes={self.num_classes}: the data have {number} classes "
                f"({', '.join(inventory.class_names[:3])}{', ...' if number > 3 else ''}); set "
                f"config.task.condition.num_classes={number}"
            )
        remedy = "make the set with classes (dit-video data ingest), or set config.task.condition to None"
        return lacking(inventory.labelled, "class", f"ClassCondition: {remedy}")

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> LabelEmbedding:
        return LabelEmbedding(self.num_classes, hidden_size, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCondition(Condition):
    """Condition on a caption, encoded byte by byte by a small trained transformer; an empty one stands for "no text".

    The length in bytes is that of the signal (`CaptionBytes.num_bytes`): the weights are the same for any.

    Attributes:
        hidden_size, depth, num_heads: of the encoder of captions.
    """

    hidden_size: int
    depth: int
    num_heads: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "depth")
        if self.num_heads < 1 or self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"TextCondition.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head "
                "size"
            )

    @property
    def reads(self) -> str:
        return CAPTION

    def read(self, signals: Signals) -> Captions:
        """Captions as they are."""
        return jnp.asarray(require_signal(signals, CAPTION))

    def empty(self, cond: Captions) -> Captions:
        # The token that begins a caption, then padding.
        return cond.at[:, 1:].set(0)

    def random(self, rng: np.random.Generator, signals: Signals) -> Signals:
        """Captions of random lengths, since padding must not matter."""
        num_clips, num_bytes = signals[CAPTION].shape
        texts = ["a" * rng.integers(num_bytes) for _ in range(num_clips)]
        return {**signals, CAPTION: encode_captions(texts, num_bytes)}

    def inputs(self) -> Mapping[str, str]:
        return {
            "caption": "255, UTF-8, then zeros; 255 and zeros alone for no text. "
            "`dit_video.data.captions.encode_captions([text], L)` makes it, L its second axis"
        }

    def check_data(self, inventory: Inventory) -> list[str]:
        return lacking(inventory.captioned, "caption", f"TextCondition: {_CAPTIONS_REMEDY}")

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> TextEncoder:
        return TextEncoder(self.hidden_size, self.depth, self.num_heads, dtype=dtype, rngs=rngs)


class IdentityTextEncoder(nnx.Module):
    """Text encoder of captions that have been encoded already: the identity."""

    def __init__(self, hidden_size: int, pooled_size: int, *, dtype: DTypeLike):
        self.hidden_size, self.pooled_size, self.dtype = hidden_size, pooled_size, dtype

    def __call__(self, cond: Text) -> Text:
        return Text(cond.tokens.astype(self.dtype), cond.num_tokens, cond.pooled.astype(self.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedText(Condition):
    """Condition on captions that a frozen text encoder has embedded before training: the signal "text".

    The null condition is what that encoder makes of an empty caption.

    Attributes:
        hidden_size: E, the width of a token.
        pooled_size: P, the width of the vector for a whole caption.
        num_tokens: L, the tokens of a caption, which shorter ones are padded to.
    """

    hidden_size: int
    pooled_size: int
    num_tokens: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "hidden_size", "pooled_size", "num_tokens")

    @property
    def reads(self) -> str:
        return TEXT

    @property
    def num_text_tokens(self) -> int:
        return self.num_tokens

    def read(self, signals: Signals) -> Text:
        """Embeddings as they are."""
        text: Text = require_signal(signals, TEXT)
        actual = (*text.tokens.shape[1:], text.pooled.shape[1])
        expected = (self.num_tokens, self.hidden_size, self.pooled_size)
        if actual != expected:
            raise ValueError(
                f"Batch.signals[{TEXT!r}]: (tokens, width, pooled width) = {actual}, config.task.condition says "
                f"{expected}; change num_tokens, hidden_size and pooled_size there, or the cache"
            )
        return jax.tree.map(jnp.asarray, text)

    def check_data(self, inventory: Inventory) -> list[str]:
        return lacking(inventory.captioned, "caption", f"EmbeddedText: {_CAPTIONS_REMEDY}")

    def empty(self, cond: Text) -> Text:
        raise ValueError(
            "EmbeddedText: what stands for no text is the encoder's embedding of an empty caption and has to be loaded"
        )

    def blank_null(self) -> Text:
        tokens = jnp.zeros((1, self.num_tokens, self.hidden_size))
        return Text(tokens, jnp.ones((1,), jnp.int32), jnp.zeros((1, self.pooled_size)))

    def example(self, signals: Signals, batch_size: int) -> Signals:
        return {**signals, TEXT: jax.tree.map(lambda x: jnp.repeat(x, batch_size, axis=0), self.blank_null())}

    def random(self, rng: np.random.Generator, signals: Signals) -> Signals:
        num_clips = len(signals[TEXT].num_tokens)
        tokens = rng.standard_normal((num_clips, self.num_tokens, self.hidden_size), np.float32)
        num_tokens = rng.integers(1, self.num_tokens, num_clips, np.int32, endpoint=True)
        return {
            **signals,
            TEXT: Text(tokens, num_tokens, rng.standard_normal((num_clips, self.pooled_size), np.float32)),
        }

    def inputs(self) -> Mapping[str, str]:
        return {
            "tokens": "what the text encoders make of a caption, and of an empty one for no text",
            "num_tokens": "how many of them mean something",
            "pooled": "the vector for the whole caption",
        }

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> IdentityTextEncoder:
        del rngs
        return IdentityTextEncoder(self.hidden_size, self.pooled_size, dtype=dtype)
