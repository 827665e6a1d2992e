"""What holds of every network."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dit_video.arrays import Text
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.dit import DiTConfig, PublishedDiTConfig
from dit_video.dit.latte import LatteConfig
from dit_video.dit.mmdit import MMDiTConfig, PositionTable
from dit_video.dit.network import NetworkConfig, Remat, scan_blocks
from dit_video.dit.wan import WanConfig
from dit_video.nn.module import define
from dit_video.nn.softmax_attention import self_attention

SIZE = {"hidden_size": 32, "depth": 2, "num_heads": 2}
WORDS = EmbeddedText(hidden_size=6, pooled_size=4, num_tokens=3)
TABLE = PositionTable(size=192, origin=64.0, step=0.25)


@pytest.mark.parametrize(
    "config",
    [
        DiTConfig(**SIZE),
        PublishedDiTConfig(**SIZE),
        LatteConfig(**SIZE),
        MMDiTConfig(**SIZE),
        MMDiTConfig(**SIZE, position_table=TABLE),
        WanConfig(**SIZE, mlp_width=64),
    ],
    ids=["dit", "published dit", "latte", "mmdit", "mmdit with a table", "wan"],
)
def test_no_table_of_all_tokens_is_a_constant_of_the_program(config: NetworkConfig):
    """Such a table is as large as the stream: hundreds of megabytes for the video of a network of a billion."""
    definition = define(lambda key: config.build(4, WORDS, dtype=jnp.float32, rngs=nnx.Rngs(key)))
    x_t, t = jax.ShapeDtypeStruct((1, 16, 64, 64, 4), jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.float32)
    cond = jax.eval_shape(lambda: Text(*map(jnp.asarray, WORDS.blank_null())))
    program = jax.jit(lambda params, *seen: definition.bind(params).output(*seen)).lower(
        definition.shapes, x_t, t, cond
    )
    num_tokens = 16 * 32 * 32
    assert len(program.as_text()) < num_tokens * SIZE["hidden_size"]


@pytest.mark.parametrize("remat", Remat)
def test_no_policy_makes_attention_twice(remat):
    """A block of attention alone: two products forward, and with the softmax's own term six backward."""

    def loss(x):
        return scan_blocks(lambda x, _: x + self_attention(x, x, x), x, jnp.ones(2), remat=remat)[0].sum()

    program = jax.make_jaxpr(jax.grad(loss))(jax.ShapeDtypeStruct((1, 4, 2, 8), jnp.float32))
    assert str(program).count("dot_general") == 2 + 6


def test_nothing_recomputed_keeps_no_float32_copy_of_half_precision():
    """Norms, rotations and modulation are float32; what the backward pass needs of them are their bfloat16 inputs."""
    config = WanConfig(**SIZE, mlp_width=64)
    definition = define(lambda key: config.build(4, WORDS, dtype=jnp.bfloat16, rngs=nnx.Rngs(key)))
    x_t, t = jax.ShapeDtypeStruct((1, 3, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.float32)
    cond = jax.eval_shape(lambda: Text(*map(jnp.asarray, WORDS.blank_null())))

    def kept(params, x_t, t, cond):
        return jax.vjp(lambda params: definition.bind(params).output(x_t, t, cond).prediction, params)[1]

    tokens = 3 * 4 * 4
    stacked = [x for x in jax.tree.leaves(jax.eval_shape(kept, definition.shapes, x_t, t, cond)) if x.shape[:1] == (2,)]
    streams = [x for x in stacked if x.ndim > 3 and tokens in x.shape[2:3] and x.shape[-1] > 1]
    assert streams
    assert {str(x.dtype) for x in streams} == {"bfloat16"}
