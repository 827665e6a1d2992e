"""Random keys as functions of (seed, purpose, step or clip), so that resuming is exact."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key


def purpose_key(seed: int | Int[Array, ""], purpose: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key for one purpose at one step. Nothing is split and stored, so resuming is exact by construction."""
    # A stable number for the name: Python's hash changes from process to process.
    number = int.from_bytes(purpose.encode(), "little") % (2**31 - 1)
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)


def clip_keys(seed: int, clips: Sequence[int] | np.ndarray, purpose: str = "sample") -> Key[Array, "B"]:
    """One key for each of the clips numbered `clips`: that of clip i is a function of (seed, purpose, i), whatever the
    batch.
    """
    key = purpose_key(seed, purpose)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(np.asarray(clips)))
