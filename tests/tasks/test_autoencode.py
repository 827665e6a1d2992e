import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.nn.module import Params, define, params_of
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.keys import clip_keys
from dit_video.vae.codec import to_pixels, to_video
from dit_video.vae.losses import AutoencodeLoss
from dit_video.vae.vae import posterior


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(task: Autoencode, method: str, params: Params, *args):
    return getattr(task, method)(define(task.init).bind(params), None, *args)


@pytest.fixture(scope="module")
def params(autoencode) -> Params:
    return jax.jit(lambda key: params_of(autoencode.init(key)))(jax.random.key(0))


def test_the_critic_is_a_group_of_parameters_and_there_only_where_it_is_asked_for(autoencode):
    """Optimizers know it by its name: Group(prefix="critic")."""
    assert {name.partition(".")[0] for name in define(autoencode.init).shapes} == {"vae"}
    adversarial = dataclasses.replace(autoencode, losses=AutoencodeLoss(adversarial=0.1))
    assert {name.partition(".")[0] for name in define(adversarial.init).shapes} == {"vae", "critic"}


def test_one_loss_is_for_vae_and_critic(autoencode, clips):
    def metrics(losses: AutoencodeLoss) -> set[str]:
        task = dataclasses.replace(autoencode, losses=losses)
        definition = define(task.init)
        loss = lambda p: task.loss(definition.bind(p), None, clips, jax.random.key(0), jnp.int32(0))[1]  # noqa: E731
        return set(jax.eval_shape(loss, definition.shapes))

    assert metrics(AutoencodeLoss()) == {"reconstruction", "kl", "psnr"}
    assert metrics(AutoencodeLoss(adversarial=0.1)) == {"reconstruction", "kl", "psnr", "generator", "critic"}


def test_the_loss_samples_the_posterior(autoencode, params, clips):
    step = jnp.int32(0)
    first, again, other = (
        float(call(autoencode, "loss", params, clips, jax.random.key(seed), step)[0]) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_reconstruction_is_the_posteriors_mean_decoded(autoencode, params, clips):
    rebuilt = call(autoencode, "reconstruct", params, clips)
    assert (rebuilt.shape, rebuilt.dtype) == (clips.video.shape, jnp.uint8)

    @jax.jit
    def by_hand(params):
        vae = define(autoencode.init).bind(params).vae
        return vae.decode(posterior(vae.encode(to_pixels(clips.video)))[0])

    pixels = by_hand(params)
    np.testing.assert_allclose(rebuilt.astype(int), to_video(pixels).astype(int), atol=1)
    error = call(autoencode, "validate", params, clips, clip_keys(0, range(8)))["pixel_error"]
    assert error.shape == (8,)
    np.testing.assert_allclose(error, jnp.abs(pixels - to_pixels(clips.video)).mean((1, 2, 3, 4)), rtol=1e-4)


def test_a_codec_validates_and_reconstructs_and_generates_nothing(autoencode):
    assert set(autoencode.functions()) == {"validate", "reconstruct"}
    assert autoencode.paired
