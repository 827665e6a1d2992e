"""What a video is made from: its class or its caption, and dropping it for classifier-free guidance."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key, UInt8

from dit_video.arrays import Captions, ImageCond, Labels, Text
from dit_video.dit.text_encoder import TextEncoder
from dit_video.nn.embed import LabelEmbedding

# What a network is given of each clip, in the form in which its condition makes it: a pytree of arrays [B ...].
Cond = Labels | Captions | Text | ImageCond


def required(cond: Cond | None) -> Any:
    """`given`, for a network that cannot do without.

    Raises:
        ValueError: there is none.
    """
    if cond is None:
        raise ValueError("this network is conditioned: pass `given`, which `read` of its condition makes of a batch")
    return cond


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """What a network is told of a clip.

    While training, it is dropped (replaced by the null condition) with probability `drop_rate`, so that the same
    network also learns the unconditional distribution that classifier-free guidance needs (2207.12598, algorithm 1).
    """

    drop_rate: float = 0.1

    def __post_init__(self):
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"{type(self).__name__}.drop_rate={self.drop_rate}: must be in [0, 1)")

    @abc.abstractmethod
    def read(
        self,
        *,
        label: Int[Array | np.ndarray, "B"] | None,
        caption: UInt8[Array | np.ndarray, "B L"] | None,
        text: Text | None,
    ) -> Cond:
        """What the fields of a batch tell of each clip.

        That is what a network is given; with a `FirstFrame` it is the caption alone, to which `framed` adds the rest.

        Raises:
            ValueError: the batch lacks the field that this condition reads.
        """

    @abc.abstractmethod
    def empty(self, cond: Any) -> Any:
        """No condition, for every clip.

        Raises:
            ValueError: it is loaded with the parts that are frozen, not made.
        """

    def null(self, cond: Any, loaded: Cond | None = None) -> Any:
        """The null condition, for every clip or for one: what was loaded, else what `empty` makes."""
        return self.empty(cond) if loaded is None else loaded

    def blank_null(self) -> Cond | None:
        """Of a condition whose null is loaded: zeros of its shape for one clip. None where `empty` makes it."""
        return None

    def drop(self, rng: Key[Array, ""], cond: Cond, null: Cond) -> Cond:
        """Replaces what is given of each clip by the null condition with probability `drop_rate`."""
        num_clips = jax.tree.leaves(cond)[0].shape[0]
        dropped = jax.random.bernoulli(rng, self.drop_rate, (num_clips,))
        return jax.tree.map(lambda a, b: jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), b, a), cond, null)

    # How a network takes it in, by one or both of two ways:

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> LabelEmbedding | None:
        """What makes of it one vector, which modulates the blocks beside the noise level."""
        del hidden_size, rngs
        return None

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> "TextEncoder | TextAsItIs | None":
        """What makes of it tokens, which the blocks attend to, and one vector for all of them."""
        del dtype, rngs
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCondition(Condition):
    """Condition on one of `num_classes` labels; `num_classes` itself stands for "no label"."""

    num_classes: int

    def __post_init__(self):
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"ClassCondition.num_classes={self.num_classes}: must be at least 1")

    def read(
        self,
        *,
        label: Int[Array | np.ndarray, "B"] | None,
        caption: UInt8[Array | np.ndarray, "B L"] | None = None,
        text: Text | None = None,
    ) -> Labels:
        """Labels as the network takes them: a clip without one (-1) becomes "no label"."""
        del caption, text
        if label is None:
            raise ValueError("Batch.label=None: a network conditioned on a class needs labels; -1 means no label")
        return jnp.where(jnp.asarray(label) < 0, self.num_classes, label)

    def empty(self, cond: Labels) -> Labels:
        return jnp.full_like(cond, self.num_classes)

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> LabelEmbedding:
        return LabelEmbedding(self.num_classes, hidden_size, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCondition(Condition):
    """Condition on a caption, which a small transformer reads byte by byte; an empty caption stands for "no text".

    How many bytes a caption has at most is `Data.caption_bytes`: whoever makes a batch decides its shape, and the
    weights are the same for any.

    Attributes:
        hidden_size, depth, num_heads: of the encoder of captions.
    """

    hidden_size: int
    depth: int
    num_heads: int

    def __post_init__(self):
        super().__post_init__()
        if self.depth < 1:
            raise ValueError(f"TextCondition.depth={self.depth}: must be at least 1")
        if self.num_heads < 1 or self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"TextCondition.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head "
                "size"
            )

    def read(
        self,
        *,
        caption: UInt8[Array | np.ndarray, "B L"] | None,
        label: Int[Array | np.ndarray, "B"] | None = None,
        text: Text | None = None,
    ) -> Captions:
        """Captions as they are."""
        del label, text
        if caption is None:
            raise ValueError(
                "Batch.caption=None: a network conditioned on text needs captions; say how many bytes of them with "
                "config.data.caption_bytes"
            )
        return jnp.asarray(caption)

    def empty(self, cond: Captions) -> Captions:
        # The token that begins a caption, and padding.
        return cond.at[:, 1:].set(0)

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
    """Condition on captions that a frozen text encoder has read before training: `Batch.text`.

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
        for name in ("hidden_size", "pooled_size", "num_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"EmbeddedText.{name}={getattr(self, name)}: must be at least 1")

    def read(
        self,
        *,
        text: Text | None,
        label: Int[Array | np.ndarray, "B"] | None = None,
        caption: UInt8[Array | np.ndarray, "B L"] | None = None,
    ) -> Text:
        """Embeddings as they are."""
        del label, caption
        if text is None:
            raise ValueError(
                "Batch.text=None: a network conditioned on embedded text needs embeddings of captions; name their "
                "cache with config.data.text"
            )
        found = (*text.tokens.shape[1:], text.pooled.shape[1])
        wanted = (self.num_tokens, self.hidden_size, self.pooled_size)
        if found != wanted:
            raise ValueError(
                f"Batch.text: (tokens, width, pooled width) = {found}, config.task.condition says {wanted}; change "
                "num_tokens, hidden_size and pooled_size there, or the cache"
            )
        return jax.tree.map(jnp.asarray, text)

    def empty(self, cond: Text) -> Text:
        raise ValueError(
            "EmbeddedText: what stands for no text is the encoder's embedding of an empty caption and has to be loaded"
        )

    def blank_null(self) -> Text:
        tokens = jnp.zeros((1, self.num_tokens, self.hidden_size))
        return Text(tokens, jnp.ones((1,), jnp.int32), jnp.zeros((1, self.pooled_size)))

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> TextAsItIs:
        del rngs
        return TextAsItIs(self.hidden_size, self.pooled_size, dtype=dtype)
