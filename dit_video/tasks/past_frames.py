"""Past frames: how a network that is causal over frames sees those before the one that it denoises.

In training they are as noisy as they come, each with a level of its own (diffusion forcing, Chen et al., 2407.01392:
`Gaussian.per_frame`), or a clean copy beside the noisy one (teacher forcing). In a roll-out they are what was made, and
a little noise that the network is told of, so that its own mistakes look to it like noise (GameNGen, 2408.14837).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dit_video.arrays import Latents
from dit_video.config.bounds import between
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.sampler import Sampler, SingleStep
from dit_video.dit.action_condition import ActionCondition
from dit_video.dit.condition import Cond, Condition
from dit_video.dit.network import NetworkConfig
from dit_video.tasks.roll_out import RollOut


@dataclasses.dataclass(frozen=True, kw_only=True)
class PastFrames:
    """How past frames are seen in training and in a roll-out.

    Attributes:
        noise: in a roll-out and in validation, the noise level of frames before the one that is made.
        copy_noise: in training, the highest level of a second copy of every clip, drawn uniformly for each frame, which
            noisy frames see before them: teacher forcing, at twice the tokens. None: they see each other.
    """

    noise: float = 0.05
    copy_noise: float | None = None

    def __post_init__(self):
        between(self, 0, 1, "noise")
        if self.copy_noise is not None:
            between(self, 0, 1, "copy_noise")

    def check(self, network: NetworkConfig, condition: Condition | None) -> None:
        """Raises ValueError where a network is not causal over frames, or its condition is none of frames."""
        causal = network.causal_frames
        if causal is None or causal.window is None:
            raise ValueError(
                f"Denoise.past={self}: the network must be causal over so many frames, for a roll-out has no end; set "
                "network.causal=CausalFrames(window=...)"
            )
        self._actions(condition)

    def roll_out(
        self,
        condition: Condition | None,
        objective: Gaussian,
        sampler: Sampler,
        guidance: Guidance,
        latents: tuple[int, int, int],
        guided: bool,
    ) -> RollOut:
        """The roll-out of a network; arguments as of `RollOut`.

        Raises:
            ValueError: a sampler that needs steps before, or guidance on known frames.
        """
        if not isinstance(sampler, SingleStep):
            raise ValueError(
                f"sampler={type(sampler).__name__}: a frame of a roll-out begins without steps before; take a "
                "single-step one, such as Euler"
            )
        if guidance.history != 1:
            raise ValueError(
                f"guidance.history={guidance.history}: a roll-out is not guided on known frames; leave it 1"
            )
        return RollOut(
            condition=self._actions(condition),
            objective=objective,
            sampler=sampler,
            guidance=guidance,
            noise=self.noise,
            latents=latents,
            guided=guided,
        )

    def _actions(self, condition: Condition | None) -> ActionCondition:
        if not isinstance(condition, ActionCondition):
            raise ValueError(
                f"Denoise.past={self}: a roll-out goes by what is done in each frame, and condition={condition} says "
                "nothing of frames; use DiscreteActions or ContinuousActions"
            )
        return condition


def in_training(
    past: PastFrames | None, model: Any, objective: Gaussian, cond: Cond | None, x_0: Latents, rng: Key[Array, ""]
) -> DenoiseFn:
    """(x_t, t) -> output of the network on noisy clips; beside a clean copy of them where `past` says so."""
    if past is None or past.copy_noise is None:
        return lambda x_t, t: model.output(x_t, t, cond)
    of_level, of_noise = jax.random.split(rng)
    levels = past.copy_noise * jax.random.uniform(of_level, x_0.shape[:2])
    clean = objective.corrupt_with(x_0, jax.random.normal(of_noise, x_0.shape), levels).x_t
    return lambda x_t, t: model.beside_clean(x_t, t, clean, levels, cond)


def in_validation(
    past: PastFrames | None, model: Any, objective: Gaussian, cond: Cond | None, x_0: Latents, rngs: Key[Array, "B"]
) -> DenoiseFn:
    """(x_t, t) -> output of the network; with `past`, of frames each of which sees those before it as in a roll-out."""
    if past is None:
        return lambda x_t, t: model.output(x_t, t, cond)
    eps = objective.prior(jax.vmap(lambda key: jax.random.fold_in(key, 1))(rngs), x_0.shape[1:])
    levels = jnp.full(x_0.shape[:2], past.noise)
    clean = objective.corrupt_with(x_0, eps, levels).x_t
    return lambda x_t, t: model.beside_clean(x_t, t, clean, levels, cond)
