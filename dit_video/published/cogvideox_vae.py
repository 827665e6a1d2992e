"""The VAE of CogVideoX: diffusers' `AutoencoderKLCogVideoX`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dit_video.published.family import Shape
from dit_video.published.vae_family import Place, Statistics, VAEFamily, translate
from dit_video.vae.cogvideox_vae import CogVideoXVAEConfig
from dit_video.weights.config_json import check_fixed, check_layers, count_of, counts_of

# What is the same in every published one.
_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "norm_eps": 1e-6,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_TEMPORAL = "temporal_compression_ratio"
_DOWN, _UP = "CogVideoXDownBlock3D", "CogVideoXUpBlock3D"
_SCALING_FACTOR = 1.15258426  # of a config that does not say: that of the 2B model

_WORDS = {
    "encoder.conv": "encoder.conv_in.conv",
    "decoder.conv": "decoder.conv_in.conv",
    "encoder.levels": "encoder.down_blocks",
    "decoder.levels": "decoder.up_blocks",
    "blocks": "resnets",
    "conv1": "conv1.conv",
    "conv2": "conv2.conv",
    "shortcut": "conv_shortcut",
    "middle": "mid_block",
    "head.norm": "norm_out",
    "head.conv": "conv_out.conv",
    "norm": "norm_layer",
    "scale": "conv_y.conv",
    "bias": "conv_b.conv",
}
_RESAMPLE = {"encoder": "downsamplers.0.conv", "decoder": "upsamplers.0.conv"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CogVideoXVAEFamily(VAEFamily):
    """Published CogVideoX VAE: causal in time, with norms over frames."""

    diffusers_class: ClassVar[str] = "AutoencoderKLCogVideoX"
    config_type: ClassVar[type[CogVideoXVAEConfig]] = CogVideoXVAEConfig

    config: CogVideoXVAEConfig

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "CogVideoXVAEFamily | None":
        if config.get("_class_name") != cls.diffusers_class:
            return None
        widths = counts_of(config, "block_out_channels", (128, 256, 256, 512))
        levels = len(widths)
        blocks = {"down_block_types": (_DOWN,) * levels, "up_block_types": (_UP,) * levels}
        check_fixed(config, _FIXED | blocks | {_TEMPORAL: 4})
        sizes = CogVideoXVAEConfig(
            widths=widths,
            num_blocks=count_of(config, "layers_per_block", 3),
            num_groups=count_of(config, "norm_num_groups", 32),
            latent_channels=count_of(config, "latent_channels", 16),
        )
        check_layers(config, levels * sizes.num_blocks, "block_out_channels", "layers_per_block")
        statistics = Statistics.of_diffusers(config, sizes.latent_channels, scaling_factor=_SCALING_FACTOR)
        return cls(config=sizes, statistics=statistics)

    def diffusers_config(self, shape: Shape) -> dict[str, Any]:
        sizes, levels = self.config, len(self.config.widths)
        return {
            "_class_name": self.diffusers_class,
            **_FIXED,
            _TEMPORAL: 4,
            "block_out_channels": list(sizes.widths),
            "down_block_types": [_DOWN] * levels,
            "up_block_types": [_UP] * levels,
            "layers_per_block": sizes.num_blocks,
            "norm_num_groups": sizes.num_groups,
            "latent_channels": sizes.latent_channels,
            "sample_height": shape[1],
            "sample_width": shape[2],
            "force_upcast": True,
            "invert_scale_latents": False,
            **self.statistics.diffusers_config(),
        }

    def place(self, layer: str) -> Place:
        resample = {"resample.space.conv": _RESAMPLE[layer.partition(".")[0]]} if "resample" in layer else {}
        name = translate(layer, resample | _WORDS)
        return Place((name,), rank=4 if "resample" in layer else 5)

    def usage(self, shape: Shape) -> str:
        T, H, W = shape
        return f"""```python
from diffusers import AutoencoderKLCogVideoX

vae = AutoencoderKLCogVideoX.from_pretrained(".")
z = vae.encode(video).latent_dist.mode()  # video [B 3 {T} {H} {W}] in [-1, 1]
video = vae.decode(z).sample
```

Frames are 1 + 8k. {self.statistics.usage()}"""
