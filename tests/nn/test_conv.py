import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.nn.conv import CausalConv3d, Downsample, Padding, Upsample, fold, in_chunks, stream, unfold

# A chunk of another length makes other matrix shapes, for which XLA may add the same products in another
# order: equal up to float32 rounding, not bit for bit.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


apply = jax.jit(lambda layer, x, cache=None: layer(x, cache))
apply_all = jax.jit(stream)


def clip(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


def test_equals_a_3d_convolution_over_the_repeated_first_frame():
    conv = CausalConv3d(3, 5, (3, 3, 3), rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.arange(5.0)
    x = clip(2, 4, 6, 5, 3)
    padded = jnp.concatenate([x[:, :1], x[:, :1], x], axis=1)
    dims = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(
        padded, conv.kernel[...], (1, 1, 1), [(0, 0), (1, 1), (1, 1)], dimension_numbers=dims
    )
    np.testing.assert_allclose(apply(conv, x)[0], expected + jnp.arange(5.0), **ROUNDING)


def test_strides_and_zeros_equal_a_3d_convolution_over_padded_frames():
    """Every second row and column sees one beyond the end; every second frame sees itself and two before."""
    conv = CausalConv3d(3, 5, (3, 3, 3), stride=(2, 2, 2), padding=Padding.ZEROS, rngs=nnx.Rngs(0))
    x = clip(2, 4, 6, 8, 3)
    dims = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(
        x, conv.kernel[...], (2, 2, 2), [(1, 0), (0, 1), (0, 1)], dimension_numbers=dims
    )
    y, cache = apply(conv, x)
    np.testing.assert_allclose(y, expected, **ROUNDING)
    np.testing.assert_array_equal(cache, x[:, -1:])


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1), (2, 2, 2), (1, 2, 1), (1, 1, 2)])
def test_cells_that_meet_no_other_are_multiplied_by_the_kernel_as_a_matrix(kernel):
    """Where rows and columns of the kernel are those of the stride: as patches are embedded."""
    stride = (1, *kernel[1:])
    conv = CausalConv3d(3, 5, kernel, stride=stride, padding=Padding.ZEROS, rngs=nnx.Rngs(0))
    x = clip(2, 4, 6, 8, 3)
    cells = fold(x, stride, first=False)
    taps = conv.kernel[...].reshape(kernel[0], -1, 5)
    past = jnp.pad(cells, [(0, 0), (kernel[0] - 1, 0), (0, 0), (0, 0), (0, 0)])
    expected = sum(past[:, tap : tap + 4] @ taps[tap] for tap in range(kernel[0]))
    np.testing.assert_allclose(apply(conv, x)[0], expected, **ROUNDING)


def test_a_kernel_of_one_row_and_column_takes_no_convolution():
    conv = CausalConv3d(3, 5, (3, 1, 1), rngs=nnx.Rngs(0))
    assert "conv_general" not in str(jax.make_jaxpr(lambda x: conv(x)[0])(clip(1, 4, 6, 8, 3)))


def test_every_other_place_of_a_kernel_of_one_is_left_out_by_a_stride():
    conv = CausalConv3d(3, 5, (1, 1, 1), stride=(1, 2, 2), rngs=nnx.Rngs(0))
    x = clip(2, 3, 6, 8, 3)
    np.testing.assert_allclose(apply(conv, x)[0], x[:, :, ::2, ::2] @ conv.kernel[0, 0, 0], **ROUNDING)


def test_a_later_frame_changes_no_earlier_output():
    conv = CausalConv3d(3, 4, rngs=nnx.Rngs(0))
    x = clip(1, 6, 4, 4, 3)
    np.testing.assert_array_equal(apply(conv, x.at[:, 4:].add(1.0))[0][:, :4], apply(conv, x)[0][:, :4])


def test_a_still_video_gives_the_output_of_its_image_at_every_frame():
    conv = CausalConv3d(3, 4, rngs=nnx.Rngs(0))
    image = clip(1, 1, 4, 4, 3)
    still = apply(conv, jnp.repeat(image, 5, axis=1))[0]
    np.testing.assert_allclose(still, jnp.repeat(apply(conv, image)[0], 5, axis=1), **ROUNDING)


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2), (4, 2, 1)])
def test_unfold_inverts_fold(stride):
    x = clip(2, 9, 4, 4, 3)
    np.testing.assert_array_equal(unfold(fold(x, stride, first=True), stride, first=True), x)
    later = x[:, 1:]
    np.testing.assert_array_equal(unfold(fold(later, stride, first=False), stride, first=False), later)


def test_fold_puts_the_first_frame_alone():
    x = clip(1, 5, 2, 2, 1)
    cells = fold(x, (2, 1, 1), first=True)
    assert cells.shape == (1, 3, 2, 2, 2)
    np.testing.assert_array_equal(cells[:, 0], jnp.concatenate([x[:, 0], x[:, 0]], axis=-1))
    np.testing.assert_array_equal(cells[:, 1], jnp.concatenate([x[:, 1], x[:, 2]], axis=-1))


def test_upsampling_returns_to_the_size_before_downsampling():
    down = Downsample(4, 8, (2, 2, 2), rngs=nnx.Rngs(0))
    up = Upsample(8, 4, (2, 2, 2), rngs=nnx.Rngs(1))
    for num_frames, num_groups in ((1, 1), (5, 3)):
        h = jax.eval_shape(down, clip(1, num_frames, 4, 4, 4))[0]
        assert h.shape == (1, num_groups, 2, 2, 8)
        assert jax.eval_shape(up, h)[0].shape == (1, num_frames, 4, 4, 4)


def test_chunks_give_what_the_whole_clip_gives():
    """1 + 4k frames first, 4k later, the cache carried through jit; and the same carried by a scan."""
    layers = nnx.List(
        [
            CausalConv3d(3, 4, (3, 3, 3), rngs=nnx.Rngs(0)),
            Downsample(4, 8, (2, 2, 2), rngs=nnx.Rngs(1)),
            CausalConv3d(8, 8, (3, 1, 1), rngs=nnx.Rngs(2)),
            Upsample(8, 4, (2, 2, 2), rngs=nnx.Rngs(3)),
        ]
    )
    x = clip(1, 13, 4, 4, 3)
    whole, _ = apply_all(layers, x)
    parts, cache = [], None
    for start, stop in ((0, 5), (5, 9), (9, 13)):
        y, cache = apply_all(layers, x[:, start:stop], cache)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, **ROUNDING)

    _, cache = apply_all(layers, x[:, :5])
    chunks = jnp.moveaxis(x[:, 5:].reshape(1, 2, 4, 4, 4, 3), 1, 0)
    _, ys = jax.lax.scan(lambda cache, part: stream(layers, part, cache)[::-1], cache, chunks)
    np.testing.assert_allclose(jnp.concatenate([ys[0], ys[1]], axis=1), whole[:, 5:], **ROUNDING)


def test_kernels_name_one_logical_axis_per_dimension():
    conv = CausalConv3d(3, 4, rngs=nnx.Rngs(0))
    assert conv.kernel.get_metadata()["axes"] == (None, None, None, "channels_in", "channels_out")
    assert conv.bias.get_metadata()["axes"] == ("channels_out",)


def silent(layer: Downsample | Upsample) -> Downsample | Upsample:
    """Its projection gives zero: what is left is the shortcut."""
    for leaf in (layer.project.kernel, layer.project.bias):
        leaf[...] = jnp.zeros_like(leaf[...])
    return layer


def test_shortcuts_are_means_of_groups_of_channels_and_copies_of_them():
    """DC-AE, arXiv:2410.10733, section 3.2. Nothing is lost of a clip that is even in every cell."""
    down, up = (
        silent(Downsample(4, 8, (2, 2, 2), rngs=nnx.Rngs(0))),
        silent(Upsample(8, 4, (2, 2, 2), rngs=nnx.Rngs(1))),
    )
    x = clip(2, 5, 4, 6, 4)
    groups = fold(x, (2, 2, 2), first=True).reshape(2, 3, 2, 3, 4, 8)
    small = apply(down, x)[0]
    np.testing.assert_allclose(small, groups.mean(axis=-2), **ROUNDING)
    large = apply(up, small)[0]
    copies = jnp.concatenate([small] * 4, axis=-1)
    np.testing.assert_array_equal(large, unfold(copies, (2, 2, 2), first=True))
    even = jnp.broadcast_to(clip(2, 1, 1, 1, 1), (2, 5, 4, 4, 4))
    np.testing.assert_allclose(apply(up, apply(down, even)[0])[0], even, **ROUNDING)


def test_projections_are_added_to_the_shortcuts():
    down, up = Downsample(4, 8, (1, 2, 2), rngs=nnx.Rngs(0)), Upsample(8, 4, (1, 2, 2), rngs=nnx.Rngs(1))
    x, z = clip(1, 2, 4, 4, 4), clip(1, 2, 2, 2, 8)
    assert (down.project.kernel.shape, up.project.kernel.shape) == ((1, 1, 1, 16, 8), (1, 1, 1, 8, 16))
    projected = apply(down.project, fold(x, (1, 2, 2), first=True))[0]
    shortcut = fold(x, (1, 2, 2), first=True).reshape(1, 2, 2, 2, 2, 8).mean(-2)
    np.testing.assert_allclose(apply(down, x)[0], projected + shortcut, **ROUNDING)
    before = apply(up.project, z)[0] + jnp.concatenate([z, z], axis=-1)
    np.testing.assert_allclose(apply(up, z)[0], unfold(before, (1, 2, 2), first=True), **ROUNDING)


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 8, 9, 10])
def test_chunks_are_the_first_equal_ones_and_a_rest(num_frames):
    """A running sum, whose cache is the sum so far."""
    x, lengths = clip(2, num_frames, 3), set()

    def add_up(part, cache):
        lengths.add(part.shape[1])
        sums = jnp.cumsum(part, axis=1) + (0 if cache is None else cache[0])
        return sums, (sums[:, -1:],)

    sums, (last,) = in_chunks(add_up, x, first=3, later=2)
    np.testing.assert_allclose(sums, jnp.cumsum(x, axis=1), **ROUNDING)
    np.testing.assert_allclose(last, sums[:, -1:], **ROUNDING)
    later = max(num_frames - 3, 0)
    assert lengths == {min(num_frames, 3), *([2] if later >= 2 else []), *([1] if later % 2 else [])}
    continued, _ = in_chunks(add_up, x, (jnp.ones((2, 1, 3)),), first=3, later=2)
    np.testing.assert_allclose(continued, jnp.cumsum(x, axis=1) + 1, **ROUNDING)


def test_frames_that_make_no_whole_step_are_refused():
    conv = CausalConv3d(3, 4, stride=(2, 1, 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"CausalConv3d.stride=\(2, 1, 1\): 5 frames are no whole number of steps"):
        conv(clip(1, 5, 4, 4, 3))


def test_a_layer_that_begins_silent_gives_zero():
    conv = CausalConv3d(3, 4, zero_init=True, out_axis="embed", rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(apply(conv, clip(1, 2, 4, 4, 3))[0], 0.0)
    assert conv.kernel.get_metadata()["axes"] == (None, None, None, "channels_in", "embed")
    assert np.any(CausalConv3d(3, 4, rngs=nnx.Rngs(0)).kernel[...] != 0)


class Affine(nnx.Module):
    """x a + b, by what is given."""

    def __call__(self, x, cache, a, b):
        return x * a + b, cache


def test_what_is_given_reaches_every_layer():
    y, cache = stream([Affine(), Affine()], jnp.ones((1, 1, 1, 1, 1)), None, jnp.float32(2), jnp.float32(3))
    assert (float(y.item()), cache) == (2 * (2 * 1 + 3) + 3, (None, None))
