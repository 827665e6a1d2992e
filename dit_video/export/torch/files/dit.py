# SPDX-License-Identifier: Apache-2.0
"""A diffusion transformer on video latents in PyTorch (DiT, Peebles and Xie, 2212.09748), from the files beside it.

    from model import load

    network = load(".")  # config.json and model.safetensors
    prediction = network(x_t, t, label=label)

Needs torch from 2.4 on and safetensors. Letters of shapes: b clips; c channels, t frames, h rows and w columns of
latents; n tokens of video, one for each patch, in f frames; l tokens of text, of width e; d width, k heads.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

# What a layer is modulated by, each [b f d], for every frame of patches, or [b 1 d].
Vectors = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the network is: the field `network` of config.json.

    Attributes:
        channels: c of the latents.
        patch_size: (frames, rows, columns) of latents in one token.
        mlp: "swiglu" or "gelu".
        norm: "rms" or "layer".
        qk_norm: over what queries and keys are normalised: "none", "per_head", "across_heads".
        positions: "rotary", or "sincos": a fixed vector is added to each token.
        position_grid: of "sincos": the side of the square of patches that is stretched over a frame; None: none is.
        shared_modulation: blocks share one modulation, to which each adds vectors of its own (2310.00426, section 2.3).
        timestep_offset: what is added to the timestep 1000 t.
        time_frequency_shift: 1 where the last frequency of the embedding of t is 1/10000, 0 where that is the next.
        learned_variance: the output has c channels more, of which a variance is made (2102.09672).
        num_classes: of a class-conditional network.
        text_size: e, of a network that attends to tokens of text.
        text_encoder: `hidden_size`, `depth`, `num_heads`, `mlp_size` of what makes these of captions.
    """

    channels: int
    hidden_size: int
    depth: int
    num_heads: int
    patch_size: Sequence[int]
    mlp: str
    mlp_size: int
    mlp_norm_epsilon: float
    norm: str
    qk_norm: str
    positions: str
    position_grid: int | None
    shared_modulation: bool
    timestep_offset: int
    time_frequency_shift: int
    learned_variance: bool
    num_classes: int | None
    text_size: int | None
    text_encoder: dict[str, int] | None


def load(folder: str | Path = ".") -> "DiT":
    """Loads the network of a folder, in evaluation mode, float32, on the CPU."""
    config = Config(**json.loads((Path(folder) / "config.json").read_text())["network"])
    with torch.device("meta"):
        network = DiT(config)
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"), assign=True)
    return network.eval()


@torch.no_grad()
def euler(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
    """Euler sampler of rectified flow: from noise to data along dx/dt = velocity(x, t) (2209.03003).

    Args:
        velocity: what the network predicts of (x [b c t h w], t [b]).
        x: standard normal noise [b c t h w].
        times: falling from 1, noise, to 0, data.
    """
    for t, s in itertools.pairwise(times.to(x.device)):
        x = x + (s - t) * velocity(x, t.expand(len(x)))
    return x


def encode_captions(captions: Sequence[str], length: int) -> Tensor:
    """Encodes captions as the byte 255, UTF-8 (cut between characters) and zeros, uint8 [b length]; "" is "no text"."""
    rows = torch.zeros(len(captions), length, dtype=torch.uint8)
    for row, caption in zip(rows, captions):
        text = caption.replace("\0", "").encode(errors="replace")[: length - 1]
        data = b"\xff" + text.decode(errors="ignore").encode()
        row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    return rows


class DiT(nn.Module):
    """Diffusion transformer (DiT): noisy latents, noise level and condition -> prediction of its objective."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        c, d, patch = config.channels, config.hidden_size, tuple(config.patch_size)
        out_channels = 2 * c if config.learned_variance else c
        of_text = "text" if config.text_encoder is None else "caption"
        self.takes = ["label"] * (config.num_classes is not None) + [of_text] * (config.text_size is not None)
        self.x_embedder = nn.Conv3d(c, d, patch, stride=patch)
        self.t_embedder = TimeEmbedding(d, offset=config.timestep_offset, frequency_shift=config.time_frequency_shift)
        if config.num_classes is not None:
            self.y_embedder = nn.Embedding(config.num_classes + 1, d)  # the last row stands for "no label"
        if config.text_encoder is not None:
            self.text_encoder = TextEncoder(**config.text_encoder)
        if config.shared_modulation:
            self.shared_modulation = AdaLN(6, d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = stream_norm(config.norm, d)
        self.final_modulation = AdaLN(2, d)
        self.final_layer = nn.Linear(d, math.prod(patch) * out_channels)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        label: Tensor | None = None,
        caption: Tensor | None = None,
        text: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Predicts what the objective asks for; of the last three, what the network is conditioned on is given.

        Args:
            x_t: latents [b c t h w] at noise level t; t, h and w are multiples of the patch size.
            t: noise level from 0, data, to 1, noise: [b], or [b t] with one for each frame, the same within a patch.
            label: integers [b]; the number of classes stands for "no label".
            caption: uint8 [b l], made by `encode_captions`.
            text: tokens [b l e] of a text encoder, and how many of each clip's mean something, integers [b].

        Returns:
            float32 [b c t h w]; with a learned variance c channels more.
        """
        config, dtype = self.config, self.x_embedder.weight.dtype
        cond = {"label": label, "caption": caption, "text": text}
        names = [name for name, value in cond.items() if value is not None]
        if names != self.takes:
            raise ValueError(f"called with {names}: beside x_t and t this network takes {self.takes}")
        if any(n % p for n, p in zip(x_t.shape[2:], config.patch_size)):
            raise ValueError(f"latents of (t, h, w) = {tuple(x_t.shape[2:])}: patches are of {config.patch_size}")
        levels = t[:, None] if t.ndim == 1 else t[:, :: config.patch_size[0]]
        conditioning = self.t_embedder(levels, dtype)
        if label is not None:
            conditioning = conditioning + self.y_embedder(label)[:, None]
        modulating = self.shared_modulation(conditioning) if config.shared_modulation else conditioning
        if caption is not None:
            text = self.text_encoder(caption)
        if text is not None:
            text = text[0].to(dtype), real_tokens(text[0], text[1])

        x = self.x_embedder(x_t.to(dtype))
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # [b n d], frame by frame
        angles = None
        if config.positions == "rotary":
            # (frame, row, column) of the first cell of each patch, in latent cells [n 3].
            axes = (torch.arange(n, dtype=torch.float64) * p for n, p in zip(grid, config.patch_size))
            angles = rotary_angles(torch.cartesian_prod(*axes), config.hidden_size // config.num_heads).to(x.device)
        else:
            x = x + sincos_positions(grid, config.hidden_size, config.position_grid).to(x)
        for block in self.blocks:
            x = block(x, modulating, angles, text)
        shift, scale = (per_token(vector, x.shape[1]) for vector in self.final_modulation(conditioning))
        x = self.final_layer(modulate(self.final_norm(x), shift, scale))
        return unpatchify(x, grid, config.patch_size).float()


class Block(nn.Module):
    """DiT block with adaLN-zero: attention and MLP, each normalised, modulated and gated (2212.09748, section 3.2).

    Where there is text, every token attends to it in between, without modulation.
    """

    def __init__(self, config: Config):
        super().__init__()
        d, k = config.hidden_size, config.num_heads
        self.modulation = ModulationOffset(6, d) if config.shared_modulation else AdaLN(6, d)
        self.norm = stream_norm(config.norm, d)
        self.attention = Attention(d, k, config.qk_norm)
        if config.text_size is not None:
            self.cross_attention = CrossAttention(d, config.text_size, k)
        self.mlp_norm = stream_norm(config.norm, d, config.mlp_norm_epsilon)
        self.mlp = (SwiGLU if config.mlp == "swiglu" else GELU)(d, config.mlp_size)

    def forward(
        self, x: Tensor, modulating: Vectors | Tensor, angles: Tensor | None, text: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """One step of depth of x [b n d].

        Args:
            modulating: the conditioning vector, or the vectors that blocks share.
            angles: those of `rotary_angles`.
            text: tokens [b l e], and which of them are no padding [b l].
        """
        vectors = (per_token(vector, x.shape[1]) for vector in self.modulation(modulating))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors
        x = x + gate_a * self.attention(modulate(self.norm(x), shift_a, scale_a), angles)
        if text is not None:
            x = x + self.cross_attention(self.norm(x), *text)
        return x + gate_m * self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m))


class TextEncoder(nn.Module):
    """A small transformer that reads captions byte by byte; padding is masked and positions are rotary."""

    def __init__(self, hidden_size: int, depth: int, num_heads: int, mlp_size: int):
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.table = nn.Embedding(256, hidden_size)
        self.blocks = nn.ModuleList(TextBlock(hidden_size, num_heads, mlp_size) for _ in range(depth))
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)

    def forward(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [b l] -> tokens [b l e], and how many of each caption mean something [b]."""
        num_tokens = torch.count_nonzero(caption, dim=1)
        x = self.table(caption.long())
        angles = rotary_angles(torch.arange(x.shape[1], dtype=torch.float64)[:, None], self.head_dim).to(x.device)
        for block in self.blocks:
            x = block(x, angles, real_tokens(x, num_tokens))
        return self.norm(x), num_tokens


class TextBlock(nn.Module):
    """Pre-norm transformer block of the text encoder."""

    def __init__(self, d: int, num_heads: int, mlp_size: int):
        super().__init__()
        self.norm = stream_norm("rms", d)
        self.attention = Attention(d, num_heads, "per_head")
        self.mlp = SwiGLU(d, mlp_size)

    def forward(self, x: Tensor, angles: Tensor, real: Tensor) -> Tensor:
        """x: [b l e]; real: which tokens are no padding [b l]."""
        x = x + self.attention(self.norm(x), angles, real)
        return x + self.mlp(self.norm(x))


class Attention(nn.Module):
    """Full self-attention, with queries and keys normalised (2302.05442) and turned by their positions."""

    def __init__(self, d: int, num_heads: int, qk_norm: str):
        super().__init__()
        self.heads = (num_heads, d // num_heads)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.query_norm, self.key_norm = heads_norm(qk_norm, self.heads), heads_norm(qk_norm, self.heads)

    def forward(self, x: Tensor, angles: Tensor | None, real: Tensor | None = None) -> Tensor:
        """x: [b n d]; real: which tokens are attended to [b n], None for all."""
        q, k, v = self.qkv(x).unflatten(-1, (3, *self.heads)).unbind(2)
        q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(attend(q, k, v, real))


class CrossAttention(nn.Module):
    """Attention from tokens of video to tokens of text."""

    def __init__(self, d: int, text_size: int, num_heads: int):
        super().__init__()
        self.heads = (num_heads, d // num_heads)
        self.query, self.key_value, self.out = nn.Linear(d, d), nn.Linear(text_size, 2 * d), nn.Linear(d, d)
        self.query_norm, self.key_norm = heads_norm("per_head", self.heads), heads_norm("per_head", self.heads)

    def forward(self, x: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        """x: [b n d]; tokens: [b l e]; real: which of these are attended to [b l]."""
        k, v = self.key_value(tokens).unflatten(-1, (2, *self.heads)).unbind(2)
        q = self.query_norm(self.query(x).unflatten(-1, self.heads))
        return self.out(attend(q, self.key_norm(k), v, real))


def attend(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d/k)) v: queries [b n k d/k], keys and values [b l k d/k] -> [b n d]."""
    mask = None if real is None else real[:, None, None]
    x = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return x.transpose(1, 2).flatten(2)


def real_tokens(tokens: Tensor, num_tokens: Tensor) -> Tensor:
    """Padding mask: which tokens [b l ...] are real, bool [b l]."""
    return torch.arange(tokens.shape[1], device=tokens.device) < num_tokens[:, None]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2002.05202, equation 6)."""

    def __init__(self, d: int, mlp_size: int):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(d, mlp_size), nn.Linear(d, mlp_size), nn.Linear(mlp_size, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GELU(nn.Module):
    """down(gelu(up(x))), with the tanh form of GELU (1606.08415, section 2)."""

    def __init__(self, d: int, mlp_size: int):
        super().__init__()
        self.up, self.down = nn.Linear(d, mlp_size), nn.Linear(mlp_size, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class TimeEmbedding(nn.Module):
    """Timestep embedding: cosines and sines of 1000 t at 128 frequencies, linear, SiLU, linear."""

    def __init__(self, d: int, *, offset: int, frequency_shift: int):
        super().__init__()
        self.offset, self.frequency_shift = offset, frequency_shift
        self.up, self.down = nn.Linear(256, d), nn.Linear(d, d)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: [b f] or [b 1] -> [b f d] or [b 1 d]; phases are float32 whatever the weights are."""
        exponents = torch.arange(128, dtype=torch.float32, device=t.device) / (128 - self.frequency_shift)
        phase = (1000 * t.float()[..., None] + self.offset) * torch.exp(-math.log(10_000.0) * exponents)
        return self.down(F.silu(self.up(torch.cat([phase.cos(), phase.sin()], dim=-1).to(dtype))))


class AdaLN(nn.Linear):
    """Adaptive layer norm: `num` modulation vectors from the conditioning vector [b f d]."""

    def __init__(self, num: int, d: int):
        super().__init__(d, num * d)
        self.num = num

    def forward(self, conditioning: Tensor) -> Vectors:
        return super().forward(F.silu(conditioning)).unflatten(-1, (self.num, -1)).unbind(-2)


class ModulationOffset(nn.Module):
    """Block-specific offset to the shared modulation (adaLN-single)."""

    def __init__(self, num: int, d: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num, d))

    def forward(self, shared: Vectors) -> Vectors:
        return tuple(vector + own for vector, own in zip(shared, self.table))


def per_token(vector: Tensor, num_tokens: int) -> Tensor:
    """[b 1 d] as it is; [b f d], one for each frame of patches, once for each of its tokens."""
    num_frames = vector.shape[1]
    return vector if num_frames == 1 else vector.repeat_interleave(num_tokens // num_frames, dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def stream_norm(kind: str, d: int, epsilon: float = 1e-6) -> nn.Module:
    """Normalisation without parameters: scale and shift come from the modulation."""
    return (nn.RMSNorm if kind == "rms" else nn.LayerNorm)(d, eps=epsilon, elementwise_affine=False)


def heads_norm(kind: str, heads: tuple[int, int]) -> nn.Module:
    """Normalisation of queries or keys [b n k d/k]."""
    if kind == "none":
        return nn.Identity()
    return nn.RMSNorm(heads if kind == "across_heads" else heads[1], eps=1e-6)


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Rotary position embedding (RoPE) angles per axis (RoFormer, 2104.09864, equation 15).

    The head_dim / 2 planes are shared out evenly among the axes, and what is left over goes to the first.
    positions: float64 [n axes]; returns float32 [n head_dim/2].
    """
    num_axes, planes = positions.shape[1], head_dim // 2
    least = planes // num_axes
    angles = []
    for axis in range(num_axes):
        count = planes - least * (num_axes - 1) if axis == 0 else least
        exponents = torch.arange(count, dtype=torch.float64) / count
        angles.append(positions[:, axis, None] * 10_000.0**-exponents)
    return torch.cat(angles, dim=1).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Applies rotary embedding: rotates each plane (x[i], x[i + head_dim/2]); x: [b n k head_dim]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def sincos_positions(grid: Sequence[int], d: int, side: int | None) -> Tensor:
    """Sine-cosine position embedding of each patch of a `grid`, the same in all frames, float32 [n d].

    side: `position_grid` of the configuration.
    """
    frequencies = 10_000.0 ** (-torch.arange(d // 4, dtype=torch.float64) / (d // 4))
    columns, rows = (
        torch.arange(n, dtype=torch.float64)[:, None] * (1.0 if side is None else side / n) * frequencies
        for n in (grid[2], grid[1])
    )
    of_columns, of_rows = (torch.cat([phase.sin(), phase.cos()], dim=1) for phase in (columns, rows))
    places = torch.cat([of_columns.repeat(grid[1], 1), of_rows.repeat_interleave(grid[2], dim=0)], dim=1)
    return places.repeat(grid[0], 1).float()


def unpatchify(x: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """Tokens [b n cells*c], with cells ordered (frame, row, column), -> latents [b c t h w]; grid: patches per axis."""
    x = x.unflatten(-1, (*patch_size, -1)).unflatten(1, tuple(grid))
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
