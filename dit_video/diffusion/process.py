"""Diffusion processes: how data are corrupted, what a network learns from that, and one step back.

The Gaussian process of images and video is one (objective.py); masking tokens is another. A task trains and samples any
of them by the same functions (tasks/diffuse.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from dit_video.arrays import Latents, Mean, Time
from dit_video.diffusion.timestep_spacing import Spacing

# What is corrupted: an array [B ...], or a pytree of such.
Data = Any
# (x_t, t) -> output: a network whose condition is bound already.
Predict = Callable[[Data, Time], Any]
Metrics = dict[str, Float[Array, ""] | Mean]


class Known(NamedTuple):
    """What is not generated but known: first frames, last ones, both ends, any others, or a region of them.

    Attributes:
        values: of x_0; they mean nothing where `mask` is False.
        mask: of which latent frames, of which cells, or of which tokens the values are known.
        independent: in training, the clips each of whose frames has a noise level of its own; None: as of the process.
        absent: in training, frames that are not there: they are noise at level 1, and bear no loss; None: none.
    """

    values: Data
    mask: Bool[Array, "#B t"] | Bool[Array, "#B t h w"]
    independent: Bool[Array, "B"] | None = None
    absent: Bool[Array, "B t"] | None = None

    def into(self, x: Data) -> Data:
        """`x` with the known values in their places."""
        return self._where_known(self.values, x)

    def clean(self, x_t: Data, t: Time) -> tuple[Data, Time]:
        """x_t and t as a network sees them for which what is known has noise level 0."""
        return self.into(x_t), jnp.where(self.mask, 0.0, self.spread(t))

    def noised(self, x_t: Data, t: Time, x_1: Data) -> tuple[Data, Time]:
        """x_t and t with noise at level 1 where something is known: as if nothing were."""
        return self._where_known(x_1, x_t), jnp.where(self.mask, 1.0, self.spread(t))

    def spread(self, level: Shaped[Array, "B #t"]) -> Shaped[Array, "B ..."]:
        """Values of clips or frames with as many axes as the mask has."""
        return level.reshape(*level.shape, *(1,) * (self.mask.ndim - level.ndim))

    def judged(self) -> Bool[Array, "..."]:
        """Of which frames, cells or tokens, as of `mask`, the loss is taken: those that are generated."""
        return ~self.mask if self.absent is None else ~self.mask & ~self.spread(self.absent)

    def _where_known(self, known: Data, other: Data) -> Data:
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (other.ndim - self.mask.ndim))
        return jnp.where(mask, known, other)


class Corrupted(NamedTuple):
    """A training example: the network sees (x_t, t) and is to say target. Everything float32."""

    x_t: Latents
    t: Time
    target: Latents
    weight: Time


@runtime_checkable
class Process(Protocol):
    """What is learnt by denoising: times t in [0, 1], where t = 0 is data and t = 1 the prior."""

    def prior(self, keys: Key[Array, "B"], shape: tuple[int, ...]) -> Data:
        """x_1 of `shape` for each key, clip i from keys[i] alone."""
        ...

    def corrupt(self, rng: Key[Array, ""], x_0: Data, known: Known | None = None) -> Any:
        """A training example with fields x_t and t, at times that are drawn; `known` parts of x_0 stay as they are."""
        ...

    def loss(self, output: Any, corrupted: Any, known: Known | None = None) -> tuple[Float[Array, ""], Metrics]:
        """Loss of what the network says of a training example, and scalars to record; `known` parts bear none."""
        ...

    def step(self, output: Any, x_t: Data, t: Time, s: Time, keys: Key[Array, "B"]) -> Data:
        """x_s from x_t, s < t, by what the network says of x_t: the process's own step back."""
        ...

    def time_grid(self, num_steps: int, num_positions: int, spacing: Spacing) -> Float[Array, "steps"]:
        """The num_steps + 1 times of sampling, falling to exactly 0, for x_t of so many positions."""
        ...


def noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
    """Standard normal numbers of `shape` per clip, clip i from keys[i]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
