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
from dit_video.dit.network import NetworkConfig
from dit_video.dit.wan import WanConfig
from dit_video.nn.module import define

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
