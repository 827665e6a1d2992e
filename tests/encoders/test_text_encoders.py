"""Laws of the text encoders that need no published weights, and values that name them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.distributed.sharding import RULES
from dit_video.encoders.clip_block import Activation
from dit_video.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from dit_video.encoders.t5 import T5Config, T5Encoder
from dit_video.encoders.text import FrozenCLIP, FrozenT5, PretrainedText, embed, latte_text, sd3_text, wan_text
from dit_video.encoders.tokenizer import Tokens
from dit_video.nn.module import define

T5 = T5Config(vocab_size=30, hidden_size=12, depth=2, num_heads=2, head_dim=4, mlp_size=16)
CLIP = CLIPTextConfig(
    **{"vocab_size": 30, "hidden_size": 8, "depth": 2, "num_heads": 2, "mlp_size": 16, "num_positions": 9},
    **{"activation": Activation.GELU, "end_token": 29, "projection_size": 5},
)
NETWORKS = {
    "t5": lambda key: T5Encoder(T5, dtype=jnp.float32, rngs=nnx.Rngs(key)),
    "umt5": lambda key: T5Encoder(
        dataclasses.replace(T5, bias_in_every_block=True), dtype=jnp.float32, rngs=nnx.Rngs(key)
    ),
    "clip": lambda key: CLIPTextModel(CLIP, dtype=jnp.float32, rngs=nnx.Rngs(key)),
}


def made(name: str) -> nnx.Module:
    return jax.jit(NETWORKS[name])(jax.random.key(0))


apply = jax.jit(lambda network, *arguments: network(*arguments))


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_a_caption_means_the_same_however_long_it_is_padded_and_with_what(name):
    network, num_tokens = made(name), jnp.array([3, 5])
    ids = np.random.default_rng(0).integers(1, 30, (2, 9)).astype(np.int32)
    long = np.asarray(apply(network, jnp.asarray(ids), num_tokens))
    ids[0, 3:] = 7
    short = np.asarray(apply(network, jnp.asarray(ids[:, :5]), num_tokens))
    np.testing.assert_allclose(short[0, :3], long[0, :3], atol=1e-5)
    np.testing.assert_allclose(short[1], long[1, :5], atol=1e-5)


def test_in_clip_no_token_sees_a_later_one_and_the_end_stands_for_all():
    network = made("clip")
    ids = np.array([[28, 3, 4, 29, 0, 0], [28, 3, 4, 29, 29, 5]], np.int32)
    states = apply(network, jnp.asarray(ids))
    one, other = np.asarray(states.last)
    np.testing.assert_allclose(one[:4], other[:4], atol=1e-6)
    np.testing.assert_allclose(states.pooled[0], states.pooled[1], atol=1e-6)
    expected = network.projection(jnp.asarray(one[3]))
    np.testing.assert_allclose(states.pooled[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_says_how_it_is_sharded(name):
    definition = define(NETWORKS[name])
    for parameter, axes in definition.axes.items():
        assert len(axes) == len(definition.shapes[parameter].shape), parameter
        assert {axis for axis in axes if axis is not None} <= RULES.keys()
        stacked = parameter.startswith("blocks.")
        assert (axes[0] == "layers") == stacked
        if parameter.endswith("kernel") and "projection" not in parameter:
            assert {"heads", "mlp"} & set(axes), parameter


def test_narrower_states_are_filled_up_with_zeros_and_the_rows_follow_each_other():
    text = PretrainedText(
        clip_g=FrozenCLIP(model="c", tokenizer="c", num_tokens=6), t5=FrozenT5(model="t", tokenizer="t", num_tokens=4)
    )
    clip_ids = np.array([[28, 3, 29, 0, 0, 0]], np.int32)
    tokens = {
        "clip_g": Tokens(clip_ids, np.array([3], np.int32)),
        "t5": Tokens(np.array([[5, 6, 1, 0]], np.int32), np.array([3], np.int32)),
    }
    networks = {"clip_g": made("clip"), "t5": made("t5")}
    embedded = jax.jit(functools.partial(embed, text))(networks, tokens)
    states = apply(networks["clip_g"], jnp.asarray(clip_ids))
    assert embedded.tokens.shape == (1, text.num_tokens, T5.hidden_size)
    np.testing.assert_allclose(embedded.tokens[:, :6, :8], states.penultimate, atol=1e-6)
    assert not np.any(embedded.tokens[:, :6, 8:])
    assert not np.any(embedded.tokens[:, 6 + 3 :])
    assert embedded.num_tokens.tolist() == [6 + 3]
    np.testing.assert_allclose(embedded.pooled, states.pooled, atol=1e-6)


def test_published_pipelines_have_their_numbers_of_tokens():
    assert [make("pipeline").num_tokens for make in (sd3_text, wan_text, latte_text)] == [77 + 256, 512, 120]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainedText(), "names no encoder; give clip_l, clip_g or t5"),
        (lambda: FrozenT5(model="m", tokenizer="t", num_tokens=2), r"FrozenT5\.num_tokens=2: must be at least 3"),
        (
            lambda: PretrainedText(
                clip_l=FrozenCLIP(model="m", tokenizer="t"), clip_g=FrozenCLIP(model="m", tokenizer="t", num_tokens=70)
            ),
            r"clip_g\.num_tokens=70: two CLIPs stand side by side",
        ),
    ],
)
def test_values_that_name_no_embedding_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
