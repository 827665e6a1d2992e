"""Training loss and sampling loop of every generative task, over any diffusion process."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.process import Data, Known, Metrics, Predict, Process
from dit_video.diffusion.scheduling_matrix import Levels
from dit_video.dit.condition import Cond

# (x_t, t, cond) -> output.
Network = Callable[[Data, Array, Cond], Any]


def training_loss(
    process: Process, predict: Predict, x_0: Data, rng: Key[Array, ""], known: Known | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Loss of one batch: x_0 is corrupted and the network's output compared; also scalars to record."""
    corrupted = process.corrupt(rng, x_0, known)
    return process.loss(predict(corrupted.x_t, corrupted.t), corrupted, known)


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What samples are conditioned on, and how strongly: the conditional network, or classifier-free guidance.

    Attributes:
        cond: of each row; None without a condition.
        null: the null condition, for each row or one for all, that guidance leads away from; None: none is followed.
        guidance: its scale, and the noise levels where it acts.
    """

    cond: Cond | None = None
    null: Cond | None = None
    guidance: Guidance = Guidance()

    def denoiser(self, network: Network, known: Known | None, x_1: Data) -> Callable[[Data, Array], Any]:
        """(x_t, t) -> output of the network, which sees the `known` parts of x_0 at level 0, guided."""

        def levelled(x_t: Data, t: Array) -> tuple[Data, Array]:
            return (x_t, t) if known is None else known.clean(x_t, t)

        def conditional(x_t: Data, t: Array) -> Any:
            return network(*levelled(x_t, t), self.cond)

        def pair(x_t: Data, t: Array) -> tuple[Any, Any]:
            # One forward pass over the conditional and the unconditional half.
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)]), self.cond, self.null)
            x_t_twice, t_twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), levelled(x_t, t))
            output, num_rows = network(x_t_twice, t_twice, both), len(jax.tree.leaves(x_t)[0])
            return jax.tree.map(lambda x: x[:num_rows], output), jax.tree.map(lambda x: x[num_rows:], output)

        guided = conditional if self.null is None else self.guidance.classifier_free(conditional, pair)
        if known is None or self.guidance.history == 1:
            return guided

        def unseen(x_t: Data, t: Array) -> Any:
            return network(*known.noised(x_t, t, x_1), self.cond)

        return self.guidance.of_history(guided, conditional, unseen)


def sample(
    process: Process,
    sampler: Callable[..., Data],
    network: Network,
    x_1: Data,
    keys: Key[Array, "B"],
    *,
    conditioning: Conditioning = Conditioning(),
    known: Known | None = None,
    levels: Levels | None = None,
) -> Data:
    """Samples x_0, starting from the prior x_1; row i uses keys[i] alone.

    Args:
        sampler: (denoise, process, x_1, keys) -> x_0: one of diffusion/sampler.py, or of the process's own.
        conditioning: what each row is conditioned on, and guidance.
        known: parts of x_0 that are not generated: the network sees them at level 0.
        levels: noise level of each frame by row, where these differ (diffusion/scheduling_matrix.py).
    """
    denoise = conditioning.denoiser(network, known, x_1)
    x_0 = sampler(denoise, process, x_1, keys, **({} if levels is None else {"levels": levels}))
    return x_0 if known is None else known.into(x_0)
