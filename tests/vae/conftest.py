from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx


@pytest.fixture(scope="session")
def filled() -> Callable[[Callable[[], nnx.Module]], nnx.Module]:
    """Builds a module with every parameter random, at the scale of its fan-in.

    Fresh residual blocks are the identity and would pass tests of causality and streaming for free. NumPy fills
    the abstract module, so nothing is compiled.
    """

    def fill(build: Callable[[], nnx.Module]) -> nnx.Module:
        graph, abstract = nnx.split(nnx.eval_shape(build))
        rng = np.random.default_rng(0)

        def value(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            fan_in = max(1, int(np.prod(leaf.shape[:-1])))
            return jax.numpy.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan_in), leaf.dtype)

        return nnx.merge(graph, jax.tree.map(value, abstract))

    return fill
