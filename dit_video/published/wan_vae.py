"""The VAEs of Wan 2.1 and 2.2: diffusers' `AutoencoderKLWan`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from dit_video.published.family import Shape
from dit_video.published.vae_family import Place, Statistics, VAEFamily, translate
from dit_video.vae.wan_vae import WanVAEConfig
from dit_video.weights.config_json import check_fixed, check_layers, count_of, counts_of, flag_of, flags_of
from dit_video.weights.names import Row

# What is the same in every published one.
_FIXED = {"attn_scales": (), "dropout": 0.0}
_FRAMES = 4  # that diffusers encodes at a time after the first
# Of the latents of a config that does not say: those of Wan 2.1.
_STATISTICS = {
    "latents_mean": (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    "latents_std": (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
}  # fmt: skip

_WORDS = {
    "encoder.conv": "encoder.conv_in",
    "decoder.conv": "decoder.conv_in",
    "blocks": "resnets",
    "shortcut": "conv_shortcut",
    "middle": "mid_block",
    "attention": "attentions.0",
    "qkv": "to_qkv",
    "out": "proj",
    "head.norm": "norm_out",
    "head.conv": "conv_out",
    "resample.space.conv": "resample.1",
    "resample.time": "time_conv",
    "moments_projection": "quant_conv",
    "latents_projection": "post_quant_conv",
}
_LEVEL = re.compile(r"(encoder|decoder)\.levels\.(\d+)(?:\.level)?(?:\.blocks\.(\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVAEFamily(VAEFamily):
    """Published Wan VAE: causal in time."""

    diffusers_class: ClassVar[str] = "AutoencoderKLWan"
    config_type: ClassVar[type[WanVAEConfig]] = WanVAEConfig

    config: WanVAEConfig

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "WanVAEFamily | None":
        if config.get("_class_name") != cls.diffusers_class:
            return None
        check_fixed(config, _FIXED)
        patch = 1 if config.get("patch_size") is None else count_of(config, "patch_size")
        whole = {"in_channels": 3, "out_channels": 3, **_STATISTICS, **config}
        check_fixed(whole, dict.fromkeys(("in_channels", "out_channels"), 3 * patch**2))
        channels = count_of(config, "base_dim", 96)
        sizes = WanVAEConfig(
            channels=channels,
            decoder_channels=channels
            if config.get("decoder_base_dim") is None
            else count_of(config, "decoder_base_dim"),
            multipliers=counts_of(config, "dim_mult", (1, 2, 4, 4)),
            num_blocks=count_of(config, "num_res_blocks", 2),
            halve_frames=flags_of(config, "temperal_downsample", (False, True, True)),
            patch_size=patch,
            residual=flag_of(config, "is_residual", default=False),
            latent_channels=count_of(config, "z_dim", 16),
        )
        check_layers(config, len(sizes.multipliers) * sizes.num_blocks, "dim_mult", "num_res_blocks")
        return cls(config=sizes, statistics=Statistics.of_diffusers(whole, sizes.latent_channels))

    def diffusers_config(self, shape: Shape) -> dict[str, Any]:
        sizes, cell = self.config, 3 * self.config.patch_size**2
        frames, rows, _ = sizes.compression
        if frames > _FRAMES or (shape[0] - 1) % _FRAMES:
            raise ValueError(
                f"clips of {shape[0]} frames, {frames} to a latent frame: {self.diffusers_class} takes 1 + {_FRAMES}k, "
                f"{_FRAMES} at a time; train with such clips and halve frames at most twice"
            )
        return {
            "_class_name": self.diffusers_class,
            "attn_scales": [],
            "dropout": 0.0,
            "base_dim": sizes.channels,
            "decoder_base_dim": None if sizes.decoder_channels == sizes.channels else sizes.decoder_channels,
            "z_dim": sizes.latent_channels,
            "dim_mult": list(sizes.multipliers),
            "num_res_blocks": sizes.num_blocks,
            "temperal_downsample": list(sizes.halve_frames),
            "is_residual": sizes.residual,
            "in_channels": cell,
            "out_channels": cell,
            "patch_size": None if sizes.patch_size == 1 else sizes.patch_size,
            "scale_factor_temporal": frames,
            "scale_factor_spatial": rows,
            **self.statistics.per_channel(),
        }

    def place(self, layer: str) -> Place:
        match = _LEVEL.match(layer)
        if match is None:
            name = translate(layer, _WORDS)
        else:
            coder, level, block = match[1], int(match[2]), match[3]
            rest = layer[match.end() :]
            name = translate(self._in_level(coder, level, block, resampled=".resample" in rest) + rest, _WORDS)
        flat = "resample.1" in name or ".attentions." in name
        return Place((name,), rank=4 if flat else 5, scale="gamma", scale_rank=3 if ".attentions." in name else 4)

    def _in_level(self, coder: str, level: int, block: str | None, *, resampled: bool) -> str:
        """Location of a residual block of a level, of its resampling layer, or of its last layer."""
        number = self.config.num_blocks
        last = level == len(self.config.multipliers) - 1
        if coder == "encoder" and not self.config.residual:
            # One list of all.
            within = int(block) if block is not None else number - 1 if last else number
            return f"encoder.down_blocks.{level * (number + 1) + within}"
        name = f"{coder}.{'down' if coder == 'encoder' else 'up'}_blocks.{level}"
        if block is not None:
            return f"{name}.resnets.{block}"
        if not resampled:
            return name
        if self.config.residual:
            return f"{name}.{'down' if coder == 'encoder' else 'up'}sampler"
        return f"{name}.upsamplers.0"

    def row(self, layer: str, kind: str, shape: tuple[int, ...]) -> Row:
        row, patch = super().row(layer, kind, shape), self.config.patch_size
        # Theirs folds pixels onto channels as (channel, column, row), ours as (row, column, channel).
        if layer == "encoder.conv" and kind == "kernel":
            pieces = (row.shape[0], 3, patch, patch, *row.shape[2:])
            return dataclasses.replace(row, pieces=pieces, order=(4, 5, 6, 3, 2, 1, 0))
        if layer == "decoder.head.conv" and kind == "kernel":
            return dataclasses.replace(row, pieces=(3, patch, patch, *row.shape[1:]), order=(4, 5, 6, 3, 2, 1, 0))
        if layer == "decoder.head.conv" and kind == "bias":
            return dataclasses.replace(row, pieces=(3, patch, patch), order=(2, 1, 0))
        return row

    def usage(self, shape: Shape) -> str:
        T, H, W = shape
        return f"""```python
from diffusers import AutoencoderKLWan

vae = AutoencoderKLWan.from_pretrained(".")
z = vae.encode(video).latent_dist.mode()  # video [B 3 {T} {H} {W}] in [-1, 1]
video = vae.decode(z).sample
```

Frames are 1 + {self.config.compression[0]}k. Diffusion models see `(z - latents_mean) / latents_std` of config.json."""
