import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import TWO_LEVEL_VAE

from dit_video.vae.codec import LatentCodec, in_tiles, latent_statistics, tile_ramp, tile_starts, to_pixels, to_video
from dit_video.vae.video_vae import VideoVAE


@pytest.fixture(scope="module")
def codec(filled) -> LatentCodec:
    vae = filled(lambda: VideoVAE(TWO_LEVEL_VAE, rngs=nnx.Rngs(0)))
    return LatentCodec(vae, mean=np.arange(4.0), std=np.asarray([0.5, 1.0, 2.0, 4.0]))


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape), jnp.float32)


def video(num_frames: int = 9, rows: int = 16, columns: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, num_frames, rows, columns, 3), np.uint8)


def latents(t: int = 3, h: int = 2, w: int = 2) -> jax.Array:
    return normal(1, t, h, w, 4)


encode = jax.jit(LatentCodec.moments, static_argnames=("tile", "chunk"))
decode = jax.jit(LatentCodec.decode, static_argnames=("tile", "chunk"))


def test_uint8_survives_the_way_to_pixels_and_back():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1)
    assert to_pixels(every).min() == -1.0
    assert to_pixels(every).max() == 1.0
    np.testing.assert_array_equal(to_video(to_pixels(every)), every)
    np.testing.assert_array_equal(to_video(jnp.asarray([-3.0, 3.0]).reshape(1, 1, 1, 2, 1)).ravel(), [0, 255])


def test_unwhitening_inverts_whitening(codec):
    moments = normal(1, 3, 2, 2, 8)
    z = codec.unwhiten(codec.whiten(moments))
    np.testing.assert_allclose(z, moments[..., :4], rtol=1e-5, atol=1e-5)


def test_whitening_by_measured_statistics_gives_zero_mean_and_unit_variance(codec):
    moments = 2.0 + 0.5 * normal(16, 3, 4, 4, 8)
    samples = LatentCodec(codec.vae, *latent_statistics([moments])).whiten(moments, jax.random.key(0))
    np.testing.assert_allclose(samples.mean(axis=(0, 1, 2, 3)), 0.0, atol=0.15)
    np.testing.assert_allclose(samples.std(axis=(0, 1, 2, 3)), 1.0, atol=0.15)


def test_statistics_are_those_of_all_moments_at_once():
    """Total variance, over batches of unequal size and rank and a mean far from zero."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(100.0, 1.0, (n, 8)).astype(np.float32) for n in (1, 7, 30)]
    batches = [np.concatenate([b[..., :4], b[..., 4:] - 100.0], axis=-1) for b in batches]
    together = np.concatenate(batches).astype(np.float64)
    mean, std = latent_statistics([batches[0], batches[1][None], batches[2].reshape(2, 3, 5, 8)])
    np.testing.assert_allclose(mean, together[:, :4].mean(0), rtol=1e-6)
    variance = together[:, :4].var(0) + np.exp(together[:, 4:]).mean(0)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-5)
    with pytest.raises(ValueError, match="no moments given"):
        latent_statistics([])


def test_chunks_give_the_whole_clip(codec):
    """A first chunk, two in the scan and a rest. Other lengths are other matrix shapes, so up to float32 rounding;
    in uint8 that is at most one level."""
    chunked = encode(codec, video(25), chunk=2)
    np.testing.assert_allclose(chunked, encode(codec, video(25)), rtol=1e-4, atol=1e-4)
    z = latents(8)
    difference = decode(codec, z).astype(int) - decode(codec, z, chunk=2)
    assert np.abs(difference).max() <= 1


def test_one_tile_that_covers_all_is_the_untiled_result(codec):
    np.testing.assert_array_equal(decode(codec, latents(), tile=2), decode(codec, latents()))
    np.testing.assert_array_equal(encode(codec, video(), tile=8), encode(codec, video()))


def test_tiles_agree_with_the_whole_away_from_their_seams(codec):
    """Latents of 4 x 20 cells in tiles of 12, the second at cell 8: cells 0-5 and 14-19 are one tile's alone
    and lie beyond the convolutions' reach (2 cells) of the seam."""
    z = latents(2, 4, 20)
    tiled, whole = decode(codec, z, tile=12).astype(int), decode(codec, z).astype(int)
    assert tile_starts(20, 12) == [0, 8]
    assert np.abs(tiled - whole)[..., : 6 * 8, :].max() <= 1
    assert np.abs(tiled - whole)[..., 14 * 8 :, :].max() <= 1
    x = video(5, 32, 160)
    tiled, whole = encode(codec, x, tile=12, chunk=1), encode(codec, x)
    np.testing.assert_allclose(tiled[..., :6, :], whole[..., :6, :], rtol=1e-3, atol=1e-3)


def test_blending_pointwise_maps_changes_nothing():
    """Weights sum to one: where tiles agree, the blend is what they agree on."""
    x = normal(1, 2, 11, 7, 3)
    blended = in_tiles(lambda tile: 2.0 * tile, x, 4, cells_in=(1, 1), cells_out=(1, 1))
    np.testing.assert_allclose(blended, 2.0 * x, rtol=1e-5)
    with pytest.raises(ValueError, match="tile=1"):
        in_tiles(lambda tile: tile, x, 1, cells_in=(1, 1), cells_out=(1, 1))


@pytest.mark.parametrize(("size", "tile"), [(1, 1), (8, 8), (9, 8), (64, 16), (17, 5), (3, 2)])
def test_tiles_cover_all_and_overlap_by_a_quarter(size, tile):
    starts = tile_starts(size, tile)
    assert starts[0] == 0
    assert starts[-1] == size - tile
    assert all(b - a <= tile - max(1, tile // 4) for a, b in itertools.pairwise(starts))
    assert tile_ramp(tile, 8).min() > 0.0


def test_wrong_sizes_are_refused_before_tiling(codec):
    with pytest.raises(ValueError, match="frames=8"):
        codec.moments(video(8), tile=2)


def test_ramps_rise_from_either_edge_over_a_quarter_of_a_tile():
    """Through the middles of output positions; of a tile of fewer than four cells, over one cell."""
    np.testing.assert_array_equal(tile_ramp(4, 1), [0.5, 1, 1, 0.5])
    np.testing.assert_array_equal(tile_ramp(2, 2), [0.25, 0.75, 0.75, 0.25])
    rise = [0.125, 0.375, 0.625, 0.875]
    np.testing.assert_array_equal(tile_ramp(8, 2), [*rise, *[1] * 8, *rise[::-1]])


@pytest.mark.parametrize(
    ("size", "tile", "starts"),
    [
        (5, 5, [0]),
        (9, 8, [0, 1]),
        (14, 8, [0, 6]),
        (15, 8, [0, 4, 7]),
        (21, 8, [0, 4, 9, 13]),
        (64, 16, [0, 12, 24, 36, 48]),
        (17, 5, [0, 4, 8, 12]),
        (3, 2, [0, 1]),
    ],
)
def test_tiles_are_the_fewest_that_overlap_by_a_quarter_and_lie_evenly(size, tile, starts):
    assert tile_starts(size, tile) == starts


def test_tiles_that_disagree_are_blended_by_their_ramps():
    """Of cells of 2 x 3 positions and 4 x 1, what a loop over tiles makes of maps that see all of their tile."""
    cells_in, cells_out, tile = (2, 3), (4, 1), 4
    x = np.random.default_rng(5).normal(size=(1, 2, 7 * 2, 9 * 3, 1)).astype(np.float32)

    def apply(part):
        b, t, h, w, _ = part.shape
        rows, columns = h // 2 * 4, w // 3
        slope = jnp.arange(rows)[:, None, None] - 2.0 * jnp.arange(columns)[None, :, None]
        return part.mean((2, 3, 4))[..., None, None, None] * slope * jnp.ones((b, t, 1, 1, 2))

    total, weights = np.zeros((1, 2, 28, 9, 2)), np.zeros((28, 9, 1))
    for row, column in itertools.product(tile_starts(7, 4), tile_starts(9, 4)):
        weight = np.multiply.outer(tile_ramp(4, 4), tile_ramp(4, 1))[..., None]
        part = x[:, :, 2 * row : 2 * (row + 4), 3 * column : 3 * (column + 4)]
        total[:, :, 4 * row : 4 * (row + 4), column : column + 4] += apply(part) * weight
        weights[4 * row : 4 * (row + 4), column : column + 4] += weight
    blended = in_tiles(apply, jnp.asarray(x), tile, cells_in=cells_in, cells_out=cells_out)
    np.testing.assert_allclose(blended, total / weights, rtol=1e-5, atol=1e-5)


def test_sides_shorter_than_a_tile_are_taken_whole():
    x = normal(1, 1, 3, 9, 1)
    seen = []
    in_tiles(lambda part: seen.append(part.shape) or part, x, 4, cells_in=(1, 1), cells_out=(1, 1))
    assert set(seen) == {(1, 1, 3, 4, 1)}
    assert in_tiles(lambda part: part.sum() + part, x, 9, cells_in=(1, 1), cells_out=(1, 1)).shape == x.shape


def test_a_tile_is_of_two_cells_at_least():
    x = normal(1, 1, 3, 3, 1)
    np.testing.assert_allclose(in_tiles(lambda p: p, x, 2, cells_in=(1, 1), cells_out=(1, 1)), x, rtol=1e-5)


def test_chunks_are_of_whole_latent_frames(codec):
    for call in (lambda: codec.moments(video(9), chunk=0), lambda: codec.decode(latents(), chunk=0)):
        with pytest.raises(ValueError, match="chunk=0: must be a multiple of 1"):
            call()


def test_without_statistics_latents_are_whitened_already(codec):
    plain = LatentCodec(codec.vae)
    moments = normal(1, 2, 2, 2, 8)
    np.testing.assert_array_equal(plain.whiten(moments), moments[..., :4])
    np.testing.assert_allclose(codec.whiten(moments), (moments[..., :4] - codec.mean) / codec.std, rtol=1e-6)


def test_grey_levels_are_rounded_to_the_nearest():
    pixels = jnp.asarray([-1.0, 0.0, 1.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1]).reshape(1, 1, 1, 5, 1)
    np.testing.assert_array_equal(to_video(pixels).ravel(), [0, 128, 255, 10, 11])
    np.testing.assert_allclose(
        to_pixels(np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3, 1)).ravel(), [-1, -0.6, 1]
    )
