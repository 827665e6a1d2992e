"""Guidance leads away from a negative prompt: what it predicts + scale (of the prompt - of the negative prompt)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Text
from dit_video.data.batch import Batch
from dit_video.data.captions import encode_captions
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.process import noise
from dit_video.diffusion.sampler import Euler
from dit_video.dit.condition import EmbeddedText, TextCondition
from dit_video.nn.module import define
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.latent_diffusion import Denoise, Frozen

SHAPE, NUM_CLIPS, SCALE = (5, 16, 16), 3, 2.5


def embedded(seed: int, num_clips: int) -> Text:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(num_clips, 4, 6)).astype(np.float32)
    return Text(tokens, rng.integers(1, 5, num_clips, np.int32), rng.normal(size=(num_clips, 5)).astype(np.float32))


@pytest.fixture(params=["bytes", "embedded"])
def case(request, denoise) -> tuple[Denoise, Batch, object, object]:
    """A task, a batch of captions, the same as the network is given it, and a negative prompt."""
    if request.param == "bytes":
        condition = TextCondition(hidden_size=16, depth=1, num_heads=2)
        batch = Batch(signals={"caption": encode_captions(["a fox", "an owl", ""], 9)})
        cond, negative = jnp.asarray(batch.signals["caption"]), jnp.asarray(encode_captions(["dull"], 9))
    else:
        condition = EmbeddedText(hidden_size=6, pooled_size=5, num_tokens=4)
        batch = Batch(signals={"text": embedded(0, NUM_CLIPS)})
        cond, negative = jax.tree.map(jnp.asarray, (batch.signals["text"], embedded(1, 1)))
    task = dataclasses.replace(denoise, condition=condition, guidance=Guidance(scale=SCALE), sampler=Euler(num_steps=2))
    return task, batch, cond, negative


def test_a_negative_prompt_is_guided_away_from_by_the_formula(case, codec):
    task, batch, cond, negative = case
    definition, rng = define(task.init), np.random.default_rng(0)
    params = {n: jnp.asarray(0.2 * rng.normal(size=s.shape), jnp.float32) for n, s in definition.shapes.items()}
    keys = clip_keys(0, range(NUM_CLIPS))
    for_each = jax.tree.map(lambda x: jnp.repeat(x, NUM_CLIPS, axis=0), negative)

    @jax.jit
    def by_hand(params, codec):
        model = definition.bind(params)

        def denoise(x_t, t):
            conditional, unconditional = model.output(x_t, t, cond), model.output(x_t, t, for_each)
            guided = unconditional.prediction + SCALE * (conditional.prediction - unconditional.prediction)
            return conditional._replace(prediction=guided)

        x_1 = noise(keys, (*task.codec.vae.latent_shape(SHAPE), task.codec.vae.latent_channels))
        return codec.decode(task.sampler(denoise, task.objective, x_1, keys))

    @jax.jit
    def generated(params, codec, null):
        return task.generate(definition.bind(params), Frozen(codec, null), batch, keys, SHAPE)

    actual, expected = np.asarray(generated(params, codec, negative), int), np.asarray(by_hand(params, codec), int)
    # Rounding may fall to the other side of a half.
    assert np.abs(actual - expected).max() <= 1
    other = jax.tree.map(lambda x: x[:1], cond)
    assert np.abs(actual - np.asarray(generated(params, codec, other), int)).max() > 1
