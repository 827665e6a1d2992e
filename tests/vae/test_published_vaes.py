"""Laws of the VAEs of SD, Wan and CogVideoX; tests/published/test_peers_vaes.py compares them with diffusers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.data.batch import Batch
from dit_video.nn.conv import in_chunks
from dit_video.nn.module import define, params_of
from dit_video.tasks.autoencode import Autoencode
from dit_video.vae.autoencoder_kl import FLUX_VAE, SD3_VAE, SD_VAE, SDXL_VAE, AutoencoderKLConfig
from dit_video.vae.codec import LatentCodec
from dit_video.vae.cogvideox_vae import COGVIDEOX_VAE, CogVideoXVAEConfig
from dit_video.vae.vae import VAE, VAEConfig
from dit_video.vae.wan_vae import WAN_2_2_VAE, WAN_VAE, WanVAEConfig

SMALL: dict[str, VAEConfig] = {
    "AutoencoderKL": AutoencoderKLConfig(widths=(4, 8), num_blocks=1, num_groups=2, latent_channels=2),
    "Wan 2.1": WanVAEConfig(
        channels=4,
        decoder_channels=4,
        multipliers=(1, 2, 2),
        num_blocks=1,
        halve_frames=(True, True),
        latent_channels=2,
    ),
    "Wan 2.2": WanVAEConfig(
        channels=4,
        decoder_channels=6,
        multipliers=(1, 2, 2),
        num_blocks=1,
        halve_frames=(True, True),
        patch_size=2,
        residual=True,
        latent_channels=2,
    ),
    "CogVideoX": CogVideoXVAEConfig(widths=(4, 4, 8), num_blocks=1, num_groups=2, latent_channels=2),
}
each = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
# Of those that take long to compile one.
each_or_few = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=[pytest.mark.slow] if name != "Wan 2.1" else [])
        for name, config in SMALL.items()
    ],
)
# Chunks of other lengths are other matrix shapes, for which XLA adds in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def clip(config: VAEConfig, num_frames: int, cells: tuple[int, int] = (1, 2)) -> jax.Array:
    _, rows, columns = config.compression
    shape = (1, num_frames, cells[0] * rows, cells[1] * columns, 3)
    return jnp.asarray(np.random.default_rng(0).normal(0.0, 0.5, shape), jnp.float32)


@pytest.mark.parametrize(
    ("config", "num_params", "compression", "channels"),
    [
        (SD_VAE, 83_653_863, (1, 8, 8), 4),
        (SDXL_VAE, 83_653_863, (1, 8, 8), 4),
        (SD3_VAE, 83_819_683, (1, 8, 8), 16),
        (FLUX_VAE, 83_819_683, (1, 8, 8), 16),
        (WAN_VAE, 126_892_531, (4, 8, 8), 16),
        (WAN_2_2_VAE, 704_688_668, (4, 16, 16), 48),
        (COGVIDEOX_VAE, 215_583_907, (4, 8, 8), 16),
    ],
    ids=["SD", "SDXL", "SD 3", "FLUX.1", "Wan 2.1", "Wan 2.2", "CogVideoX"],
)
def test_sizes_are_the_published_ones(config, num_params, compression, channels):
    """As diffusers counts them for the published configurations."""
    assert define(lambda key: config.build(rngs=nnx.Rngs(key))).num_params == num_params
    assert (config.compression, config.latent_channels) == (compression, channels)


@each_or_few
def test_streaming_gives_the_whole_clip(config, filled):
    """Encoded and decoded by the fewest frames at a time that the network takes, the caches carried by a scan."""
    vae: VAE = filled(lambda: config.build(rngs=nnx.Rngs(0)))
    frames, group = config.compression[0], config.frame_group
    x = clip(config, 1 + 3 * frames * group)

    @jax.jit
    def both(vae: VAE, x: jax.Array) -> tuple[jax.Array, ...]:
        streamed = in_chunks(vae.encode_stream, x, first=1 + frames * group, later=frames * group)[0]
        z = vae.encode(x)[..., : config.latent_channels]
        in_parts = in_chunks(vae.decode_stream, z, first=1 + group, later=group)[0]
        return streamed, vae.encode(x), in_parts, vae.decode(z)

    streamed, moments, in_parts, pixels = both(vae, x)
    assert moments.shape == (1, 1 + 3 * group, 1, 2, 2 * config.latent_channels)
    assert pixels.shape == x.shape
    np.testing.assert_allclose(streamed, moments, **ROUNDING)
    np.testing.assert_allclose(in_parts, pixels, **ROUNDING)


@each_or_few
def test_a_later_frame_changes_nothing_before_its_group(config, filled):
    vae: VAE = filled(lambda: config.build(rngs=nnx.Rngs(0)))
    frames, group = config.compression[0], config.frame_group
    # The last group of pixels, and of latents: what comes before is the first frame and one group.
    before = 1 + frames * group
    x = clip(config, before + frames * group)
    encode, decode = jax.jit(lambda vae, x: vae.encode(x)), jax.jit(lambda vae, z: vae.decode(z))
    moments, changed = encode(vae, x), encode(vae, x.at[:, before:].add(1.0))
    np.testing.assert_array_equal(changed[:, : 1 + group], moments[:, : 1 + group])
    assert not np.allclose(changed[:, 1 + group :], moments[:, 1 + group :])
    z = moments[..., : config.latent_channels]
    pixels, changed = decode(vae, z), decode(vae, z.at[:, 1 + group :].add(1.0))
    np.testing.assert_array_equal(changed[:, :before], pixels[:, :before])
    assert not np.allclose(changed[:, before:], pixels[:, before:])


@each_or_few
def test_the_task_of_a_codec_trains_each_parameter(config, filled):
    task = Autoencode(vae=config)
    params = params_of(filled(lambda: task.init(jax.random.key(0))))
    _, rows, columns = config.compression
    video = np.random.default_rng(0).integers(0, 256, (2, 9, rows, 2 * columns, 3), np.uint8)
    definition = define(task.init)

    @jax.jit
    def gradients(params):
        def loss(params):
            return task.loss(definition.bind(params), None, Batch(video=video), jax.random.key(0), jnp.int32(0))[0]

        return jax.value_and_grad(loss)(params)

    loss, by_name = gradients(params)
    assert np.isfinite(loss)
    for name, gradient in by_name.items():
        # Attention does not see what is added to all its keys.
        gradient = gradient[: gradient.size // 3] if name.endswith("qkv.bias") else gradient
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


@each_or_few
def test_a_codec_of_it_goes_from_video_to_video(config, filled):
    vae: VAE = filled(lambda: config.build(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    codec = LatentCodec(vae, mean=np.full(2, 0.5), std=np.full(2, 2.0))
    _, rows, columns = config.compression
    video = np.random.default_rng(0).integers(0, 256, (1, 9, rows, 3 * columns, 3), np.uint8)

    def through(codec, video, **parts):
        latents = codec.whiten(codec.moments(video, **parts))
        return latents, codec.decode(latents, **parts)

    in_parts = functools.partial(through, tile=2, chunk=2)
    for latents, decoded in (jax.eval_shape(through, codec, video), jax.jit(in_parts)(codec, video)):
        assert (latents.shape, latents.dtype) == ((1, *config.latent_shape(video.shape[1:4]), 2), jnp.float32)
        assert (decoded.shape, decoded.dtype) == (video.shape, jnp.uint8)


def test_without_attention_tiles_are_exact_away_from_their_seams(filled):
    """Wan's norms look at one position: but for attention only convolutions reach over the seam of two tiles."""
    vae = filled(lambda: SMALL["Wan 2.1"].build(rngs=nnx.Rngs(0)))
    for coder in (vae.encoder, vae.decoder):
        coder.middle.attention.out.kernel[...] = jnp.zeros_like(coder.middle.attention.out.kernel[...])
    codec, latents = LatentCodec(vae), clip(SMALL["Wan 2.1"], 2, (1, 8))[..., :2]
    decode = jax.jit(LatentCodec.decode, static_argnames="tile")
    tiled, whole = (decode(codec, latents, tile=tile).astype(int) for tile in (24, None))
    # Tiles of 24 of 32 columns begin at 0 and 8: the last 8 cells are the second's alone, the first 8 the first's.
    assert np.abs(tiled - whole)[..., : 8 * 4, :].max() <= 1
    assert np.abs(tiled - whole)[..., -8 * 4 :, :].max() <= 1


def test_a_clip_that_does_not_fill_groups_of_frames_is_refused_with_those_that_do(filled):
    config = SMALL["CogVideoX"]
    with pytest.raises(ValueError, match=r"frames=13 must be 1 \+ 8k .*nearest are 9 and 17"):
        config.latent_shape((13, 8, 8))
    vae = filled(lambda: config.build(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"4 latent frames: must be 1 \+ 2k for CogVideoXVAEConfig"):
        jax.eval_shape(lambda vae: vae.decode(jnp.zeros((1, 4, 1, 1, 2))), vae)
    with pytest.raises(ValueError, match=r"3 latent frames: must be a multiple of 2"):
        config.check_latents(3, first=False)
    with pytest.raises(ValueError, match="chunk=3: must be a multiple of 2"):
        LatentCodec(vae).decode(jnp.zeros((1, 5, 1, 1, 2)), chunk=3)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("AutoencoderKL", {"num_blocks": 0}, "num_blocks=0: must be at least 1"),
        ("AutoencoderKL", {"widths": (4, 7)}, r"widths=\(4, 7\): must be multiples of num_groups=2"),
        ("Wan 2.1", {"patch_size": 0}, "patch_size=0: must be at least 1"),
        ("Wan 2.1", {"halve_frames": (True,)}, "give one for each but the last of the 3 levels"),
        ("Wan 2.1", {"decoder_channels": 3, "multipliers": (1, 1, 1)}, "decoder_channels=3: must be even"),
        ("CogVideoX", {"latent_channels": 0}, "latent_channels=0: must be at least 1"),
        ("CogVideoX", {"widths": (4, 4)}, "must be three or more multiples of num_groups=2"),
    ],
)
def test_sizes_that_make_no_network_are_named(name, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL[name], **change)


def test_a_residual_network_has_moments_of_the_size_that_is_said():
    """Traced and not compiled: at the last level, which halves nothing, the shortcut is of its input's size too."""
    config = SMALL["Wan 2.2"]
    moments = jax.eval_shape(lambda x: config.build(rngs=nnx.Rngs(0)).encode(x), clip(config, 5))
    assert moments.shape == (1, 2, 1, 2, 2 * config.latent_channels)
