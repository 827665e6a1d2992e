import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.nn.embed import LabelEmbedding, TimeEmbedding, VectorEmbedding, sinusoid
from dit_video.nn.linear import linear
from dit_video.nn.modulation import AdaLN, ModulationOffset, gated, modulate
from dit_video.nn.patches import from_tokens, latent_shape, patchify, per_patch, to_tokens, unpatchify
from dit_video.nn.positions import NTKAware, patch_angles, rope_angles, rotate, sincos_places, sincos_positions

SHAPES = [((2, 4, 6), (1, 2, 2)), ((6, 6, 5), (2, 3, 1)), ((3, 4, 10), (3, 1, 5)), ((1, 2, 2), (1, 1, 1))]
FLOAT32 = jnp.dtype("float32")


def numbers(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_unpatchify_inverts_patchify(shape, patch_size):
    latents = numbers(2, *shape, 3)
    patches = patchify(latents, patch_size)
    num_frames, rows, columns = (n // p for n, p in zip(shape, patch_size))
    assert patches.shape == (2, rows * columns, num_frames, np.prod(patch_size) * 3)
    np.testing.assert_array_equal(unpatchify(patches, patch_size, shape), latents)


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_patches_are_in_row_major_order_and_so_are_their_cells(shape, patch_size):
    latents = numbers(1, *shape, 3)
    patches = patchify(latents, patch_size)
    (pt, ph, pw), (_, rows, columns) = patch_size, (n // p for n, p in zip(shape, patch_size))
    for frame, row, column in itertools.product(range(shape[0] // pt), range(rows), range(columns)):
        cells = latents[
            0,
            frame * pt : (frame + 1) * pt,
            row * ph : (row + 1) * ph,
            column * pw : (column + 1) * pw,
        ]
        np.testing.assert_array_equal(patches[0, row * columns + column, frame], cells.ravel())


def test_latents_that_do_not_fill_patches_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) do not divide into patches of \(1, 2, 2\)"):
        patchify(jnp.zeros((1, 2, 3, 4, 1)), (1, 2, 2))


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_angles_are_those_of_each_patchs_first_cell_whatever_the_patch_size(shape, patch_size):
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    patches = patchify(jnp.asarray(cells[None], jnp.float32), patch_size)
    positions = np.asarray(patches[0, :, :, :3]).reshape(-1, 3)
    np.testing.assert_array_equal(patch_angles(shape, patch_size, 16), rope_angles(positions, 16))


@pytest.mark.parametrize("head_dim", [6, 16, 64])
def test_rope_logits_depend_on_relative_positions_only(head_dim):
    q, k = numbers(1, 1, 1, head_dim), jnp.flip(numbers(1, 1, 1, head_dim))

    def logit(query_at, key_at):
        a, b = (rope_angles(np.array([p], np.float32), head_dim) for p in (query_at, key_at))
        return float(jnp.sum(rotate(q, a) * rotate(k, b)))

    here = logit([1, 2, 3], [4, 0, 5])
    # Sums of up to 64 products of order 1 whose angles differ in the last digit of float32.
    assert logit([8, 4, 4], [11, 2, 6]) == pytest.approx(here, abs=1e-4)
    for axis in range(3):
        moved = np.array([4, 0, 5]) + np.eye(3)[axis]
        assert abs(logit([1, 2, 3], moved.tolist()) - here) > 1e-2, f"axis {axis} does not matter"


def test_rotation_keeps_norms_and_does_nothing_at_the_origin():
    x = numbers(2, 8, 3, 16)
    angles = patch_angles((2, 2, 2), (1, 1, 1), 16)
    rotated = rotate(x, angles)
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
    assert rotate(x.astype(jnp.bfloat16), angles).dtype == jnp.bfloat16


def test_each_axis_has_planes_of_its_own_and_time_takes_what_is_left_over():
    angles = rope_angles(np.eye(3, dtype=np.float32), 64)
    assert angles.shape == (3, 32)
    owners = [np.flatnonzero(row) for row in angles]
    assert [len(o) for o in owners] == [12, 10, 10]
    assert len(np.unique(np.concatenate(owners))) == 32
    np.testing.assert_array_equal([row.max() for row in angles], 1.0)


def test_rope_needs_an_even_head_size():
    with pytest.raises(ValueError, match="head_dim=7"):
        rope_angles(np.zeros((1, 3), np.float32), 7)


def test_sinusoids_lie_on_circles_and_tell_levels_apart():
    t = jnp.linspace(0, 1, 1001)[:, None]
    features = sinusoid(t, 64)
    assert features.shape == (1001, 1, 64)
    cos, sin = jnp.split(features, 2, axis=-1)
    np.testing.assert_allclose(cos**2 + sin**2, 1.0, rtol=1e-5)
    # DiT's scale: a thousandth of the path turns the fastest circle by one radian.
    np.testing.assert_allclose([features[1, 0, 0], features[1, 0, 32]], [np.cos(1), np.sin(1)], rtol=1e-4)
    assert float(jnp.min(jnp.linalg.norm(features[1:] - features[:-1], axis=-1))) > 0.5


def test_an_offset_moves_the_timestep_by_one():
    t = jnp.arange(1001)[:, None] / 1000
    np.testing.assert_allclose(sinusoid(t[1:], 64, offset=-1), sinusoid(t[:-1], 64), atol=2e-4)


def test_the_ladder_of_frequencies_ends_at_a_ten_thousandth_or_a_step_before():
    slowest = {shift: float(sinusoid(jnp.ones((1, 1)), 64, frequency_shift=shift)[0, 0, -1]) for shift in (0, 1)}
    np.testing.assert_allclose(np.arcsin(slowest[1]), 1000 * 1e-4, rtol=1e-4)
    np.testing.assert_allclose(np.arcsin(slowest[0]), 1000 * 1e-4 ** (31 / 32), rtol=1e-4)


def test_places_have_vectors_that_tell_column_then_row_and_no_frame():
    vectors = sincos_positions((2, 4, 6), (1, 2, 2), 16)
    assert vectors.shape == (2 * 2 * 3, 16)
    places = itertools.product(range(2), range(3), range(2))
    frequencies = [1.0, 0.1, 0.01, 0.001]
    for vector, (row, column, _) in zip(vectors, places, strict=True):
        for half, place in ((vector[:8], column), (vector[8:], row)):
            phase = place * np.array(frequencies)
            np.testing.assert_allclose(half, [*np.sin(phase), *np.cos(phase)], atol=1e-6)


def test_places_are_stretched_over_the_grid_that_they_are_of():
    fine, coarse = (sincos_positions((1, n, n), (1, 1, 1), 16, grid=4).reshape(n, n, 16) for n in (8, 4))
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-6)
    np.testing.assert_array_equal(coarse.reshape(16, 16), sincos_positions((1, 4, 4), (1, 1, 1), 16))


def test_time_is_embedded_level_by_level():
    embed = jax.jit(TimeEmbedding(16, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    t = jax.random.uniform(jax.random.key(1), (2, 3))
    together = embed(t)
    assert together.shape == (2, 3, 16)
    for frame in range(3):
        np.testing.assert_allclose(together[:, frame], embed(t[:, frame : frame + 1])[:, 0], rtol=1e-5, atol=1e-7)


def test_labels_have_a_row_each_and_one_for_none():
    embed = LabelEmbedding(3, 8, rngs=nnx.Rngs(0))
    rows = embed(jnp.arange(4))
    assert rows.shape == (4, 8)
    assert len(np.unique(np.asarray(rows), axis=0)) == 4
    assert np.isfinite(rows).all()
    assert np.isnan(embed(jnp.array([4, 1000]))).all(), "no row of the table stands for a class that is not in it"


def test_fresh_modulation_is_the_identity_with_its_gate_shut():
    shift, scale, gate = AdaLN(3, 8, dtype=FLOAT32, rngs=nnx.Rngs(0))(numbers(2, 1, 8))
    assert shift.shape == (2, 1, 8)
    np.testing.assert_array_equal(gate, 0.0)
    x = numbers(2, 12, 8)
    np.testing.assert_array_equal(modulate(x, shift, scale), x)


def test_modulation_is_affine_per_frame():
    x, shift, scale = numbers(2, 12, 8), numbers(2, 3, 8), 2 * numbers(2, 3, 8)
    actual, by_frame = modulate(x, shift, scale).reshape(2, 4, 3, 8), x.reshape(2, 4, 3, 8)
    np.testing.assert_allclose(actual[1, 3, 2], by_frame[1, 3, 2] * (1 + scale[1, 2]) + shift[1, 2], rtol=1e-6)
    np.testing.assert_array_equal(gated(scale, x).reshape(2, 4, 3, 8)[1, 3, 2], by_frame[1, 3, 2] * scale[1, 2])


@pytest.mark.parametrize("num_frames", [1, 3])
def test_the_backward_pass_keeps_no_vectors_spread_over_tokens(num_frames):
    x, gate = numbers(2, 12, 8), numbers(2, num_frames, 8)
    _, gated_back = jax.vjp(gated, gate, x)
    _, modulated_back = jax.vjp(modulate, x, gate, gate)
    for back in (gated_back, modulated_back):
        assert sum(leaf.size for leaf in jax.tree.leaves(back)) == x.size + gate.size


def test_frames_that_share_their_vectors_are_modulated_as_a_clip():
    x, shift, scale = numbers(2, 12, 8), numbers(2, 1, 8), 2 * numbers(2, 1, 8)
    three = [jnp.repeat(vector, 3, axis=1) for vector in (shift, scale)]
    np.testing.assert_array_equal(modulate(x, *three), modulate(x, shift, scale))
    np.testing.assert_array_equal(gated(three[0], x), gated(shift, x))


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_tokens_are_a_place_with_all_its_frames_and_then_the_next(shape, patch_size):
    latents = numbers(2, *shape, 3)
    tokens, patches = to_tokens(latents, patch_size), patchify(latents, patch_size)
    np.testing.assert_array_equal(tokens, patches.reshape(2, -1, patches.shape[-1]))
    np.testing.assert_array_equal(from_tokens(tokens, patch_size, shape), latents)
    assert latent_shape(latents) == shape


def test_frames_that_share_a_patch_share_the_level_of_the_first():
    levels = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(per_patch(levels, (2, 3, 5)), levels[:, [0, 2, 4]])
    np.testing.assert_array_equal(per_patch(levels, (1, 3, 5)), levels)
    np.testing.assert_array_equal(per_patch(levels[:, :1], (2, 3, 5)), levels[:, :1])


def test_angles_are_positions_times_a_ladder_of_frequencies():
    """theta^(-i / n) for plane i of the n that an axis has (2104.09864, equation 15)."""
    positions = np.array([[2.0, 3.0]], np.float32)
    expected = [2, 2 * 10_000 ** (-1 / 3), 2 * 10_000 ** (-2 / 3), 3, 3 * 10_000**-0.5]
    np.testing.assert_allclose(rope_angles(positions, 10)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        rope_angles(positions, 10, theta=100.0)[0], [2, *[2 * 100 ** (-i / 3) for i in (1, 2)], 3, 0.3], rtol=1e-6
    )
    # An axis without planes has no angles.
    np.testing.assert_allclose(rope_angles(np.array([[2.0, 3.0, 4.0]], np.float32), 2), [[2.0]])


def test_ntk_aware_positions_turn_the_slowest_plane_as_far_as_in_training_and_the_fastest_as_fast():
    """theta s^(n / (n - 1)) for the n planes of an axis that is s times as long (2309.00071, eq. 11 to 13)."""
    trained, larger = (4, 6, 8), (8, 18, 8)
    stretch = NTKAware(trained=trained).stretch(larger)
    assert stretch == (2, 3, 1)
    # Time has 4 planes, rows and columns 3 each.
    positions = np.array([[5, 7, 9]], np.float32)
    stretched, plain = (rope_angles(positions, 20, stretch=s)[0] for s in (stretch, None))
    thetas = 10_000 * np.array([2 ** (4 / 3), 3 ** (3 / 2), 1])
    ladders = [p * theta ** (-np.arange(n) / n) for p, theta, n in zip((5, 7, 9), thetas, (4, 3, 3))]
    np.testing.assert_allclose(stretched, np.concatenate(ladders), rtol=1e-6)
    np.testing.assert_allclose(stretched[[0, 4]], plain[[0, 4]], rtol=1e-6)
    np.testing.assert_allclose(stretched[[3, 6]], plain[[3, 6]] / [2, 3], rtol=1e-6)
    np.testing.assert_array_equal(stretched[7:], plain[7:])
    # An axis of one plane has the fastest alone.
    np.testing.assert_array_equal(rope_angles(positions, 6, stretch=stretch), rope_angles(positions, 6))
    frames = np.arange(0, 8, 2)
    np.testing.assert_allclose(
        patch_angles(larger, (2, 1, 1), 20, frames, stretch), patch_angles(larger, (2, 1, 1), 20, stretch=stretch)
    )


@pytest.mark.parametrize("shape", [(4, 6, 8), (1, 6, 4)])
def test_at_the_size_of_training_and_below_every_rule_of_extrapolation_is_the_same(shape):
    stretch = NTKAware(trained=(4, 6, 8)).stretch(shape)
    np.testing.assert_array_equal(
        patch_angles(shape, (1, 2, 2), 20, stretch=stretch), patch_angles(shape, (1, 2, 2), 20)
    )


def test_places_of_a_grid_are_sums_of_rows_and_columns_in_row_major_order():
    rows, columns = np.arange(2.0), np.arange(3.0)
    np.testing.assert_allclose(sincos_places(rows, columns, 16), sincos_positions((1, 2, 3), (1, 1, 1), 16), atol=1e-6)


def test_a_linear_layer_is_xavier_s_with_its_axes_named():
    layer = linear(64, 192, ("embed", "mlp"), rngs=nnx.Rngs(0), dtype=FLOAT32)
    assert float(jnp.abs(layer.kernel[...]).max()) == pytest.approx((6 / 256) ** 0.5, rel=0.01)
    np.testing.assert_array_equal(layer.bias[...], np.zeros(192))
    assert layer.kernel.get_metadata()["axes"] == ("embed", "mlp")
    assert layer.bias.get_metadata()["axes"] == ("mlp",)
    assert linear(2, 3, (None, None), rngs=nnx.Rngs(0), dtype=FLOAT32, use_bias=False).bias is None


def test_a_vector_is_embedded_by_two_layers_with_silu_between():
    embed = VectorEmbedding(5, 64, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert float(jnp.std(embed.down.kernel[...])) == pytest.approx(0.02, rel=0.05)
    x = numbers(3, 5)
    inner = x @ embed.up.kernel[...]
    np.testing.assert_allclose(embed(x), (inner * jax.nn.sigmoid(inner)) @ embed.down.kernel[...], rtol=1e-4, atol=1e-7)


def test_a_level_is_embedded_by_the_256_features_of_its_sinusoid():
    embed = TimeEmbedding(16, dtype=FLOAT32, rngs=nnx.Rngs(0), offset=1, frequency_shift=1)
    t = jnp.array([[0.25, 0.5]])
    features = sinusoid(t, 256, offset=1, frequency_shift=1)
    np.testing.assert_allclose(embed(t), VectorEmbedding.__call__(embed, features), rtol=1e-6)
    plain = TimeEmbedding(16, dtype=FLOAT32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(plain(t), VectorEmbedding.__call__(plain, sinusoid(t, 256)), rtol=1e-6)


def test_an_offset_is_zero_at_first_and_then_added_vector_by_vector():
    offset = ModulationOffset(3, 8, rngs=nnx.Rngs(0))
    shared = [numbers(2, 1, 8).astype(jnp.bfloat16) for _ in range(3)]
    for found, vector in zip(offset(shared), shared, strict=True):
        np.testing.assert_array_equal(found, vector, strict=True)
    offset.table[...] = jnp.arange(24.0).reshape(3, 8)
    for i, (found, vector) in enumerate(zip(offset(shared), shared, strict=True)):
        np.testing.assert_array_equal(found, vector + jnp.arange(8 * i, 8 * i + 8).astype(jnp.bfloat16))


def test_modulation_is_a_projection_of_silu_of_the_condition():
    layer, condition = AdaLN(2, 8, dtype=FLOAT32, rngs=nnx.Rngs(0)), numbers(2, 3, 8)
    layer.projection.kernel[...] = numbers(8, 2, 8)
    inner = condition * jax.nn.sigmoid(condition)
    for i, vector in enumerate(layer(condition)):
        np.testing.assert_allclose(vector, inner @ numbers(8, 2, 8)[:, i], rtol=1e-5, atol=1e-5)
