"""What a video is made from: its class or its caption, and dropping it for classifier-free guidance."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key, UInt8

from dit_video.arrays import Captions, Labels
from dit_video.dit.text_encoder import TextEncoder
from dit_video.nn.embed import LabelEmbedding

# What a network is given of each clip, in the form in which its condition makes it.
Given = Labels | Captions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition(abc.ABC):
    """What a network is told of a clip.

    While training, it is dropped (replaced by "nothing") with probability `drop_rate`, so that the same network also
    learns the unconditional distribution that classifier-free guidance needs (2207.12598, algorithm 1).
    """

    drop_rate: float = 0.1

    def __post_init__(self):
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"{type(self).__name__}.drop_rate={self.drop_rate}: must be in [0, 1)")

    @abc.abstractmethod
    def known(
        self,
        *,
        label: Int[Array | np.ndarray, "B"] | None,
        caption: UInt8[Array | np.ndarray, "B L"] | None,
    ) -> Given:
        """What a network is given, from the fields of a batch.

        Raises:
            ValueError: the batch lacks the field that this condition reads.
        """

    @abc.abstractmethod
    def null(self, given: Given) -> Given:
        """ "Nothing" for every clip."""

    def drop(self, rng: Key[Array, ""], given: Given) -> Given:
        """Replaces what is given of each clip by "nothing" with probability `drop_rate`."""
        dropped = jax.random.bernoulli(rng, self.drop_rate, given.shape[:1])
        return jnp.where(dropped.reshape(-1, *(1 for _ in given.shape[1:])), self.null(given), given)

    # How a network takes it in, by one or both of two ways:

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> LabelEmbedding | None:
        """What makes of it one vector, which modulates the blocks beside the noise level."""
        del hidden_size, rngs
        return None

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> TextEncoder | None:
        """What makes of it tokens, which the blocks attend to."""
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

    def known(
        self,
        *,
        label: Int[Array | np.ndarray, "B"] | None,
        caption: UInt8[Array | np.ndarray, "B L"] | None = None,
    ) -> Labels:
        """Labels as the network takes them: a clip without one (-1) becomes "no label"."""
        del caption
        if label is None:
            raise ValueError("Batch.label=None: a network conditioned on a class needs labels; -1 means no label")
        return jnp.where(jnp.asarray(label) < 0, self.num_classes, label)

    def null(self, given: Labels) -> Labels:
        return jnp.full_like(given, self.num_classes)

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

    def known(
        self,
        *,
        caption: UInt8[Array | np.ndarray, "B L"] | None,
        label: Int[Array | np.ndarray, "B"] | None = None,
    ) -> Captions:
        """Captions as they are."""
        del label
        if caption is None:
            raise ValueError(
                "Batch.caption=None: a network conditioned on text needs captions; say how many bytes of them with "
                "config.data.caption_bytes"
            )
        return jnp.asarray(caption)

    def null(self, given: Captions) -> Captions:
        # The token that begins a caption, and padding.
        return given.at[:, 1:].set(0)

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> TextEncoder:
        return TextEncoder(self.hidden_size, self.depth, self.num_heads, dtype=dtype, rngs=rngs)
