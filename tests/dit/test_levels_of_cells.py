"""Noise levels of single cells, where a region is known: every network takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.dit.condition import ClassCondition, TextCondition
from dit_video.dit.dit import DiTConfig
from dit_video.dit.latte import LatteConfig
from dit_video.dit.mmdit import MMDiTConfig
from dit_video.dit.wan import WanConfig
from dit_video.nn.module import define
from dit_video.nn.patches import per_patch, to_tokens

SIZE = {"hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": (1, 2, 2)}
WORDS = TextCondition(hidden_size=8, depth=1, num_heads=1)
CAPTION = jnp.zeros((2, 4), jnp.uint8).at[:, 0].set(255)
NETWORKS = {
    "DiT": (DiTConfig(**SIZE), None, None),
    "DiT, shared modulation": (DiTConfig(**SIZE, shared_modulation=True), None, None),
    "Wan": (WanConfig(**SIZE, mlp_width=16), WORDS, CAPTION),
    "MMDiT": (MMDiTConfig(**SIZE), WORDS, CAPTION),
    "Latte": (LatteConfig(**SIZE), ClassCondition(num_classes=2), jnp.zeros(2, jnp.int32)),
}
X_T = jax.random.normal(jax.random.key(1), (2, 3, 4, 6, 4))


def test_levels_lie_as_tokens_do():
    t = jax.random.uniform(jax.random.key(0), (2, 3, 2, 3))
    cells = t.repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(per_patch(cells, (1, 2, 2)), to_tokens(t[..., None], (1, 1, 1))[..., 0])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("DiT", "Wan") else [pytest.mark.slow]) for name in NETWORKS],
)
def test_equal_levels_of_cells_are_those_of_their_frames(name):
    config, condition, cond = NETWORKS[name]
    definition = define(lambda key: config.build(4, condition, dtype=jnp.float32, rngs=nnx.Rngs(key)))
    rng = np.random.default_rng(0)
    params = {
        n: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)) for n, s in sorted(definition.shapes.items())
    }
    network = jax.jit(lambda t: definition.bind(params)(X_T, t, cond))
    of_frames = jnp.array([[0.1, 0.5, 0.9], [0.3, 0.3, 0.3]])
    of_cells = jnp.broadcast_to(of_frames[:, :, None, None], X_T.shape[:4])
    same = network(of_cells)
    np.testing.assert_allclose(same, network(of_frames), rtol=1e-4, atol=1e-5)
    other = network(of_cells.at[0, :, :2].set(0.0))
    assert np.abs(other[0] - same[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], same[1])
