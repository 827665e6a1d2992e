"""What a video is made from: the class label, and dropping it for classifier-free guidance."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Key

from dit_video.nn.embed import LabelEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCondition:
    """Condition on one of `num_classes` labels.

    While training, a label is dropped (replaced by "no label") with probability `drop_rate`, so that the same
    network also learns the unconditional distribution that classifier-free guidance needs (2207.12598, algorithm 1).
    """

    num_classes: int
    drop_rate: float = 0.1

    def __post_init__(self):
        if self.num_classes < 1:
            raise ValueError(f"ClassCondition.num_classes={self.num_classes}: must be at least 1")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"ClassCondition.drop_rate={self.drop_rate}: must be in [0, 1)")

    def embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> LabelEmbedding:
        return LabelEmbedding(self.num_classes, hidden_size, rngs=rngs)

    def known(self, label: Int[Array, "B"]) -> Int[Array, "B"]:
        """Labels as the network takes them: a clip without one (-1) becomes "no label"."""
        return jnp.where(label < 0, self.num_classes, label)

    def null(self, label: Int[Array, "B"]) -> Int[Array, "B"]:
        """ "No label" for every clip."""
        return jnp.full_like(label, self.num_classes)

    def drop(self, rng: Key[Array, ""], label: Int[Array, "B"]) -> Int[Array, "B"]:
        """Replaces each label by "no label" with probability `drop_rate`."""
        dropped = jax.random.bernoulli(rng, self.drop_rate, label.shape)
        return jnp.where(dropped, self.num_classes, label)
