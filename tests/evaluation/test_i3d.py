import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.evaluation import i3d, i3d_weights
from dit_video.evaluation.frechet import frechet_distance
from dit_video.evaluation.protocol import ResizeRule


def moving_stripes(num_clips, num_frames, height, width):
    """Structured colour clips: each has its own pattern, drifting."""
    n, t, h, w, c = np.ogrid[:num_clips, :num_frames, :height, :width, :3]
    wave = np.sin(0.3 * (1 + n) * w + 0.2 * h + 0.7 * t * (1 + c)) + np.cos(0.1 * h * (1 + c) - 0.5 * t)
    return np.round(127.5 + 63 * wave).astype(np.uint8)


class Reference:
    """The published graph in NumPy and float64: unfolded batch norm, 3-D windows, TF's order of operations."""

    def __init__(self):
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in i3d_weights.load().items()}

    def __call__(self, frames, rule):
        """uint8 [T H W 3] -> [400]."""
        x = 2 * self.resize(frames.astype(np.float64), rule) / 255 - 1
        x = self.unit(x, "Conv3d_1a_7x7", stride=2)
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        x = self.unit(self.unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        x = self.mixed(self.mixed(x, "Mixed_3b"), "Mixed_3c")
        x = self.pool(x, (3, 3, 3), (2, 2, 2))
        for letter in "bcdef":
            x = self.mixed(x, f"Mixed_4{letter}")
        x = self.pool(x, (2, 2, 2), (2, 2, 2))
        x = self.mixed(self.mixed(x, "Mixed_5b"), "Mixed_5c")
        averages = np.stack([x[i : i + 2].mean(axis=(0, 1, 2)) for i in range(len(x) - 1)])
        head = "Logits/Conv3d_0c_1x1"
        return (averages @ self.tensors[f"{head}/kernel"][0, 0, 0] + self.tensors[f"{head}/bias"]).mean(axis=0)

    def unit(self, x, name, stride=1):
        kernel = self.tensors[f"{name}/kernel"]
        x = self.padded(x, kernel.shape[:3], (stride,) * 3, 0.0)
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:3], axis=(0, 1, 2))
        windows = windows[::stride, ::stride, ::stride]
        frames = [np.einsum("hwcijk,ijkcd->hwd", frame, kernel, optimize=True) for frame in windows]
        mean, variance = self.tensors[f"{name}/mean"], self.tensors[f"{name}/var"]
        return np.maximum((np.stack(frames) - mean) / np.sqrt(variance + 1e-3) + self.tensors[f"{name}/bias"], 0)

    def mixed(self, x, name):
        branch_1 = self.unit(x, f"{name}/Branch_1/Conv3d_0a_1x1")
        branch_2 = self.unit(x, f"{name}/Branch_2/Conv3d_0a_1x1")
        pooled = self.pool(x, (3, 3, 3), (1, 1, 1))
        branches = [
            self.unit(x, f"{name}/Branch_0/Conv3d_0a_1x1"),
            self.unit(branch_1, f"{name}/Branch_1/Conv3d_0b_3x3"),
            self.unit(branch_2, f"{name}/Branch_2/Conv3d_0b_3x3"),
            self.unit(pooled, f"{name}/Branch_3/Conv3d_0b_1x1"),
        ]
        return np.concatenate(branches, axis=-1)

    def pool(self, x, window, stride):
        x = self.padded(x, window, stride, -np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(x, window, axis=(0, 1, 2))
        return windows[:: stride[0], :: stride[1], :: stride[2]].max(axis=(-3, -2, -1))

    def padded(self, x, window, stride, value):
        """TF SAME: the output has ceil(size / stride) elements and the odd element of padding comes last."""
        padding = []
        for size, extent, step in zip(x.shape, window, stride):
            remainder = size % step
            total = max(extent - (step if remainder == 0 else remainder), 0)
            padding.append((total // 2, total - total // 2))
        return np.pad(x, [*padding, (0, 0)], constant_values=value)

    def resize(self, x, rule):
        """Four neighbours of each pixel, one axis after the other."""
        for axis in (1, 2):
            size = x.shape[axis]
            at = np.arange(224) * size / 224 if rule == "tf1" else (np.arange(224) + 0.5) * size / 224 - 0.5
            at = np.maximum(at, 0)
            low = np.floor(at).astype(int)
            high = np.minimum(low + 1, size - 1)
            part = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
            x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
        return x


@pytest.fixture(scope="module")
def reference():
    return Reference()


@pytest.mark.parametrize(
    ("shape", "rule"),
    [((3, 9, 32, 48), "tf1"), ((1, 12, 240, 200), "half_pixel")],
)
@pytest.mark.slow
def test_logits_agree_with_an_independent_float64_network(reference, shape, rule):
    videos = moving_stripes(*shape)
    expected = reference(videos[-1], rule)
    actual = i3d.logits(videos, resize=rule, batch_size=2)[-1]
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize(
    ("num_frames", "published"),
    [
        (15, 133.90843668),  # TF-Hub's graph on the example of google-research/frechet_video_distance.
        pytest.param(
            30, 151.39244, marks=pytest.mark.slow
        ),  # README of JunyaoHu/common_metrics_on_video_quality, TF 1.15.
    ],
)
def test_black_against_white_has_the_published_distance(num_frames, published):
    """All clips of a set are equal there, so that its FVD is the squared distance of two logits."""
    videos = np.zeros((2, num_frames, 64, 64, 3), np.uint8)
    videos[1] = 255
    black, white = i3d.logits(videos).astype(np.float64)
    assert np.square(black - white).sum() == pytest.approx(published, rel=1e-5)


@pytest.mark.slow
def test_random_clips_have_the_published_distance():
    """universome/fvd-comparison: 128 random clips of each of two seeds, fed as they are, measured by TF-Hub's graph."""
    definition, weights = i3d.pretrained()
    forward = jax.jit(lambda weights, x: nnx.merge(definition, weights).logits(x))

    def logits(seed):
        clips = np.random.RandomState(seed).rand(128, 16, 224, 224, 3).astype(np.float32)
        return np.concatenate([np.asarray(forward(weights, clips[i : i + 4])) for i in range(0, 128, 4)])

    assert frechet_distance(logits(1), logits(2)) == pytest.approx(10.13808536529541, rel=1e-5)


@pytest.mark.slow
def test_a_clip_has_the_same_logits_in_every_place_of_every_batch():
    videos = moving_stripes(3, 9, 32, 48)
    together = i3d.logits(videos, batch_size=2)
    assert together.shape == (3, 400)
    assert together.dtype == np.float32
    # The third clip fills a batch of its own, up with itself.
    np.testing.assert_allclose(together, i3d.logits(videos[::-1], batch_size=2)[::-1], rtol=0, atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (np.zeros((1, 9, 8, 8, 3), np.float32), "are float32, must be uint8"),
        (np.zeros((9, 8, 8, 3), np.uint8), r"shape \(9, 8, 8, 3\), must be \[N T H W 3\]"),
        (np.zeros((1, 9, 8, 8, 1), np.uint8), r"must be \[N T H W 3\]"),
        (np.zeros((0, 9, 8, 8, 3), np.uint8), "no clip"),
        (np.zeros((1, 8, 8, 8, 3), np.uint8), "T=8 frames, but I3D needs at least 9"),
    ],
)
def test_bad_clips_are_named(videos, message):
    with pytest.raises(ValueError, match=message):
        i3d.logits(videos)


def test_bad_options_are_named():
    videos = np.zeros((1, 9, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="'bicubic' is not a valid ResizeRule"):
        i3d.logits(videos, resize="bicubic")
    with pytest.raises(ValueError, match="batch_size=0, must be at least 1"):
        i3d.logits(videos, batch_size=0)


@pytest.mark.parametrize("rule", ["tf1", "half_pixel"])
@pytest.mark.parametrize("size", [(32, 448), (225, 224), (1, 100)])
def test_resize_agrees_with_interpolation_by_neighbours(reference, size, rule):
    video = np.random.default_rng(0).integers(0, 256, (1, 2, *size, 3), np.uint8)
    expected = reference.resize(video[0].astype(np.float64), rule) / 127.5 - 1
    np.testing.assert_allclose(i3d.preprocess(video, ResizeRule(rule))[0], expected, atol=2e-6)


@pytest.mark.parametrize(("window", "stride"), [(7, 2), (3, 1)])
@pytest.mark.parametrize("num_frames", [1, 2, 9, 16])
def test_filtered_convolution_is_the_plain_sum(reference, window, stride, num_frames):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, num_frames, 5, 4, 3)).astype(np.float32)
    kernel = random.normal(size=(window, window, window, 3, 2)).astype(np.float32)
    bias = random.normal(size=2).astype(np.float32)
    padded = [reference.padded(clip.astype(np.float64), (window,) * 3, (stride,) * 3, 0.0) for clip in x]
    windows = np.lib.stride_tricks.sliding_window_view(np.stack(padded), (window,) * 3, axis=(1, 2, 3))
    expected = np.einsum("bthwcijk,ijkcd->bthwd", windows[:, ::stride, ::stride, ::stride], kernel) + bias
    layer = i3d.FilteredConv3D(kernel, bias, stride=stride)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_stacked_convolution_is_the_filtered_one():
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(1, 5, 4, 4, 3)), jnp.float32)
    kernel, bias = random.normal(size=(3, 3, 3, 3, 2)).astype(np.float32), np.ones(2, np.float32)
    filtered = i3d.FilteredConv3D(kernel, bias)(x)
    np.testing.assert_allclose(i3d.Conv3D(kernel, bias)(x), filtered, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_taps", [3, 4])
def test_minimal_filter_is_exact(num_taps):
    of_inputs, of_taps, to_outputs = i3d.minimal_filter(num_taps)
    assert len(of_inputs) == i3d.OUTPUTS + num_taps - 1
    random = np.random.default_rng(2)
    taps, inputs = random.normal(size=num_taps), random.normal(size=len(of_inputs))
    expected = [taps @ inputs[i : i + num_taps] for i in range(i3d.OUTPUTS)]
    np.testing.assert_allclose(to_outputs @ ((of_taps @ taps) * (of_inputs @ inputs)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("window", "stride"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))],
)
def test_pool_is_the_maximum_of_each_window_and_padding_never_wins(reference, window, stride):
    x = -1 - np.random.default_rng(3).random((1, 5, 6, 7, 2), np.float32)
    expected = reference.pool(x[0], window, stride)
    np.testing.assert_array_equal(i3d.max_pool(jnp.asarray(x), window=window, stride=stride)[0], expected)


def test_every_tensor_is_used_once():
    tensors = i3d_weights.load()
    with pytest.raises(ValueError, match="1 tensors have no use, the first is surplus"):
        i3d.I3D({**tensors, "surplus": np.zeros(1, np.float32)})
    del tensors["Conv3d_2b_1x1/var"]
    with pytest.raises(ValueError, match="Conv3d_2b_1x1/var"):
        i3d.I3D(tensors)
