"""I3D, the feature network of FVD: Inception-v1 inflated to video, trained on Kinetics-400 RGB.

Carreira and Zisserman, "Quo Vadis, Action Recognition?" (2017). Unterthiner et al., "Towards Accurate Generative
Models of Video" (2018) define FVD on its 400 logits, averaged over time, before softmax (TF-Hub
`deepmind/i3d-kinetics-400/1`, tensor RGB/inception_i3d/Mean). TF `SAME` padding; batch norm with epsilon 1e-3 and
no scale, folded into the kernels here; frames resized to 224x224 without keeping their aspect ratio; all in full
float32.

Its 3-D convolutions are written as 2-D ones, which XLA runs on CPU at the speed of a matrix product; in the four
that take most of the arithmetic, minimal filtering along time halves it (see `FilteredConv3D`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from dit_video.arrays import Video
from dit_video.distributed.sharding import replicated
from dit_video.evaluation import i3d_weights, protocol
from dit_video.evaluation.protocol import ResizeRule

SIZE = 224
NUM_CLASSES = 400
MIN_FRAMES = 9
"""Shorter clips leave one frame before the final average over two, and TF-Hub's graph answers NaN."""
BATCH_NORM_EPSILON = 1e-3
PRECISION = jax.lax.Precision.HIGHEST
"""Otherwise GPUs round to TF32 and TPUs to bfloat16, which moves logits by 1e-3 and more."""
OUTPUTS = 4
"""Frames that one step of minimal filtering gives."""


class I3D(nnx.Module):
    """I3D network: logits of uint8 clips, preprocessing included."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        """Builds the network from tensors named as `i3d_weights.load` says; each is used exactly once.

        Raises:
            ValueError: a tensor is missing or left over.
        """
        tensors = dict(tensors)
        self.conv_1a = FilteredConv3D(*fold(tensors, "Conv3d_1a_7x7"), stride=2)
        self.conv_2b = Pointwise(*fold(tensors, "Conv3d_2b_1x1"))
        self.conv_2c = FilteredConv3D(*fold(tensors, "Conv3d_2c_3x3"))
        self.mixed_3 = nnx.List([Inception(tensors, f"Mixed_3{letter}", FilteredConv3D) for letter in "bc"])
        self.mixed_4 = nnx.List([Inception(tensors, f"Mixed_4{letter}", Conv3D) for letter in "bcdef"])
        self.mixed_5 = nnx.List([Inception(tensors, f"Mixed_5{letter}", Conv3D) for letter in "bc"])
        self.head = Pointwise(*fold(tensors, "Logits/Conv3d_0c_1x1"))
        if tensors:
            raise ValueError(f"I3D weights: {len(tensors)} tensors have no use, the first is {min(tensors)}")

    def __call__(self, video: Video, resize: ResizeRule) -> Float[Array, "B 400"]:
        """Video of any size and at least 9 frames -> logits before softmax."""
        return self.logits(preprocess(video, resize))

    def logits(self, x: Float[Array, "B T 224 224 3"]) -> Float[Array, "B 400"]:
        """Frames in [-1, 1] -> logits before softmax."""
        x = jax.nn.relu(self.conv_1a(x))
        x = max_pool(x, window=(1, 3, 3), stride=(1, 2, 2))
        x = jax.nn.relu(self.conv_2b(x))
        x = jax.nn.relu(self.conv_2c(x))
        x = max_pool(x, window=(1, 3, 3), stride=(1, 2, 2))
        for block in self.mixed_3:
            x = block(x)
        x = max_pool(x, window=(3, 3, 3), stride=(2, 2, 2))
        for block in self.mixed_4:
            x = block(x)
        x = max_pool(x, window=(2, 2, 2), stride=(2, 2, 2))
        for block in self.mixed_5:
            x = block(x)
        # TF averages over (2, 7, 7) with stride 1 and no padding, applies the head, and averages over time. The head
        # is affine, so it may act on the mean of the averages.
        x = x.mean(axis=(2, 3))
        x = (x[:, :-1] + x[:, 1:]) / 2
        return self.head(x.mean(axis=1))


class Inception(nnx.Module):
    """Inception block of four branches: 1x1x1; 1x1x1 then 3x3x3, twice; 3x3x3 max pool then 1x1x1. ReLU after each."""

    def __init__(self, tensors: dict[str, np.ndarray], name: str, widest: Callable[..., Any]):
        """Takes its tensors out of the dict. `widest` computes branch 1, which has most of the arithmetic."""
        # The three 1x1x1 convolutions that read the block's input are one, their output channels side by side.
        pointwise = [fold(tensors, f"{name}/Branch_{branch}/Conv3d_0a_1x1") for branch in (0, 1, 2)]
        kernels, biases = zip(*pointwise)
        self.splits = tuple(int(i) for i in np.cumsum([bias.size for bias in biases])[:-1])
        self.pointwise = Pointwise(np.concatenate(kernels, axis=-1), np.concatenate(biases))
        self.branch_1 = widest(*fold(tensors, f"{name}/Branch_1/Conv3d_0b_3x3"))
        self.branch_2 = Conv3D(*fold(tensors, f"{name}/Branch_2/Conv3d_0b_3x3"))
        self.branch_3 = Pointwise(*fold(tensors, f"{name}/Branch_3/Conv3d_0b_1x1"))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        branch_0, x_1, x_2 = jnp.split(jax.nn.relu(self.pointwise(x)), self.splits, axis=-1)
        branch_1 = jax.nn.relu(self.branch_1(x_1))
        branch_2 = jax.nn.relu(self.branch_2(x_2))
        branch_3 = jax.nn.relu(self.branch_3(max_pool(x, window=(3, 3, 3), stride=(1, 1, 1))))
        return jnp.concatenate([branch_0, branch_1, branch_2, branch_3], axis=-1)


class Pointwise(nnx.Module):
    """1x1x1 convolution with bias."""

    def __init__(self, kernel: Float[np.ndarray, "1 1 1 C D"], bias: Float[np.ndarray, "D"]):
        self.kernel = nnx.Param(jnp.asarray(kernel[0, 0, 0]))
        self.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B D"]:
        return jnp.matmul(x, self.kernel[...], precision=PRECISION) + self.bias[...]


class Conv3D(nnx.Module):
    """3x3x3 convolution with bias: one 2-D convolution over three frames side by side along channels."""

    def __init__(self, kernel: Float[np.ndarray, "3 3 3 C D"], bias: Float[np.ndarray, "D"]):
        # [kh, kw, 3 C, D]: channels ordered (frame, channel).
        self.kernel = nnx.Param(jnp.asarray(np.concatenate(list(kernel), axis=2)))
        self.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        frames = x.shape[1]
        x = jnp.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
        x = jnp.concatenate([x[:, i : i + frames] for i in range(3)], axis=-1)
        return convolve_frames(x, self.kernel[...]) + self.bias[...]


class FilteredConv3D(nnx.Module):
    """3-D convolution with bias and TF `SAME` padding, by minimal filtering along time.

    The F(m, r) algorithm of Winograd (1980) gives m outputs of a filter with r taps by m + r - 1 products instead of
    m r; Lavin and Gray (2016) brought it to convolutions. Here a "product" is a 2-D convolution of a whole frame, and
    m = 4: 6 of them instead of 12 where the kernel has 3 frames. A stride of s in time is s interleaved filters, which
    become one by putting s consecutive frames side by side along channels.

    The algorithm is exact. In float32 the logits come as near to those of a float64 network as by plain sums, 1e-6 to
    2e-6 relative.
    """

    def __init__(self, kernel: Float[np.ndarray, "k kh kw C D"], bias: Float[np.ndarray, "D"], *, stride: int = 1):
        self.window, *extent, channels, features = kernel.shape
        self.stride = stride
        self.num_taps = -(-self.window // stride)
        kernel = np.pad(kernel, [(0, self.num_taps * stride - self.window)] + [(0, 0)] * 4)
        kernel = kernel.reshape(self.num_taps, stride, *extent, channels, features)
        _, of_taps, _ = minimal_filter(self.num_taps)
        products = np.einsum("pr,rshwcd->phwscd", of_taps, kernel.astype(np.float64))
        products = products.reshape(len(of_taps), *extent, stride * channels, features)
        self.kernel = nnx.Param(jnp.asarray(products, jnp.float32))
        self.bias = nnx.Param(jnp.asarray(bias))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w D"]:
        of_inputs, _, to_outputs = minimal_filter(self.num_taps)
        before, _, num_outputs = _same(x.shape[1], self.window, self.stride)
        num_tiles = -(-num_outputs // OUTPUTS)
        x = self._side_by_side(x, before, OUTPUTS * num_tiles + self.num_taps - 1)
        last = OUTPUTS * (num_tiles - 1) + 1
        inputs = [x[:, i : i + last : OUTPUTS] for i in range(len(of_inputs))]
        products = [
            convolve_frames(_combine(weights, inputs), kernel, self.stride)
            for weights, kernel in zip(of_inputs, self.kernel[...])
        ]
        outputs = jnp.stack([_combine(weights, products) for weights in to_outputs], axis=2)
        outputs = outputs.reshape(len(x), num_tiles * OUTPUTS, *outputs.shape[3:])
        return outputs[:, :num_outputs] + self.bias[...]

    def _side_by_side(self, x: Float[Array, "B T H W C"], before: int, length: int) -> Float[Array, "B {length} H W D"]:
        """Pads with zeros in time and stacks every `stride` frames along channels."""
        batch, frames, height, width, channels = x.shape
        after = length * self.stride - frames - before
        x = jnp.pad(x, [(0, 0), (before, after), (0, 0), (0, 0), (0, 0)])
        x = x.reshape(batch, length, self.stride, height, width, channels)
        return jnp.moveaxis(x, 2, 4).reshape(batch, length, height, width, self.stride * channels)


def convolve_frames(
    x: Float[Array, "B T H W C"], kernel: Float[Array, "kh kw C D"], stride: int = 1
) -> Float[Array, "B T h w D"]:
    """2-D convolution of each frame, TF `SAME`."""
    frames = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=PRECISION,
    )
    return frames.reshape(*x.shape[:2], *frames.shape[1:])


@functools.cache
def minimal_filter(num_taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Toom-Cook matrices of F(4, num_taps): y = to_outputs @ ((of_taps @ taps) * (of_inputs @ inputs)), 3 or 4 taps.

    y_i = sum_k taps_k inputs_{i+k}, i = 0..3. The products belong to values of polynomials at small points and at
    infinity; few and small points keep rounding low.
    """
    points = np.array([0, 1, -1, 2, -2, 1 / 2])[: OUTPUTS + num_taps - 2]
    num_products = len(points) + 1
    of_inputs = np.zeros((num_products, num_products))
    of_taps = np.zeros((num_products, num_taps))
    to_outputs = np.zeros((OUTPUTS, num_products))
    for i, point in enumerate(points):
        rest = np.delete(points, i)
        of_inputs[i, :-1] = np.poly(rest)[::-1]
        of_taps[i] = point ** np.arange(num_taps) / np.prod(point - rest)
        to_outputs[:, i] = point ** np.arange(OUTPUTS)
    of_inputs[-1] = np.poly(points)[::-1]
    of_taps[-1, -1] = 1
    to_outputs[-1, -1] = 1
    return of_inputs, of_taps, to_outputs


def _combine(weights: np.ndarray, terms: list[Array]) -> Array:
    """Weighted sum; as plain sums XLA fuses it, as a matrix product it would not."""
    return functools.reduce(jnp.add, [float(weight) * term for weight, term in zip(weights, terms) if weight])


def max_pool(
    x: Float[Array, "B T H W C"], *, window: tuple[int, int, int], stride: tuple[int, int, int]
) -> Float[Array, "B t h w C"]:
    """TF `SAME` maximum, padded with -inf.

    A box maximum is separable: one axis after the other, which XLA runs many times faster on CPU than the box.
    """
    for axis in range(3):
        if window[axis] > 1:
            extent, step = [1] * 5, [1] * 5
            extent[axis + 1], step[axis + 1] = window[axis], stride[axis]
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, extent, step, "SAME")
    return x


def preprocess(video: Video, resize: ResizeRule) -> Float[Array, "B T 224 224 3"]:
    """uint8 of any size -> [-1, 1] at 224x224."""
    _, _, height, width, _ = video.shape
    x = jnp.asarray(video, jnp.float32)
    product = functools.partial(jnp.einsum, precision=PRECISION)
    if height != SIZE:
        x = product("hH,btHwc->bthwc", resize_matrix(height, resize), x)
    if width != SIZE:
        x = product("wW,bthWc->bthwc", resize_matrix(width, resize), x)
    return 2 * x / 255 - 1


def resize_matrix(size: int, rule: ResizeRule) -> Float[np.ndarray, "224 {size}"]:
    """Bilinear weights of `size` source rows for each of the 224 result rows; rows sum to 1."""
    shift = 0.5 if rule is ResizeRule.HALF_PIXEL else 0.0
    source = np.clip((np.arange(SIZE) + shift) * (size / SIZE) - shift, 0, size - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((SIZE, size))
    np.add.at(matrix, (np.arange(SIZE), low), 1 - (source - low))
    np.add.at(matrix, (np.arange(SIZE), high), source - low)
    return matrix.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("definition", "resize"))
def forward(definition: nnx.GraphDef, weights: PyTree, video: Video, resize: ResizeRule) -> Float[Array, "B 400"]:
    """One compiled batch, weights as an argument: place `weights` and `video` on a mesh and it runs there."""
    return nnx.merge(definition, weights)(video, resize)


@functools.cache
def pretrained() -> tuple[nnx.GraphDef, PyTree]:
    """Definition and weights of the network, read once per process (see `i3d_weights.load`)."""
    return nnx.split(I3D(i3d_weights.load()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class I3DLogits:
    """The features that FVD is defined on, as an `evaluation.features.Extractor`."""

    resize: ResizeRule = ResizeRule.TF1

    @property
    def metric(self) -> str:
        return "FVD"

    @property
    def min_frames(self) -> int:
        return MIN_FRAMES

    def protocol(self) -> dict[str, Any]:
        return {"features": protocol.I3D, "weights": i3d_weights.SHA256, "resize": self.resize.value}

    def on(self, mesh: Mesh) -> Callable[[Video], Float[Array, "B 400"]]:
        definition, weights = pretrained()
        placed = jax.device_put(weights, replicated(mesh))
        return lambda video: forward(definition, placed, video, self.resize)


def logits(
    videos: Array | np.ndarray,
    *,
    resize: ResizeRule | str = ResizeRule.TF1,
    batch_size: int = 4,
) -> Float[np.ndarray, "N 400"]:
    """I3D logits of uint8 clips [N T H W 3], `batch_size` at a time, on the default device.

    Raises:
        ValueError: not uint8 [N T H W 3], fewer than 9 frames, no clip, or an unknown resize rule.
    """
    check(videos)
    if batch_size < 1:
        raise ValueError(f"i3d.logits: batch_size={batch_size}, must be at least 1")
    rule = ResizeRule(resize)
    definition, weights = pretrained()
    results = []
    for start in range(0, len(videos), batch_size):
        batch = videos[start : start + batch_size]
        # The last batch is filled up with its last clip so that one shape is compiled; the surplus is dropped.
        rows = np.minimum(np.arange(min(batch_size, len(videos))), len(batch) - 1)
        results.append(np.asarray(forward(definition, weights, batch[rows], rule))[: len(batch)])
    return np.concatenate(results)


def check(videos: Array | np.ndarray) -> None:
    """Raises ValueError, naming what is wrong, unless `videos` is uint8 [N T H W 3] with N > 0 and T >= 9."""
    shape, dtype = np.shape(videos), getattr(videos, "dtype", type(videos))
    if dtype != np.uint8:
        raise ValueError(f"i3d.logits: videos are {dtype}, must be uint8 in 0..255: scale and round them")
    if len(shape) != 5 or shape[-1] != 3:
        raise ValueError(f"i3d.logits: videos have shape {shape}, must be [N T H W 3]")
    if shape[0] == 0:
        raise ValueError(f"i3d.logits: videos have shape {shape}: there is no clip")
    if shape[1] < MIN_FRAMES:
        raise ValueError(f"i3d.logits: T={shape[1]} frames, but I3D needs at least {MIN_FRAMES}")


def fold(tensors: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Takes one unit's tensors out of the dict: kernel and bias with batch norm folded in.

    (k * x - mean) / sqrt(var + eps) + beta = (k / s) * x + (beta - mean / s), in float64.
    """
    try:
        kernel = tensors.pop(f"{name}/kernel").astype(np.float64)
        bias = tensors.pop(f"{name}/bias").astype(np.float64)
        if not name.startswith("Logits/"):
            scale = np.sqrt(tensors.pop(f"{name}/var").astype(np.float64) + BATCH_NORM_EPSILON)
            kernel, bias = kernel / scale, bias - tensors.pop(f"{name}/mean") / scale
    except KeyError as missing:
        raise ValueError(f"I3D weights: tensor {missing} is missing") from None
    return kernel.astype(np.float32), bias.astype(np.float32)


def _same(size: int, window: int, stride: int) -> tuple[int, int, int]:
    """TF `SAME`: padding before, padding after, number of windows."""
    num_windows = -(-size // stride)
    total = max((num_windows - 1) * stride + window - size, 0)
    return total // 2, total - total // 2, num_windows
