"""A mixture of known frames: one model is trained for all that can be known of a clip, and samples from any of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TWO_LEVEL_VAE

from dit_video.arrays import Output
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.diffusion.objective import rectified_flow
from dit_video.diffusion.process import Known
from dit_video.diffusion.sampler import Euler
from dit_video.diffusion.scheduling_matrix import FrameByFrame
from dit_video.nn.module import define
from dit_video.tasks.known_frames import KnownFrames, Pattern, encoded_in_place, known_frames, known_region
from dit_video.tasks.latent_diffusion import Denoise, Frozen
from dit_video.vae.codec import LatentCodec

KEYS = jax.random.split(jax.random.key(0), 256)
NONE = dict.fromkeys(("one_level", "independent", *Pattern, "single"), 0.0)
SHAPE = (13, 16, 16)


def only(**shares: float) -> KnownFrames:
    return KnownFrames(**(NONE | shares))


@pytest.fixture(scope="module")
def clips() -> Batch:
    video = np.random.default_rng(1).integers(0, 256, (4, *SHAPE, 3), np.uint8)
    return Batch(video=video, signals={"label": np.arange(4, dtype=np.int32) % 3})


@pytest.fixture(scope="module")
def task(denoise) -> Denoise:
    return dataclasses.replace(
        denoise, known=KnownFrames(), sampler=Euler(num_steps=2), held_out_logsnr=(0.0,), condition=None
    )


@pytest.fixture(scope="module")
def model(task):
    definition = define(task.init)
    rng = np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.3 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


def test_the_shares_are_a_whole():
    assert sum(KnownFrames().shares) == pytest.approx(1)
    assert KnownFrames().patterns == set(Pattern)
    with pytest.raises(ValueError, match=r"KnownFrames: the shares add up to 1\.25 and must to 1: one_level=0\.75, "):
        KnownFrames(one_level=0.75)
    with pytest.raises(ValueError, match=r"KnownFrames.first=-0\.1: must be between 0 and 1"):
        KnownFrames(first=-0.1)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 6])
def test_a_pattern_knows_some_frames_and_never_all(num_frames):
    places = np.arange(num_frames)
    for pattern in set(Pattern) - {Pattern.REGION}:
        mask = np.asarray(known_frames(pattern, KEYS, num_frames))
        count = mask.sum(axis=1)
        assert count.max() <= num_frames - 1
        if num_frames == 1:
            continue
        assert count.min() >= 1
        if pattern is Pattern.FIRST:
            np.testing.assert_array_equal(mask, places < count[:, None])
        if pattern is Pattern.LAST:
            np.testing.assert_array_equal(mask, places >= num_frames - count[:, None])
        if pattern is Pattern.ENDS and num_frames > 2:
            assert mask[:, [0, -1]].all()
            assert (np.abs(np.diff(mask.astype(int), axis=1)).sum(axis=1) == 2).all()
        assert len(np.unique(count)) == (num_frames - 1 if pattern is not Pattern.ENDS else max(num_frames - 2, 1))


def test_a_region_is_made_of_whole_patches_and_the_same_in_every_frame():
    mask = np.asarray(known_region(KEYS, (3, 4, 8), (1, 2, 2)))
    assert mask.shape == (256, 3, 4, 8)
    assert not mask.all(axis=(1, 2, 3)).any()
    np.testing.assert_array_equal(mask, mask[:, :1].repeat(3, axis=1))
    np.testing.assert_array_equal(mask, mask[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3))
    assert 0.2 < mask.mean() < 0.7


def test_clips_are_shared_out_as_the_shares_say(codec):
    known, x_0 = KnownFrames(in_place=0.0), jnp.zeros((512, 4, 2, 2, 4))
    drawn = jax.jit(lambda key: known.drawn(key, codec, Batch(), x_0, (1, 1, 1)))(jax.random.key(1))
    assert drawn.mask.shape == (512, 4, 2, 2)
    assert float(drawn.independent.mean()) == pytest.approx(known.independent, abs=0.01)
    assert float(drawn.absent.any(axis=1).mean()) == pytest.approx(known.single, abs=0.01)
    np.testing.assert_array_equal(drawn.absent[:, 0], False)
    frames = np.asarray(drawn.mask.all(axis=(2, 3)))
    whole = frames.any(axis=1).mean()
    assert whole == pytest.approx(known.first + known.last + known.ends + known.random, abs=0.01)
    # Only where a region is known, some cells of a frame are and others are not.
    partial = np.asarray(drawn.mask.any(axis=(2, 3))) & ~frames
    assert partial.any(axis=1).mean() == pytest.approx(known.region, abs=0.015)


FLOW = rectified_flow()


@functools.partial(jax.jit, static_argnames="network")
def loss_of(t, known, x_0, eps, network=lambda x, t: Output(0.3 * x)):
    corrupted = FLOW.corrupt_with(x_0, eps, t, known)
    return FLOW.loss(network(corrupted.x_t, corrupted.t), corrupted, known)[0]


def test_equal_levels_in_all_frames_and_cells_are_one_level_per_clip():
    x_0, eps = (jax.random.normal(key, (3, 4, 2, 2, 5)) for key in jax.random.split(jax.random.key(2)))
    t = jnp.array([[0.2], [0.5], [0.9]])
    one = loss_of(t, None, x_0, eps)
    assert loss_of(jnp.repeat(t, 4, axis=1), None, x_0, eps) == pytest.approx(float(one), rel=1e-6)
    for shape in ((3, 4), (3, 4, 2, 2)):
        none = Known(x_0, jnp.zeros(shape, bool))
        assert loss_of(t, none, x_0, eps) == pytest.approx(float(one), rel=1e-6)


def test_what_is_known_or_absent_bears_no_loss():
    x_0, eps = (jax.random.normal(key, (2, 4, 2, 2, 5)) for key in jax.random.split(jax.random.key(2)))
    t = jnp.array([[0.2], [0.5]])
    region = np.zeros((2, 4, 2, 2), bool)
    region[:, :, 0], region[0, 1:] = True, True
    for known in (Known(x_0, jnp.asarray(region)), Known(x_0, jnp.zeros((2, 4), bool), absent=jnp.arange(4)[None] > 0)):
        free = jnp.broadcast_to(known.judged(), (2, 4, 2, 2) if known.mask.ndim == 4 else (2, 4))
        free = free.reshape(*free.shape, *(1,) * (5 - free.ndim))
        plain = loss_of(t, known, x_0, eps)
        moved = loss_of(t, known, x_0, eps, lambda x, t, free=free: Output(0.3 * x + jnp.where(free, 0.0, 7.0)))
        assert moved == pytest.approx(float(plain), rel=1e-6)


def test_frames_of_a_clip_have_levels_of_their_own_where_the_mixture_says_so():
    x_0 = jnp.zeros((64, 4, 2, 2, 5))
    own = jnp.arange(64) < 32
    known = Known(x_0, jnp.zeros((64, 4), bool), own, jnp.zeros((64, 4), bool).at[63, 1:].set(True))
    t = np.asarray(jax.jit(lambda known: FLOW.corrupt(jax.random.key(0), x_0, known).t)(known))
    assert (np.ptp(t, axis=1) > 0)[:32].all()
    np.testing.assert_array_equal(t[32:63], t[32:63, :1].repeat(4, axis=1))
    np.testing.assert_array_equal(t[63, 1:], 1.0)


def test_what_comes_before_a_known_run_is_not_in_its_latents(denoise, clips):
    """But in those of the whole clip it is; and what begins the clip is encoded as it is."""
    fresh = jax.jit(dataclasses.replace(denoise.codec, vae=TWO_LEVEL_VAE).blank)(jax.random.key(0))
    # A fresh one has no memory of the frames before.
    rng = np.random.default_rng(0)
    codec = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), fresh)
    mask = jnp.asarray([[0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    whole = jax.jit(lambda video: codec.whiten(codec.moments(video)))
    encode = jax.jit(lambda video: encoded_in_place(codec, video, whole(video), mask))
    starts = [5, 9, 0, 0]
    other = np.where(np.arange(13)[None, :, None, None, None] < np.array(starts)[:, None, None, None, None], 9, 1)
    other = np.where(other == 9, 255 - clips.video, clips.video)
    made, changed = np.asarray(encode(clips.video)), np.asarray(encode(other))
    np.testing.assert_array_equal(made[0, 2:], changed[0, 2:])
    np.testing.assert_array_equal(made[1, 3], changed[1, 3])
    assert np.abs(np.asarray(whole(clips.video)) - whole(other))[0, 2].max() > 1e-3
    np.testing.assert_array_equal(made[2:], np.asarray(whole(clips.video))[2:])
    # By hand: the first frame of the run stands for all before it.
    filled = np.concatenate([clips.video[:1, 5:6].repeat(5, axis=1), clips.video[:1, 5:]], axis=1)
    np.testing.assert_allclose(made[:1, 2:], whole(filled)[:, 2:], atol=1e-5)


@pytest.mark.slow
def test_it_is_trained_in_one_program(task, codec, clips):
    definition = define(task.init)

    def loss(params):
        return task.loss(definition.bind(params), Frozen(codec), clips, jax.random.key(4), jnp.int32(0))[0]

    params = {n: 0.3 * np.random.default_rng(0).standard_normal(s.shape, np.float32)
              for n, s in definition.shapes.items()}  # fmt: skip
    assert np.isfinite(float(jax.jit(loss)(params)))


@functools.partial(jax.jit, static_argnums=(0,))
def latents_of(task: Denoise, model, codec: LatentCodec, batch: Batch, keys):
    return task.generate_latents(model, Frozen(codec), batch, keys, SHAPE)


def test_known_latents_come_back_bit_for_bit_and_the_rest_depends_on_them(task, model, codec, clips):
    keys, mask = jax.random.split(jax.random.key(0), 4), np.array([[1, 0, 0, 1]] * 4, bool)
    made = latents_of(task, model, codec, clips._replace(known=mask), keys)

    @jax.jit
    def encoded(video, mask):
        return encoded_in_place(codec, video, codec.whiten(codec.moments(video)), mask)

    whole = encoded(clips.video, mask)
    np.testing.assert_array_equal(np.asarray(made)[mask], np.asarray(whole)[mask])
    # The unknown frames' pixels are not looked at.
    hidden = clips.video.copy()
    hidden[:, 1:9] = 0
    np.testing.assert_array_equal(latents_of(task, model, codec, Batch(hidden, known=mask), keys), made)
    other = latents_of(task, model, codec, Batch(255 - clips.video, known=mask), keys)
    assert np.abs(np.asarray(other - made)[:, 1:3]).max() > 1e-3
    # Both of the others are neighbours of known ones, so that they begin together also where frames take turns.
    in_turn = dataclasses.replace(task, scheduling=FrameByFrame())
    np.testing.assert_allclose(latents_of(in_turn, model, codec, clips._replace(known=mask), keys), made, atol=1e-5)


def test_the_held_out_error_is_told_for_each_pattern(task, model, codec, clips):
    errors = jax.jit(lambda batch, keys: task.validate(model, Frozen(codec), batch, keys))(clips, KEYS[:4])
    named = {f"x_0_error/known_{pattern}" for pattern in Pattern}
    assert set(errors) == {"x_0_error", "x_0_error/logsnr_+0"} | named
    assert all(np.isfinite(value).all() and value.shape == (4,) for value in errors.values())


def test_a_latent_cache_has_no_video_to_encode_in_place(task, tmp_path):
    data = Data(
        source=MovingDigits(directory=str(tmp_path), num_train=2, num_held_out=2, size=16, digit_size=10),
        clips=ClipTransform(num_frames=13, size=(16, 16)),
        batch_size=2,
        cache=LatentCache(directory=str(tmp_path / "cache")),
    )
    with pytest.raises(ValueError, match=r"config.task.known.in_place=0\.5: .* set in_place=0, or cache=None"):
        task.check(data, None)
    cached = dataclasses.replace(task, known=KnownFrames(in_place=0.0), condition=None)
    cached.check(data, None)
    (warning,) = cached.check_data({})
    assert "in_place=0: sampling encodes known frames that do not begin a clip without those before them" in warning
    # What begins a clip has nothing before it.
    alone = dict.fromkeys(("one_level", "independent", *Pattern, "single"), 0.0)
    first = KnownFrames(**(alone | {"first": 1.0}), in_place=0.0)
    assert [dataclasses.replace(cached, known=known).check_data({}) for known in (first, KnownFrames(), None)] == [
        []
    ] * 3
    assert not task.paired
