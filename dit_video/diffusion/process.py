"""Diffusion processes: how data are corrupted, what a network learns from that, and one step back.

The Gaussian process of images and video is one (objective.py); masking tokens is another. A task trains and samples any
of them by the same functions (tasks/diffuse.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from dit_video.arrays import Latents, Time
from dit_video.diffusion.path import over_latents
from dit_video.diffusion.timestep_spacing import Spacing

# What is corrupted: an array [B ...], or a pytree of such.
Data = Any
# (x_t, t) -> output: a network whose condition is bound already.
Predict = Callable[[Data, Time], Any]
Metrics = dict[str, Float[Array, ""]]


class Known(NamedTuple):
    """What is not generated but known: a first frame, a prefix, both ends. In training and in sampling.

    Attributes:
        values: of x_0; they mean nothing where `mask` is False.
        mask: of which latent frames the values are known.
    """

    values: Latents
    mask: Bool[Array, "#B t"]

    def into(self, x: Latents) -> Latents:
        """`x` with the known values in their places."""
        return jnp.where(over_latents(self.mask), self.values, x)

    def clean(self, x_t: Latents, t: Time) -> tuple[Latents, Time]:
        """x_t and t as a network sees them for which known frames have noise level 0."""
        return self.into(x_t), jnp.where(self.mask, 0.0, t)


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
