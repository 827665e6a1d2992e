"""Conditions: what a video is made from, its class or its caption, and dropping it for classifier-free guidance.

A condition reads signals of a batch (data/signals.py) and says how a network takes them in. One of your own is a
frozen dataclass of this type in the experiment's file.
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
from dit_video.data.signals import CAPTION, LABEL, TEXT
from dit_video.dit.text_encoder import TextEncoder
from dit_video.nn.embed import LabelEmbedding

# What a network is conditioned on, in the form in which its condition makes it: a pytree of arrays [B ...].
Cond = Any
Signals = Mapping[str, Any]


def required(cond: Cond | None) -> Any:
    """`cond`, for a network that cannot do without.

    Raises:
        ValueError: there is none.
    """
    if cond is None:
        raise ValueError("this network is conditioned: pass `cond`, which `read` of its condition makes of a batch")
    return cond


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """What a network is conditioned on.

    While training, it is dropped (replaced by the null condition) with probability `drop_rate`, so that the same
    network also learns the unconditional distribution that classifier-free guidance needs (2207.12598, algorithm 1).
    """

    drop_rate: float = 0.1

    def __post_init__(self):
        share(self, "drop_rate")

    @property
    @abc.abstractmethod
    def reads(self) -> str:
        """The name of the signal that it reads."""

    @abc.abstractmethod
    def read(self, signals: Signals) -> Cond:
        """What a network is conditioned on, of the signals of a batch.

        Raises:
            ValueError: the batch lacks the signal, or has it in another shape.
        """

    @abc.abstractmethod
    def empty(self, cond: Any) -> Any:
        """The null condition for every clip, where this condition can make it.

        Raises:
            ValueError: it is loaded with the parts that are frozen, not made.
        """

    def null(self, cond: Any, loaded: Cond | None = None) -> Any:
        """The null condition, for every clip or for one: what was loaded, else what `empty` makes."""
        return self.empty(cond) if loaded is None else loaded

    def drop(self, rng: Key[Array, ""], cond: Cond, null: Cond) -> Cond:
        """Replaces what each clip is conditioned on by the null condition, with probability `drop_rate`."""
        num_clips = jax.tree.leaves(cond)[0].shape[0]
        dropped = jax.random.bernoulli(rng, self.drop_rate, (num_clips,))
        return jax.tree.map(lambda a, b: jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), b, a), cond, null)

    # Where there are no data: shapes, random values, and words for those who call an exported network.

    def blank_null(self) -> Cond | None:
        """Of a condition whose null is loaded: zeros of its shape for one clip. None where `empty` makes it."""
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
        """By name, what each array of `read` means, in the order of its leaves."""

    def check(self, signals: Signals) -> None:
        """Raises ValueError where host arrays hold values that it cannot be conditioned on; by default none do."""
        del signals

    # How a network takes it in, by one or both of two ways:

    @property
    def num_text_tokens(self) -> int | None:
        """Tokens of every caption, where the condition fixes their number."""
        return None

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> Any:
        """The module that makes one vector of it, which modulates the blocks beside the noise level, or None."""
        del hidden_size, rngs
        return None

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "TextEncoder | TextAsItIs | None":
        """The module that makes tokens of it, which the blocks attend to, and one vector for all of them, or None."""
        del dtype, rngs
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCondition(Condition):
    """Condition on one of `num_classes` labels; `num_classes` itself stands for "no label"."""

    num_classes: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_classes")

    @property
    def reads(self) -> str:
        return LABEL

    def read(self, signals: Signals) -> Labels:
        """Labels as the network takes them: a clip without one (-1) becomes "no label"."""
        label = require_signal(signals, LABEL)
        return jnp.where(jnp.asarray(label) < 0, self.num_classes, label)

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

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> LabelEmbedding:
        return LabelEmbedding(self.num_classes, hidden_size, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCondition(Condition):
    """Condition on a caption, which a small transformer reads byte by byte; an empty one stands for "no text".

    How many bytes a caption has at most, `CaptionBytes.num_bytes` says: whoever makes a batch decides its shape, and
    the weights are the same for any.

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
        # The token that begins a caption, and padding.
        return cond.at[:, 1:].set(0)

    def random(self, rng: np.random.Generator, signals: Signals) -> Signals:
        """Captions of every length: what is behind them must not matter."""
        num_clips, num_bytes = signals[CAPTION].shape
        texts = ["a" * rng.integers(num_bytes) for _ in range(num_clips)]
        return {**signals, CAPTION: encode_captions(texts, num_bytes)}

    def inputs(self) -> Mapping[str, str]:
        return {
            "caption": "255, UTF-8, then zeros; 255 and zeros alone for no text. "
            "`dit_video.data.captions.encode_captions([text], L)` makes it, L its second axis"
        }

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> TextEncoder:
        return TextEncoder(self.hidden_size, self.depth, self.num_heads, dtype=dtype, rngs=rngs)


class TextAsItIs(nnx.Module):
    """Stands where a network has its text encoder: what it is given has been encoded already."""

    def __init__(self, hidden_size: int, pooled_size: int, *, dtype: DTypeLike):
        self.hidden_size, self.pooled_size, self.dtype = hidden_size, pooled_size, dtype

    def __call__(self, cond: Text) -> Text:
        return Text(cond.tokens.astype(self.dtype), cond.num_tokens, cond.pooled.astype(self.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedText(Condition):
    """Condition on captions that a frozen text encoder has read before training: the signal "text".

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

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> TextAsItIs:
        del rngs
        return TextAsItIs(self.hidden_size, self.pooled_size, dtype=dtype)
