"""Image to video: the first frame of a clip is known, by channels beside x_t or by known it at noise level 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.data.batch import Batch
from dit_video.data.captions import encode_captions
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.process import noise
from dit_video.diffusion.sampler import Euler
from dit_video.dit.condition import TextCondition
from dit_video.dit.known_frames import AsChannels, LevelZero
from dit_video.dit.wan import WanConfig
from dit_video.nn.module import define
from dit_video.tasks.known_frames import FirstFrame, first_frame, grey_after_first
from dit_video.tasks.latent_diffusion import Denoise, Frozen
from dit_video.vae.codec import LatentCodec, to_pixels
from dit_video.vae.cogvideox_vae import CogVideoXVAEConfig

NETWORK = WanConfig(hidden_size=16, depth=1, num_heads=1, mlp_width=16, patch_size=(1, 1, 1))
WORDS = TextCondition(hidden_size=8, depth=1, num_heads=1)
SHAPE = (5, 16, 16)


@pytest.fixture(scope="module")
def batch(clips) -> Batch:
    return Batch(video=clips.video, signals={"caption": encode_captions([f"clip {n}" for n in range(8)], 12)})


def task_of(denoise: Denoise, **fields) -> Denoise:
    usual = {"network": NETWORK, "sampler": Euler(num_steps=2), "guidance": Guidance(scale=2.0)}
    return dataclasses.replace(denoise, **(usual | fields))


@pytest.fixture(scope="module")
def shown(denoise) -> Denoise:
    return task_of(denoise, condition=WORDS, known=FirstFrame(shown=AsChannels()))


@pytest.fixture(scope="module")
def known(denoise) -> Denoise:
    return task_of(denoise, condition=WORDS, known=FirstFrame(shown=LevelZero()))


def model_of(task: Denoise):
    definition = define(task.init)
    rng = np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.3 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


def generate(task: Denoise, codec: LatentCodec, batch: Batch):
    rngs = jax.random.split(jax.random.key(3), 8)
    return jax.jit(lambda model, batch: task.generate(model, Frozen(codec), batch, rngs, SHAPE))(model_of(task), batch)


def loss(task: Denoise, codec: LatentCodec, batch: Batch):
    call = jax.jit(lambda model, batch: task.loss(model, Frozen(codec), batch, jax.random.key(4), jnp.int32(0)))
    return call(model_of(task), batch)


def later_frames_changed(batch: Batch) -> Batch:
    return batch._replace(video=np.concatenate([batch.video[:, :1], 255 - batch.video[:, 1:]], axis=1))


def first_frame_changed(batch: Batch) -> Batch:
    return batch._replace(video=np.concatenate([255 - batch.video[:, :1], batch.video[:, 1:]], axis=1))


def test_the_first_latent_frame_of_a_clip_is_that_of_its_first_frame_alone(codec, batch):
    """The VAE is causal: what is known of a clip while training is what is known of an image."""
    whole = jax.jit(lambda video: codec.whiten(codec.moments(video)))(batch.video)
    actual = jax.jit(lambda batch: first_frame(codec, batch))(batch)
    np.testing.assert_allclose(actual, whole[:, :1], atol=1e-5)
    cached = jax.jit(lambda batch: codec.moments(batch.video))(batch)
    np.testing.assert_allclose(first_frame(codec, Batch(moments=cached)), actual, atol=1e-5)
    grey = jax.jit(lambda batch: grey_after_first(codec, batch, 2))(batch)
    np.testing.assert_allclose(grey[:, :1], actual, atol=1e-5)


def test_after_it_frames_are_grey(codec, batch):
    pixels = jnp.concatenate([to_pixels(batch.video[:, :1]), jnp.zeros((8, 4, 16, 16, 3))], axis=1)
    expected = jax.jit(lambda pixels: codec.whiten(codec.vae.encode(pixels)))(pixels)
    np.testing.assert_allclose(jax.jit(lambda b: grey_after_first(codec, b, 2))(batch), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["shown", "known"])
def test_clips_are_made_from_their_first_frame_and_from_no_other(kind, request, codec, batch):
    task = request.getfixturevalue(kind)
    made = generate(task, codec, batch)
    assert made.shape == (8, *SHAPE, 3)
    np.testing.assert_array_equal(generate(task, codec, later_frames_changed(batch)), made)
    np.testing.assert_array_equal(generate(task, codec, batch._replace(video=batch.video[:, :1])), made)
    other = generate(task, codec, first_frame_changed(batch))
    assert (np.abs(made.astype(int) - other).max(axis=(1, 2, 3, 4)) > 0).all()
    assert task.paired


def test_a_frame_that_is_held_is_what_the_codec_makes_of_it(known, codec, batch):
    made = generate(known, codec, batch)
    alone = jax.jit(lambda batch: codec.decode(first_frame(codec, batch)))(batch)
    np.testing.assert_allclose(np.asarray(made[:, :1], int), alone, atol=1)


def test_a_known_frame_counts_in_no_loss(known, codec, batch):
    """With a network that predicts nothing, the loss is that of the later frames' targets."""
    zero = jax.tree.map(jnp.zeros_like, model_of(known))
    of = lambda t: jax.jit(  # noqa: E731
        lambda batch: t.loss(zero, Frozen(codec), batch, jax.random.key(4), jnp.int32(0))
    )
    value, metrics = of(known)(batch)
    plain, _ = of(dataclasses.replace(known, known=None))(batch)
    assert float(value) != pytest.approx(float(plain), rel=1e-3)
    # One level for each of the eight clips' only later latent frame.
    assert sum(float(n) for name, n in metrics.items() if name.startswith("count/")) == 8
    # Another first frame moves the others' loss by what the network sees of it alone: nothing.
    moved, _ = of(known)(batch._replace(video=None, moments=moments_with_other_first(codec, batch)))
    same, _ = of(known)(batch._replace(video=None, moments=jax.jit(codec.moments)(batch.video)))
    assert float(moved) == pytest.approx(float(same), rel=1e-6)


@pytest.fixture(scope="module")
def never_dropped(known) -> Denoise:
    return dataclasses.replace(known, condition=dataclasses.replace(WORDS, drop_rate=0.0))


def test_the_loss_of_a_held_frame_by_hand(never_dropped, codec, batch):
    """The network sees the first frame clean and at level 0; the others are judged, and no other number counts."""
    task, model, key = never_dropped, model_of(never_dropped), jax.random.key(4)

    @jax.jit
    def by_hand(batch):
        of_noise, of_posterior, _ = jax.random.split(key, 3)
        x_0 = codec.whiten(codec.moments(batch.video), of_posterior)
        x_t, t, target, weight = task.objective.corrupt(of_noise, x_0)
        seen, levels = jnp.concatenate([x_0[:, :1], x_t[:, 1:]], axis=1), jnp.concatenate([0 * t, t], axis=1)
        error = jnp.square(model(seen, levels, batch.signals["caption"]) - target)
        return jnp.mean(weight[:, :, None, None, None] * error[:, 1:]), jnp.mean(error[:, :1])

    actual, _ = loss(task, codec, batch)
    expected, of_the_known = by_hand(jax.tree.map(jnp.asarray, batch))
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)
    assert float(of_the_known) != pytest.approx(float(expected), rel=1e-2)


def test_the_error_beside_a_held_frame_by_hand(never_dropped, codec, batch):
    task, model = dataclasses.replace(never_dropped, held_out_logsnr=(-1.0, 2.0)), model_of(never_dropped)
    rngs = jax.random.split(jax.random.key(5), 8)

    @jax.jit
    def by_hand(batch, logsnr):
        x_0 = codec.whiten(codec.moments(batch.video))
        eps, t = noise(rngs, x_0.shape[1:]), jnp.full((8, 1), task.objective.path.time_of_logsnr(logsnr))
        x_t = task.objective.path.x_t(x_0, eps, t)
        seen, levels = jnp.concatenate([x_0[:, :1], x_t[:, 1:]], axis=1), jnp.concatenate([0 * t, t], axis=1)
        denoised = task.objective.denoised(model(seen, levels, batch.signals["caption"]), x_t, t)
        return jnp.mean(jnp.square(denoised - x_0)[:, 1:], axis=(1, 2, 3, 4))

    actual = jax.jit(lambda batch: task.validate(model, Frozen(codec), batch, rngs))(batch)
    for logsnr in task.held_out_logsnr:
        expected = by_hand(jax.tree.map(jnp.asarray, batch), logsnr)
        np.testing.assert_allclose(actual[f"x_0_error/logsnr_{logsnr:+g}"], expected, rtol=1e-4)


def moments_with_other_first(codec: LatentCodec, batch: Batch) -> jax.Array:
    return jax.jit(codec.moments)(batch.video).at[:, :1].add(1.0)


@pytest.mark.parametrize("kind", ["shown", "known"])
def test_the_gradient_reaches_every_parameter(kind, request, codec, batch):
    task = request.getfixturevalue(kind)
    definition = define(task.init)
    call = lambda p: task.loss(definition.bind(p), Frozen(codec), batch, jax.random.key(4), jnp.int32(0))[0]  # noqa: E731
    rng = np.random.default_rng(0)
    params = {n: 0.3 * rng.standard_normal(s.shape, np.float32) for n, s in definition.shapes.items()}
    for name, value in jax.jit(jax.grad(call))(params).items():
        assert float(np.abs(value).max()) > 0, name


def test_cached_latents_are_enough_unless_frames_after_the_first_are_grey(shown, codec, batch):
    cached = batch._replace(video=None, moments=jax.jit(codec.moments)(batch.video))
    with pytest.raises(ValueError, match="read them from a source of video, not a latent cache"):
        loss(shown, codec, cached)
    zeros = dataclasses.replace(shown, known=FirstFrame(shown=AsChannels(grey_frames=False)))
    assert np.isfinite(float(loss(zeros, codec, cached)[0]))


def test_errors_are_measured_where_frames_are_not_known(known, codec, batch):
    rngs = jax.random.split(jax.random.key(5), 8)
    task = dataclasses.replace(known, held_out_logsnr=(0.0,))
    call = jax.jit(lambda model, batch: task.validate(model, Frozen(codec), batch, rngs)["x_0_error"])
    zero = jax.tree.map(jnp.zeros_like, model_of(task))
    moments = jax.jit(codec.moments)(batch.video)
    actual = call(zero, batch._replace(video=None, moments=moments))
    assert actual.shape == (8,)
    np.testing.assert_allclose(call(zero, batch._replace(video=None, moments=moments.at[:, 0].add(1.0))), actual)


def test_a_frame_cannot_be_known_where_its_level_is_that_of_others(known, shown, codec):
    with pytest.raises(ValueError, match=r"network.patch_size=\(2, 1, 1\) must be of one frame"):
        dataclasses.replace(known, network=dataclasses.replace(NETWORK, patch_size=(2, 1, 1)))
    image = Batch(video=np.zeros((1, 1, 16, 16, 3), np.uint8), signals={"caption": encode_captions(["one"], 12)})
    with pytest.raises(ValueError, match="clips of one latent frame have none after it"):
        loss(known, codec, image)


def test_the_mask_has_a_channel_for_each_frame_of_a_latent_frame(shown):
    with pytest.raises(ValueError, match=r"mask_channels=3: .* of VideoVAEConfig 4; set it so"):
        dataclasses.replace(shown, known=FirstFrame(shown=AsChannels(mask_channels=3)))


def test_a_codec_that_mixes_first_frames_with_others_is_refused(denoise):
    vae = CogVideoXVAEConfig()
    with pytest.raises(ValueError, match=r"CogVideoXVAEConfig: it takes 2 latent frames at once"):
        dataclasses.replace(denoise, codec=dataclasses.replace(denoise.codec, vae=vae), known=FirstFrame())
