"""Training loss and sampling loop of every generative task, over any diffusion process."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.process import Data, Known, Predict, Process
from dit_video.dit.condition import Cond

# (x_t, t, cond) -> output.
Network = Callable[[Data, Array, Cond], Any]


def training_loss(
    process: Process, predict: Predict, x_0: Data, rng: Key[Array, ""], known: Known | None = None
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Loss of one batch: x_0 is corrupted and the network's output compared; also scalars to record."""
    corrupted = process.corrupt(rng, x_0, known)
    return process.loss(predict(corrupted.x_t, corrupted.t), corrupted, known)


def sample(
    process: Process,
    sampler: Callable[..., Data],
    network: Network,
    x_1: Data,
    keys: Key[Array, "B"],
    *,
    cond: Cond | None = None,
    null: Cond | None = None,
    guidance: Guidance | None = None,
    known: Known | None = None,
) -> Data:
    """Samples x_0, starting from the prior x_1; row i uses keys[i] alone.

    Args:
        sampler: (denoise, process, x_1, keys) -> x_0: one of diffusion/sampler.py, or of the process's own.
        cond: of each row; None without a condition.
        null: the null condition, for each row or one for all; with it `guidance` is classifier-free.
        known: parts of x_0 that are not generated: the network sees them at level 0.
    """

    def seen(x_t: Data, t: Array) -> tuple[Data, Array]:
        return (x_t, t) if known is None else known.clean(x_t, t)

    def conditional(x_t: Data, t: Array) -> Any:
        return network(*seen(x_t, t), cond)

    denoise = conditional
    if guidance is not None and null is not None:
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)]), cond, null)

        def pair(x_t: Data, t: Array) -> tuple[Any, Any]:
            # One forward pass over the conditional and the unconditional half.
            x_t_twice, t_twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), seen(x_t, t))
            output, num_rows = network(x_t_twice, t_twice, both), len(keys)
            return jax.tree.map(lambda x: x[:num_rows], output), jax.tree.map(lambda x: x[num_rows:], output)

        denoise = guidance.classifier_free(conditional, pair)
    x_0 = sampler(denoise, process, x_1, keys)
    return x_0 if known is None else known.into(x_0)
