"""Guidance, on a condition and on known frames: turns conditional and unconditional denoisers into one for samplers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dit_video.arrays import Latents, Output, Time
from dit_video.config.bounds import at_least
from dit_video.diffusion.path import over_latents
from dit_video.diffusion.prediction import DenoiseFn

# (x_t, t) -> (conditional, unconditional). Whoever binds the condition decides how: two forward passes, or
# one over conditional and null rows laid end to end.
PairFn = Callable[[Latents, Time], tuple[Output, Output]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance scale, and the interval of noise levels where guidance acts.

    `scale` is w in unconditional + w (conditional - unconditional): 0 ignores the condition, 1 is the plain
    conditional model, more exaggerates it. `interval` = (lowest, highest) t, ends included, where it acts.

    `history` is the same for known frames (history guidance, Song et al., 2502.06764, eq. 5): w in without + w (with -
    without), without being the prediction where noise at level 1 stands for them. 1 turns it off.
    """

    scale: float = 1.0
    history: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        at_least(self, 0, "scale", "history", why="1.0 turns guidance off")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"Guidance.interval={self.interval}: must be (low, high) with 0 <= low < high <= 1, in t "
                "(0 = data, 1 = noise); (0.0, 1.0) guides at every level"
            )

    def classifier_free(self, conditional: DenoiseFn, pair: PairFn) -> DenoiseFn:
        """Classifier-free guidance (Ho & Salimans, 2207.12598) in a limited interval (2404.07724).

        `conditional` alone is called where `pair` is not needed: with scale 1, and at steps whose levels all
        lie outside the interval, which then cost half. The mixture is linear, so that it means the same for
        every kind of prediction. A learnt variance is the conditional one's.
        """
        if self.scale == 1:
            return conditional

        def guided(x_t: Latents, t: Time) -> Output:
            return self.mixture(*pair(x_t, t), t, self.scale)

        def plain(x_t: Latents, t: Time) -> Output:
            prediction, variance = conditional(x_t, t)
            return Output(prediction.astype(jnp.float32), variance)

        if self.interval == (0.0, 1.0):
            return guided
        return lambda x_t, t: jax.lax.cond(jnp.any(self._guides(t)), guided, plain, x_t, t)

    def mixture(self, conditioned: Output, unconditioned: Output, t: Time, scale: Float[Array, ""] | float) -> Output:
        """Mixture of a conditional and an unconditional output at the levels where guidance acts, else the former."""
        with_condition, without = (out.prediction.astype(jnp.float32) for out in (conditioned, unconditioned))
        mixed = without + scale * (with_condition - without)
        return Output(jnp.where(over_latents(self._guides(t)), mixed, with_condition), conditioned.variance)

    def _guides(self, t: Time) -> Bool[Array, "B ..."]:
        low, high = self.interval
        return (low <= t) & (t <= high)

    def of_history(self, denoise: DenoiseFn, seen: DenoiseFn, unseen: DenoiseFn) -> DenoiseFn:
        """`denoise`, guided on known frames too: the two guidances add up.

        `seen` and `unseen` have the condition alike; the latter has noise in the place of known frames. Where `denoise`
        is `seen`, for there is no other guidance, the network is called once for both.
        """
        if self.history == 1:
            return denoise

        def guided(x_t: Latents, t: Time) -> Output:
            output = denoise(x_t, t)
            with_frames = output if denoise is seen else seen(x_t, t)
            difference = with_frames.prediction.astype(jnp.float32) - unseen(x_t, t).prediction.astype(jnp.float32)
            return output._replace(prediction=output.prediction.astype(jnp.float32) + (self.history - 1) * difference)

        return guided
