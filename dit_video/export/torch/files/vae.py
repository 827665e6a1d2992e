# SPDX-License-Identifier: Apache-2.0
"""A causal video autoencoder in PyTorch, from the files beside it: pixels to latents and back.

    from vae import load

    vae = load(".")  # config.json and vae.safetensors
    pixels = vae.decode(latents)
    latents = vae.whiten(vae.encode(pixels))

Needs torch from 2.4 on and safetensors. Letters of shapes: b clips; T frames, H rows and W columns of pixels; c
channels, t frames, h rows and w columns of latents. Frame 0 stands alone and later frames come in groups: T = 1 + k * s
gives t = 1 + k.

The structure is that of factorised causal video tokenizers (VidTok, 2412.13061): no convolution at full resolution,
residual blocks of a spatial and a causal temporal convolution, norms that look at one position, no attention.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the network is: the field `vae` of config.json.

    Attributes:
        latent_channels: c.
        widths: channels of each level of the encoder, finest first; the decoder mirrors it.
        strides: (frames, rows, columns) by which each level shrinks the video before its blocks.
        num_blocks, num_decoder_blocks: residual blocks per level of the encoder and of the decoder.
    """

    latent_channels: int
    widths: Sequence[int]
    strides: Sequence[Sequence[int]]
    num_blocks: int
    num_decoder_blocks: int


def load(folder: str | Path = ".") -> "VideoVAE":
    """Loads the network of a folder, in evaluation mode, float32, on the CPU."""
    config = Config(**json.loads((Path(folder) / "config.json").read_text())["vae"])
    with torch.device("meta"):
        vae = VideoVAE(config)
    vae.load_state_dict(load_file(Path(folder) / "vae.safetensors"), assign=True)
    return vae.eval()


class VideoVAE(nn.Module):
    """The autoencoder, with the mean and standard deviation [c] of its latents over the clips it was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        c, widths, strides = config.latent_channels, config.widths, [tuple(stride) for stride in config.strides]
        cell = 3 * math.prod(strides[0])
        self.register_buffer("mean", torch.zeros(c))
        self.register_buffer("std", torch.ones(c))

        encoder: list[nn.Module] = []
        for level, width in enumerate(widths):
            first = level == 0
            encoder.append(conv(cell, width) if first else Downsample(widths[level - 1], width, strides[level]))
            encoder += [ResidualBlock(width) for _ in range(config.num_blocks)]
        self.encoder = nn.Sequential(*encoder, Project(widths[-1], 2 * c))

        decoder: list[nn.Module] = [conv(c, widths[-1])]
        for level in reversed(range(len(widths))):
            decoder += [ResidualBlock(widths[level]) for _ in range(config.num_decoder_blocks)]
            if level > 0:
                decoder.append(Upsample(widths[level], widths[level - 1], strides[level]))
        self.decoder = nn.Sequential(*decoder, Project(widths[0], cell))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] [b 3 T H W] -> mean and log-variance of each latent cell, float32 [b 2c t h w].

        Raises:
            ValueError: T is not 1 + k * s, or H or W no multiple of what a latent cell covers.
        """
        s, rows, columns = (math.prod(axis) for axis in zip(*self.config.strides))
        T, H, W = pixels.shape[2:]
        if (T - 1) % s or H % rows or W % columns:
            raise ValueError(f"(T, H, W) = {T, H, W}: must be 1 + {s}k, a multiple of {rows} and one of {columns}")
        pixels = pixels.to(self.decoder[0].weight.dtype)
        return self.encoder(fold(pixels, self.config.strides[0])).float()

    def whiten(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[b 2c t h w] -> latents [b c t h w] of zero mean and unit variance per channel, which a diffusion model sees.

        With a generator a sample of the posterior, mean + exp(logvar / 2) eps (1312.6114, section 2.4); else its mean.
        """
        z, logvar = moments.float().chunk(2, dim=1)
        if generator is not None:
            eps = torch.randn(z.shape, generator=generator, device=generator.device).to(z.device)
            z = z + torch.exp(logvar.clamp(-30.0, 20.0) / 2) * eps
        return (z - per_channel(self.mean)) / per_channel(self.std)

    def decode(self, latents: Tensor) -> Tensor:
        """Whitened latents [b c t h w] -> pixels, float32 [b 3 T H W], not clipped to [-1, 1]."""
        z = latents * per_channel(self.std) + per_channel(self.mean)
        return unfold(self.decoder(z.to(self.decoder[0].weight.dtype)), self.config.strides[0]).float()


class CausalConv3d(nn.Conv3d):
    """Causal 3-D convolution; before a clip the first frame is repeated."""

    def forward(self, x: Tensor) -> Tensor:
        past = x[:, :, :1].expand(-1, -1, self.kernel_size[0] - 1, -1, -1)
        return super().forward(torch.cat([past, x], dim=2))


def conv(channels_in: int, channels_out: int, kernel: tuple[int, int, int] = (1, 1, 1)) -> CausalConv3d:
    """Causal 3-D convolution with rows and columns padded by zeros."""
    return CausalConv3d(channels_in, channels_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over channels (1910.07467, equation 4), in float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[b C T H W]"""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=1, keepdim=True) + 1e-6)
        return (y * per_channel(self.weight)).to(x.dtype)


class ResidualBlock(nn.Module):
    """x + temporal 3-tap convolution of a spatial 3x3 convolution, each after RMSNorm and SiLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.space_norm, self.space = RMSNorm(channels), conv(channels, channels, (1, 3, 3))
        self.time_norm, self.time = RMSNorm(channels), conv(channels, channels, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.space(F.silu(self.space_norm(x)))
        return x + self.time(F.silu(self.time_norm(y)))


class Project(nn.Module):
    """RMSNorm, SiLU and a spatial 3x3 convolution: the way out of the encoder and of the decoder."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm, self.conv = RMSNorm(channels_in), conv(channels_in, channels_out, (1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(x)))


class Downsample(nn.Module):
    """`fold`, then a projection, plus the mean of groups of folded channels as a shortcut (2410.10733, section 3.2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: Sequence[int]):
        super().__init__()
        self.stride, self.channels_out = stride, channels_out
        self.project = conv(math.prod(stride) * channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = fold(x, self.stride)
        return self.project(x) + x.unflatten(1, (-1, self.channels_out)).mean(dim=1)


class Upsample(nn.Module):
    """Mirror of `Downsample`: a projection plus repeated channels as a shortcut, then `unfold`."""

    def __init__(self, channels_in: int, channels_out: int, stride: Sequence[int]):
        super().__init__()
        self.stride = stride
        self.project = conv(channels_in, math.prod(stride) * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x)
        return unfold(y + x.repeat(1, y.shape[1] // x.shape[1], 1, 1, 1), self.stride)


def fold(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Moves cells of (frames, rows, columns) onto channels: [b C T H W] -> [b frames*rows*columns*C t h w].

    Frame 0 is repeated to fill its cell, so that T = 1 + k * frames gives t = 1 + k.
    """
    frames, rows, columns = stride
    x = torch.cat([x[:, :, :1].expand(-1, -1, frames - 1, -1, -1), x], dim=2)
    x = x.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(2, (-1, frames))
    return x.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)


def unfold(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Inverse of `fold`: of the cell of frame 0 the last frame is kept."""
    x = x.unflatten(1, (*stride, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, stride[0] - 1 :]


def per_channel(values: Tensor) -> Tensor:
    """[C], ready to multiply [b C T H W]."""
    return values[:, None, None, None]
