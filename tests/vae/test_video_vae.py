import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import TWO_LEVEL_VAE

from dit_video.nn.module import define
from dit_video.vae.vae import posterior, sample_posterior
from dit_video.vae.video_vae import ResidualBlock, VideoVAE, VideoVAEConfig

# Chunks are other matrix shapes than the whole clip, for which XLA may add in another order: float32 rounding.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def vae(filled) -> VideoVAE:
    return filled(lambda: VideoVAE(TWO_LEVEL_VAE, rngs=nnx.Rngs(0)))


def pixels(num_frames: int = 13) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).uniform(-1.0, 1.0, (1, num_frames, 16, 24, 3)), jnp.float32)


encode = jax.jit(VideoVAE.encode_stream)
decode = jax.jit(VideoVAE.decode_stream)


@pytest.mark.parametrize("num_frames", [1, 13])
def test_compresses_4x8x8_with_the_first_frame_alone(vae, num_frames):
    x = pixels(num_frames)
    moments, _ = encode(vae, x)
    assert moments.shape == (1, 1 + num_frames // 4, 2, 3, 8)
    assert decode(vae, moments[..., :4])[0].shape == x.shape


def test_streaming_equals_the_whole_clip(vae):
    x = pixels()
    moments, _ = encode(vae, x)
    z = moments[..., :4]
    video, _ = decode(vae, z)
    stops = (5, 9, 13)
    moment_parts, video_parts, encoded, decoded = [], [], None, None
    for start, stop in zip((0, *stops), stops):
        part, encoded = encode(vae, x[:, start:stop], encoded)
        moment_parts.append(part)
        part, decoded = decode(vae, z[:, (start + 3) // 4 : (stop + 3) // 4], decoded)
        video_parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(moment_parts, axis=1), moments, **ROUNDING)
    np.testing.assert_allclose(jnp.concatenate(video_parts, axis=1), video, **ROUNDING)


def test_a_future_frame_changes_no_earlier_output(vae):
    x = pixels()
    moments, changed = encode(vae, x)[0], encode(vae, x.at[:, 9:].multiply(-1.0))[0]
    np.testing.assert_array_equal(changed[:, :3], moments[:, :3])
    assert not np.array_equal(changed[:, 3], moments[:, 3])
    z = moments[..., :4]
    video, changed = decode(vae, z)[0], decode(vae, z.at[:, 2:].multiply(-1.0))[0]
    np.testing.assert_array_equal(changed[:, :5], video[:, :5])
    assert not np.array_equal(changed[:, 5], video[:, 5])


def test_a_latent_frame_sees_its_past(vae):
    """Causal, and not merely frame by frame."""
    x = pixels()
    moments, changed = encode(vae, x)[0], encode(vae, x.at[:, 0].multiply(-1.0))[0]
    assert not np.array_equal(changed[:, 3], moments[:, 3])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 16, 16), r"frames=16 must be 1 \+ 4k .* nearest are 13 and 17"),
        ((5, 20, 16), "rows=20 must be a multiple of 8 .* nearest are 16 and 24"),
        ((5, 16, 4), "columns=4 must be a multiple of 8 .* nearest are 8"),
    ],
)
def test_sizes_that_do_not_fill_cells_are_named(vae, size, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(jnp.zeros((1, *size, 3)))


def test_half_precision_compute_keeps_float32_parameters_and_results(filled):
    model = filled(lambda: VideoVAE(TWO_LEVEL_VAE, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    moments = jax.eval_shape(VideoVAE.encode, model, pixels(5))
    assert moments.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}


def test_every_parameter_names_a_logical_axis_per_dimension(vae):
    state = nnx.state(vae, nnx.Param)
    for variable in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable)):
        assert len(variable.get_metadata()["axes"]) == variable.get_value().ndim


def test_posterior_samples_have_the_mean_and_variance_of_the_moments():
    moments = jnp.broadcast_to(jnp.asarray([1.0, -2.0, jnp.log(4.0), jnp.log(0.25)]), (20_000, 4))
    z = sample_posterior(moments, jax.random.key(0))
    np.testing.assert_allclose(z.mean(0), [1.0, -2.0], atol=0.05)
    np.testing.assert_allclose(z.std(0), [2.0, 0.5], rtol=0.03)


def test_log_variance_is_clamped():
    _, logvar = posterior(jnp.asarray([0.0, 0.0, -100.0, 100.0]))
    np.testing.assert_array_equal(logvar, [-30.0, 20.0])


def test_the_default_is_4x8x8_with_16_channels():
    assert VideoVAEConfig().compression == (4, 8, 8)
    assert VideoVAEConfig().latent_channels == 16


def test_config_names_the_level_that_cannot_be_folded():
    with pytest.raises(ValueError, match="level 1 folds 4 \\* channels"):
        VideoVAEConfig(multipliers=(1, 3), strides=((2, 4, 4), (1, 2, 2)))
    with pytest.raises(ValueError, match="one multiplier"):
        VideoVAEConfig(multipliers=(1, 2))


def test_a_block_is_nine_taps_in_space_and_three_in_time():
    """So many parameters: with C channels two kernels of C x C and their biases, and two norms."""
    block = define(lambda key: ResidualBlock(5, dtype=jnp.float32, rngs=nnx.Rngs(key)))
    assert block.num_params == 9 * 5**2 + 5 + 3 * 5**2 + 5 + 2 * 5
