import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.arrays import Output
from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import ddpm, rectified_flow
from dit_video.diffusion.path import Cosine, Linear
from dit_video.diffusion.prediction import X0, Epsilon, V, Velocity
from dit_video.diffusion.process import noise
from dit_video.diffusion.sampler import Euler
from dit_video.diffusion.variance import LearnedVariance
from dit_video.dit.condition import TextCondition
from dit_video.dit.dit import DiT
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.wan import WanConfig
from dit_video.encoders.clip_block import Activation
from dit_video.encoders.clip_image import CLIPVisionConfig
from dit_video.encoders.image import PretrainedImage
from dit_video.nn.module import Params, Precision, define, params_of
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.known_frames import FirstFrame
from dit_video.tasks.latent_diffusion import Denoise, Frozen
from dit_video.vae.codec import LatentCodec

SHAPE = (5, 16, 16)
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def fresh(denoise) -> Params:
    return jax.jit(lambda key: params_of(denoise.init(key)))(jax.random.key(0))


@pytest.fixture(scope="module")
def params(fresh) -> Params:
    """No parameter is zero: a fresh DiT is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    return {n: p + 0.1 * rng.normal(size=p.shape).astype(np.float32) for n, p in sorted(fresh.items())}


@functools.partial(jax.jit, static_argnums=0)
def loss(task: Denoise, params: Params, codec: LatentCodec, batch: Batch, key: jax.Array) -> jax.Array:
    return task.loss(define(task.init).bind(params), Frozen(codec), batch, key, jnp.int32(0))[0]


@functools.partial(jax.jit, static_argnums=0)
def generate(task: Denoise, params: Params, codec: LatentCodec, batch: Batch, keys: jax.Array) -> jax.Array:
    return task.generate(define(task.init).bind(params), Frozen(codec), batch, keys, SHAPE)


def rows(batch: Batch, index: slice) -> Batch:
    return jax.tree.map(lambda x: x[index], batch)


# --- training ---


def test_only_the_dit_learns(denoise, params, codec, clips):
    """The codec is an argument, so that it could be differentiated: nothing comes of it."""
    gradient = jax.jit(jax.grad(lambda p, c: loss(denoise, p, c, rows(clips, slice(2)), jax.random.key(0)), (0, 1)))
    of_params, of_codec = gradient(params, codec)
    assert {name for name, g in of_params.items() if not np.any(g)} == set()
    assert jax.tree.leaves(of_codec)
    for leaf in jax.tree.leaves(of_codec):
        np.testing.assert_array_equal(leaf, 0.0)
    assert not [name for name in define(denoise.init).shapes if "codec" in name or "vae" in name]


def test_cached_moments_are_the_videos_they_were_made_of(denoise, params, codec, clips):
    """With the same key, so the same posterior noise, times and dropping."""
    moments = np.asarray(jax.jit(lambda c, video: c.moments(video))(codec, clips.video))
    key = jax.random.key(3)
    from_video, from_cache = (
        loss(denoise, params, codec, batch, key) for batch in (clips, Batch(moments=moments, signals=clips.signals))
    )
    assert from_cache == pytest.approx(float(from_video), rel=1e-5)
    assert loss(denoise, params, codec, clips, jax.random.key(4)) != from_video


def test_a_variance_can_only_be_learnt_by_a_network_that_has_one(denoise):
    learns = dataclasses.replace(ddpm(), variance=LearnedVariance())
    with pytest.raises(ValueError, match=r"Denoise.objective.variance=.*set network.learned_variance=True"):
        dataclasses.replace(denoise, objective=learns)
    network = dataclasses.replace(denoise.network, learned_variance=True)
    assert dataclasses.replace(denoise, objective=learns, network=network).objective is learns


def test_an_image_encoder_and_what_attends_to_it_come_together(denoise):
    """And are of one width."""
    image = PretrainedImage(
        encoder=CLIPVisionConfig(hidden_size=8, depth=2, num_heads=2, mlp_size=12, activation=Activation.GELU),
        model="none",
    )
    words = TextCondition(hidden_size=8, depth=1, num_heads=2)
    network = WanConfig(hidden_size=16, depth=1, num_heads=2, mlp_width=16, patch_size=(1, 1, 1))

    def with_image(image: PretrainedImage | None, image_size: int | None) -> Denoise:
        known = FirstFrame(shown=AsChannels(image_size=image_size))
        return dataclasses.replace(denoise, network=network, condition=words, known=known, image=image)

    assert with_image(None, None).image is None
    assert with_image(image, 8).image is image
    with pytest.raises(ValueError, match=r"Denoise.image=None: known.shown.image_size=8"):
        with_image(None, 8)
    for width in (7, 9):
        with pytest.raises(ValueError, match=rf"encoder.hidden_size=8: .*image_size={width}; make them the same"):
            with_image(image, width)
    for known in (None, FirstFrame(), FirstFrame(shown=AsChannels())):
        with pytest.raises(ValueError, match=r"Denoise.image=.*: the network attends to no tokens of an image"):
            dataclasses.replace(denoise, network=network, condition=words, known=known, image=image)


def test_latents_are_a_new_posterior_sample_at_every_step(denoise, params, codec, cached):
    """Where the posterior is narrow, keys that differ only in its noise would give one loss; here it is wide."""
    wide = cached._replace(moments=np.concatenate([cached.moments[..., :4], 0 * cached.moments[..., 4:]], axis=-1))
    narrow = cached._replace(moments=wide.moments - np.array([0.0] * 4 + [40.0] * 4, np.float32))
    key = jax.random.key(0)
    assert loss(denoise, params, codec, wide, key) != loss(denoise, params, codec, narrow, key)


def test_labels_matter_until_they_are_dropped(denoise, params, codec, cached):
    def with_rate(rate: float, label: np.ndarray) -> float:
        task = dataclasses.replace(denoise, condition=dataclasses.replace(denoise.condition, drop_rate=rate))
        return float(loss(task, params, codec, cached._replace(signals={"label": label}), jax.random.key(0)))

    other, none = (cached.signals["label"] + 1) % 3, np.full(8, -1, np.int32)
    assert len({with_rate(0.0, label) for label in (cached.signals["label"], other, none)}) == 3
    # Nearly all labels are dropped: what is left is the loss without any.
    assert with_rate(0.9999, cached.signals["label"]) == with_rate(0.9999, none) == with_rate(0.0, none)


def test_bfloat16_compute_gives_float32_gradients_near_those_of_float32(denoise, params, codec, cached):
    half = dataclasses.replace(denoise, precision=Precision.BFLOAT16)
    (full, of_full), (low, of_low) = (
        jax.jit(jax.value_and_grad(lambda p, task=task: loss(task, p, codec, cached, jax.random.key(0))))(params)
        for task in (denoise, half)
    )
    assert low == pytest.approx(float(full), rel=0.02)
    assert low != full
    assert {g.dtype for g in of_low.values()} == {jnp.dtype("float32")}
    error = np.sqrt(sum(np.square(of_low[n] - g).sum() for n, g in of_full.items()))
    assert error < 0.05 * np.sqrt(sum(np.square(g).sum() for g in of_full.values()))


# --- held-out error ---

LEVELS = (-4.0, 0.0, 4.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def validate(task: Denoise, kind: type[DiT], params: Params, codec: LatentCodec, batch: Batch) -> dict:
    model = define(task.init).bind(params)
    model.__class__ = kind
    return task.validate(model, Frozen(codec), batch, clip_keys(7, range(8)))


class AsEpsilon(DiT):
    """Says the noise where its weights say the velocity of the straight path."""

    def output(self, x_t, t, cond):
        return Output(Velocity().eps(Linear(), super().output(x_t, t, cond).prediction, x_t, t))


@pytest.mark.parametrize(
    "objective",
    [rectified_flow(), dataclasses.replace(rectified_flow(), prediction=Epsilon()), ddpm(V()), ddpm(X0())],
    ids=["velocity", "epsilon", "v", "x_0"],
)
def test_the_error_of_a_network_that_says_zero_has_a_closed_form(denoise, fresh, codec, cached, objective):
    task = dataclasses.replace(denoise, objective=objective, held_out_logsnr=LEVELS)
    found = validate(task, DiT, fresh, codec, cached)
    x_0 = codec.whiten(jnp.asarray(cached.moments), None)
    eps = noise(clip_keys(7, range(8)), x_0.shape[1:])
    expected = []
    for level in LEVELS:
        snr = np.exp(level)
        if isinstance(objective.path, Cosine):
            alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
        else:
            alpha, sigma = np.sqrt(snr) / (1 + np.sqrt(snr)), 1 / (1 + np.sqrt(snr))
        x_t = alpha * x_0 + sigma * eps
        denoised = {Velocity: x_t, Epsilon: x_t / alpha, V: alpha * x_t, X0: 0 * x_t}[type(objective.prediction)]
        expected.append(jnp.square(denoised - x_0).mean(axis=(1, 2, 3, 4)))
        np.testing.assert_allclose(found[f"x_0_error/logsnr_{level:+g}"], expected[-1], **ROUNDING)
    np.testing.assert_allclose(found["x_0_error"], jnp.stack(expected).mean(0), **ROUNDING)


def test_two_objectives_that_know_the_same_have_the_same_error(denoise, params, codec, cached):
    """The numbers to compare methods by: converted by algebra, a velocity network is a noise network."""
    straight = dataclasses.replace(denoise, held_out_logsnr=LEVELS)
    as_noise = dataclasses.replace(rectified_flow(), prediction=Epsilon(), shift=None)
    converted = dataclasses.replace(straight, objective=as_noise)
    one, other = validate(straight, DiT, params, codec, cached), validate(converted, AsEpsilon, params, codec, cached)
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, err_msg=name)
    assert not np.allclose(validate(converted, DiT, params, codec, cached)["x_0_error"], one["x_0_error"], rtol=0.1)


# --- generation ---


@pytest.fixture(scope="module")
def sampling(denoise) -> Denoise:
    return dataclasses.replace(denoise, sampler=Euler(num_steps=3), guidance=Guidance(scale=3.0))


def largest_difference(a: jax.Array, b: jax.Array) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_a_clip_is_a_function_of_its_label_and_key_alone(sampling, params, codec, clips):
    keys = clip_keys(0, range(4))
    made = generate(sampling, params, codec, rows(clips, slice(4)), keys)
    assert (made.shape, made.dtype) == ((4, *SHAPE, 3), jnp.uint8)
    pair = generate(sampling, params, codec, rows(clips, slice(2, 4)), keys[2:])
    # Another batch size is another program: rounding may tip a grey level over.
    assert largest_difference(pair, made[2:]) <= 1
    other = generate(sampling, params, codec, rows(clips, slice(4)), clip_keys(1, range(4)))
    assert largest_difference(other, made) > 5


def test_guidance_and_labels_change_what_is_made(sampling, params, codec, clips):
    batch, keys = rows(clips, slice(2)), clip_keys(0, range(2))
    plain = dataclasses.replace(sampling, guidance=Guidance(scale=1.0))
    guided = generate(sampling, params, codec, batch, keys)
    unguided = generate(plain, params, codec, batch, keys)
    assert largest_difference(guided, unguided) > 2
    other = batch._replace(signals={"label": (batch.signals["label"] + 1) % 3})
    assert largest_difference(generate(sampling, params, codec, other, keys), guided) > 2
    # Without a label there is nothing to follow.
    none = batch._replace(signals={"label": np.full(2, -1, np.int32)})
    assert largest_difference(*(generate(task, params, codec, none, keys) for task in (sampling, plain))) <= 1


def test_a_network_without_a_condition_needs_no_labels(sampling, codec, cached):
    with pytest.raises(ValueError, match=r"Denoise.guidance.scale=3.0: there is no condition to be followed"):
        dataclasses.replace(sampling, condition=None)
    task = dataclasses.replace(sampling, condition=None, guidance=Guidance())
    shapes = define(task.init).shapes
    assert not [name for name in shapes if name.startswith("y_embedder")]
    unlabelled = cached._replace(signals={})
    assert jax.eval_shape(functools.partial(loss, task), shapes, codec, unlabelled, jax.random.key(0)).shape == ()
    made = jax.eval_shape(functools.partial(generate, task), shapes, codec, unlabelled, clip_keys(0, range(8)))
    assert made.shape == (8, *SHAPE, 3)


def test_reconstruction_goes_through_the_codec_and_not_the_dit(denoise, fresh, codec, clips):
    model = define(denoise.init).bind(fresh)

    @jax.jit
    def both(codec, video):
        rebuilt = denoise.reconstruct(model, Frozen(codec), Batch(video=video))
        return rebuilt, codec.decode(codec.whiten(codec.moments(video)))

    rebuilt, expected = both(codec, clips.video)
    assert (rebuilt.shape, rebuilt.dtype) == (clips.video.shape, jnp.uint8)
    np.testing.assert_array_equal(rebuilt, expected)
