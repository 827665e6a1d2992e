"""The VAEs of Stable Diffusion 1, 2, XL and 3 and of FLUX.1: diffusers' `AutoencoderKL`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from dit_video.published.family import Shape
from dit_video.published.vae_family import Place, Statistics, VAEFamily, translate
from dit_video.vae.autoencoder_kl import AutoencoderKLConfig
from dit_video.weights.config_json import check_fixed, check_layers, count_of, counts_of, flag_of
from dit_video.weights.names import Dialect, Table

# What is the same in every published one: its class does not read it, or reads one value of it.
_FIXED = {"act_fn": "silu", "in_channels": 3, "out_channels": 3}
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

_WORDS = {
    "encoder.conv": "encoder.conv_in",
    "decoder.conv": "decoder.conv_in",
    "encoder.levels": "encoder.down_blocks",
    "decoder.levels": "decoder.up_blocks",
    "blocks": "resnets",
    "shortcut": "conv_shortcut",
    "middle": "mid_block",
    "attention": "attentions.0",
    "attentions.0.norm": "attentions.0.group_norm",
    "attentions.0.out": "attentions.0.to_out.0",
    "head.norm": "conv_norm_out",
    "head.conv": "conv_out",
    "head": "conv_out",
    "moments_projection": "quant_conv",
    "latents_projection": "post_quant_conv",
}
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SCALING_FACTOR = 0.18215  # of a config that does not say
_RESAMPLE = {"encoder": "downsamplers.0", "decoder": "upsamplers.0"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLFamily(VAEFamily):
    """Published `AutoencoderKL`: a VAE of images."""

    diffusers_class: ClassVar[str] = "AutoencoderKL"
    config_type: ClassVar[type[AutoencoderKLConfig]] = AutoencoderKLConfig

    config: AutoencoderKLConfig

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "AutoencoderKLFamily | None":
        if config.get("_class_name") != cls.diffusers_class:
            return None
        check_fixed(config, _FIXED)
        widths = counts_of(config, "block_out_channels", (64,))
        levels = len(widths)
        check_fixed(config, {"down_block_types": (_DOWN,) * levels, "up_block_types": (_UP,) * levels})
        projections = {flag_of(config, name, default=True) for name in ("use_quant_conv", "use_post_quant_conv")}
        if len(projections) > 1:
            raise ValueError(
                "config.json: use_quant_conv and use_post_quant_conv differ: no published VAE has one alone"
            )
        sizes = AutoencoderKLConfig(
            widths=widths,
            num_blocks=count_of(config, "layers_per_block", 1),
            num_groups=count_of(config, "norm_num_groups", 32),
            latent_channels=count_of(config, "latent_channels", 4),
            latent_projection=projections.pop(),
            middle_attention=flag_of(config, "mid_block_add_attention", default=True),
        )
        check_layers(config, levels * sizes.num_blocks, "block_out_channels", "layers_per_block")
        statistics = Statistics.of_diffusers(config, sizes.latent_channels, scaling_factor=_SCALING_FACTOR)
        return cls(config=sizes, statistics=statistics)

    def diffusers_config(self, shape: Shape) -> dict[str, Any]:
        sizes, levels = self.config, len(self.config.widths)
        return {
            "_class_name": self.diffusers_class,
            **_FIXED,
            "block_out_channels": list(sizes.widths),
            "down_block_types": [_DOWN] * levels,
            "up_block_types": [_UP] * levels,
            "layers_per_block": sizes.num_blocks,
            "norm_num_groups": sizes.num_groups,
            "latent_channels": sizes.latent_channels,
            "use_quant_conv": sizes.latent_projection,
            "use_post_quant_conv": sizes.latent_projection,
            "mid_block_add_attention": sizes.middle_attention,
            "sample_size": max(shape[1:]),
            "force_upcast": True,
            **self.statistics.diffusers_config(),
        }

    def place(self, layer: str) -> Place:
        resample = {"resample.conv": f"{_RESAMPLE[layer.partition('.')[0]]}.conv"} if "resample" in layer else {}
        name = translate(layer, _WORDS | resample)
        if layer.endswith("attention.qkv"):
            attention = name.removesuffix(".qkv")
            return Place(tuple(f"{attention}.to_{part}" for part in "qkv"), rank=2)
        return Place((name,), rank=2 if "to_out" in name else 4)

    def table(self) -> Table:
        # diffusers renames these when it loads a file of before version 0.13, as SD's are.
        former = {
            f"{coder}.mid_block.attentions.0.{before}.{kind}": f"{coder}.mid_block.attentions.0.{now}.{kind}"
            for coder in ("encoder", "decoder")
            for before, now in _FORMER.items()
            for kind in ("weight", "bias")
        }
        return dataclasses.replace(super().table(), former={Dialect.DIFFUSERS: former})

    def their_moments(self, theirs: Any, pixels: Float[np.ndarray, "B T H W C"]) -> Float[np.ndarray, "B t h w m"]:
        moments = super().their_moments(theirs, pixels.reshape(-1, *pixels.shape[2:]))
        return moments.reshape(*pixels.shape[:2], *moments.shape[1:])

    def their_pixels(self, theirs: Any, z: Float[np.ndarray, "B t h w c"]) -> Float[np.ndarray, "B T H W C"]:
        pixels = super().their_pixels(theirs, z.reshape(-1, *z.shape[2:]))
        return pixels.reshape(*z.shape[:2], *pixels.shape[1:])

    def usage(self, shape: Shape) -> str:
        T, H, W = shape
        return f"""```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained(".")
z = vae.encode(pictures).latent_dist.mode()  # pictures [N 3 {H} {W}] in [-1, 1]
pictures = vae.decode(z).sample
```

It was trained on clips of {T} frames, each a picture. {self.statistics.usage()}"""
