"""Latte in NumPy, written from the paper alone (2401.03048, section 3.2; the block is 2212.09748's, figure 3).

No published code has the second, third and fourth variant. One clip at a time, one head at a time, one frame or one
place at a time, in float64; nothing of the package but the names of its parameters.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

SPACE, TIME = "space", "time"
Weights = Mapping[str, np.ndarray]


class Caption(NamedTuple):
    tokens: np.ndarray
    num_tokens: int


def under(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in weights.items() if name.startswith(start)}


def line(x, w, name):
    """A layer with a weight and a bias, whatever shape they come in."""
    kernel, bias = w[f"{name}.kernel"], w[f"{name}.bias"]
    return (x @ kernel.reshape(x.shape[-1], -1) + bias.reshape(-1)).reshape(*x.shape[:-1], *bias.shape)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def attended(q, k, v):
    weights = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
    return weights / weights.sum(-1, keepdims=True) @ v


def self_attention(x, w, axes):
    """x is [places frames D]; `axes` names the axis that each head attends over."""
    q, k, v = np.moveaxis(line(x, w, "qkv"), 2, 0)
    out = np.zeros_like(q)
    for head, axis in enumerate(axes):
        rows = x.shape[1] if axis == SPACE else x.shape[0]
        for row in range(rows):
            part = (slice(None), row, head) if axis == SPACE else (row, slice(None), head)
            out[part] = attended(q[part], k[part], v[part])
    return out.reshape(x.shape) @ w["out.kernel"].reshape(x.shape[-1], -1) + w["out.bias"]


def cross_attention(x, w, caption):
    q, (k, v) = line(x, w, "query"), np.moveaxis(line(caption.tokens[: caption.num_tokens], w, "key_value"), 1, 0)
    out = np.zeros_like(q)
    for place in range(x.shape[0]):
        for head in range(q.shape[2]):
            out[place, :, head] = attended(q[place, :, head], k[:, head], v[:, head])
    return out.reshape(x.shape) @ w["out.kernel"].reshape(x.shape[-1], -1) + w["out.bias"]


def block(x, w, conditioning, shared, attentions, caption):
    own = shared is None
    vectors = line(silu(conditioning), w, "modulation.projection") if own else shared + w["modulation.table"]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors
    for number, axes in enumerate(attentions):
        seen = normalised(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self_attention(seen, under(w, f"attentions.{number}"), axes)
    if "cross_attention.query.kernel" in w:
        x = x + cross_attention(x, under(w, "cross_attention"), caption)
    hidden = gelu(line(normalised(x) * (1 + scale_m) + shift_m, w, "mlp.up"))
    return x + gate_m * line(hidden, w, "mlp.down")


def waves(position, size):
    frequencies = 10_000.0 ** (-np.arange(size // 2) / (size // 2))
    return np.concatenate([np.sin(position * frequencies), np.cos(position * frequencies)])


def layers(weights: Weights, variant: str, num_heads: int) -> Iterator[tuple[dict, list, bool]]:
    """Of each block in turn: its weights, the axes of the heads of its attentions, whether it is told the frames."""
    space, time = [SPACE] * num_heads, [TIME] * num_heads
    if variant in ("interleaved", "late"):
        spatial, temporal = under(weights, "blocks.spatial"), under(weights, "blocks.temporal")
        half = len(spatial["mlp.up.bias"])
        order = [(kind, i) for kind in (SPACE, TIME) for i in range(half)]
        if variant == "interleaved":
            order.sort(key=lambda step: step[1])
        for kind, i in order:
            stacked, axes = (spatial, space) if kind == SPACE else (temporal, time)
            yield {n: x[i] for n, x in stacked.items()}, [axes], (kind, i) == (TIME, 0)
    else:
        stacked = under(weights, "blocks")
        split = [(SPACE, TIME)[head % 2] for head in range(num_heads)]
        for i in range(len(stacked["mlp.up.bias"])):
            yield {n: x[i] for n, x in stacked.items()}, [space, time] if variant == "factorised" else [split], i == 0


def latte(weights, x_t, level, *, variant, num_heads, patch, label=None, caption=None):
    """One clip [t h w c] at a noise level -> what the last layer makes of it, channels of the variance last."""
    frames, height, width, _ = x_t.shape
    rows, columns = height // patch, width // patch
    D = len(weights["x_embedder.bias"])
    x = np.zeros((rows * columns, frames, D))
    for place, frame in np.ndindex(rows * columns, frames):
        i, j = (patch * n for n in divmod(place, columns))
        cells = x_t[frame, i : i + patch, j : j + patch].reshape(-1)
        at = np.concatenate([waves(place % columns, D // 2), waves(place // columns, D // 2)])
        x[place, frame] = line(cells, weights, "x_embedder") + at
    phase = (1000 * level - 1) * 10_000.0 ** (-np.arange(128) / 128)
    angles = np.concatenate([np.cos(phase), np.sin(phase)])
    conditioning = line(silu(line(angles, weights, "t_embedder.up")), weights, "t_embedder.down")
    if label is not None:
        conditioning = conditioning + weights["y_embedder.table"][label]
    shared = None
    if "shared_modulation.projection.kernel" in weights:
        shared = line(silu(conditioning), weights, "shared_modulation.projection")
    if caption is not None:
        tokens = line(gelu(line(caption.tokens, weights, "text_embedder.up")), weights, "text_embedder.down")
        caption = caption._replace(tokens=tokens)
    for of_block, attentions, is_told_frames in layers(weights, variant, num_heads):
        if is_told_frames and frames > 1:
            x = x + np.stack([waves(frame, D) for frame in range(frames)])
        x = block(x, of_block, conditioning, shared, attentions, caption)
    if shared is None:
        shift, scale = line(silu(conditioning), weights, "final_modulation.projection")
    else:
        shift, scale = conditioning + weights["final_modulation.table"]
    x = line(normalised(x) * (1 + scale) + shift, weights, "final_layer")
    out = np.zeros((frames, height, width, x.shape[-1] // patch**2))
    for place, frame in np.ndindex(rows * columns, frames):
        i, j = (patch * n for n in divmod(place, columns))
        out[frame, i : i + patch, j : j + patch] = x[place, frame].reshape(patch, patch, -1)
    return out
