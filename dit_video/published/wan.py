"""Wan 2.1 and 2.2: diffusers' `WanTransformer3DModel`, text-to-video and image-to-video."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dit_video.arrays import ImageCond, Text
from dit_video.config.json_file import read_object
from dit_video.diffusion.objective import Gaussian, rectified_flow
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.wan import WanConfig
from dit_video.encoders import clip_image_names
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.text import PretrainedText, wan_text
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.published.family import DenoiserFamily, Pair, listening
from dit_video.published.family import Shape as LatentShape
from dit_video.published.wan_names import table_of
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import Task
from dit_video.weights.config_json import check_fixed, count_of, counts_of, refused, shortened, with_fields
from dit_video.weights.folder import CONFIG
from dit_video.weights.names import Source, Table

# What is the same in every published Wan that is read: those that are given a last frame as well have a pos_embed.
_FIXED = {
    "cross_attn_norm": True,
    "eps": 1e-6,
    "freq_dim": TimeEmbedding.num_frequencies,
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
}
# Of the official code's config.json, with what diffusers calls them.
_OFFICIAL_CLASS, _OFFICIAL_TYPES = "WanModel", ("t2v", "i2v", "ti2v")
_OFFICIAL_FIELDS = {"in_dim": "in_channels", "out_dim": "out_channels", "num_heads": "num_attention_heads"} | {
    name: name for name in ("ffn_dim", "freq_dim", "num_layers", "eps")
}
_HEAD_DIM = 128  # of all published networks, which shapes do not tell
# So long is text in diffusers: its pipelines fill it up with zeros, and blocks that see an image count on it.
_TEXT_LENGTH = 512
_TI2V_CHANNELS = 48
_TIMESTEPS = (0.0, 1.0, 500.5, 1000.0)
_NUM_IMAGE_TOKENS = 257  # any number would do; these are CLIP's


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanFamily(DenoiserFamily):
    """Published Wan denoiser."""

    diffusers_class: ClassVar[str] = "WanTransformer3DModel"

    config: WanConfig
    condition: EmbeddedText

    @property
    def image_size(self) -> int | None:
        """Width of the tokens of an image; None where there are none."""
        return None if self.known is None else self.known.image_size

    @property
    def channels_in(self) -> int:
        return self.channels if self.known is None else self.channels + self.known.num_channels(self.channels)

    def objective(self) -> Gaussian:
        return rectified_flow()

    def usual_latents(self, config: Mapping[str, Any]) -> LatentShape:
        # Of 81 frames of 480 x 832 pixels; of TI2V-5B, whose VAE compresses more, of 121 frames of 704 x 1280.
        return (31, 44, 80) if self.channels == _TI2V_CHANNELS else (21, 60, 104)

    def text_encoders(self, pipeline: str) -> PretrainedText:
        return wan_text(pipeline)

    def image_encoder(self, pipeline: str) -> PretrainedImage | None:
        if self.image_size is None:
            return None
        model = f"{pipeline}/image_encoder"
        encoder = clip_image_names.of_transformers(read_object(Path(model) / CONFIG))
        if encoder is None:
            raise ValueError(f"{model}/{CONFIG}: is of no vision transformer of CLIP")
        clip_image_names.check_processor(Path(model), encoder)
        return PretrainedImage(encoder=encoder, model=model)

    def differences(self, task: Task) -> list[str]:
        if isinstance(task, Denoise):
            return super(WanFamily, _as_used(self, task)).differences(task)
        return super().differences(task)

    @classmethod
    def of_task(cls, task: Task) -> "WanFamily | None":
        if not isinstance(task, Denoise) or not isinstance(task.network, WanConfig):
            return None
        if not isinstance(task.condition, EmbeddedText):
            raise ValueError(
                f"config.task.condition={task.condition}: the published network reads what a frozen encoder made of "
                "text; give it an EmbeddedText"
            )
        known = None if task.known is None else task.known.channels
        channels = task.codec.vae.latent_channels
        return cls(config=task.network, channels=channels, condition=task.condition, known=known)

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "WanFamily | None":
        if config.get("_class_name") == _OFFICIAL_CLASS:
            config = _as_diffusers_says(config)
        if config.get("_class_name") != cls.diffusers_class:
            return None
        check_fixed(config, _FIXED)
        heads, patch = count_of(config, "num_attention_heads", 40), counts_of(config, "patch_size", (1, 2, 2))
        if len(patch) != 3:
            raise refused("patch_size", patch, "must be numbers of frames, rows and columns")
        sizes = WanConfig(
            hidden_size=heads * count_of(config, "attention_head_dim", 128),
            depth=count_of(config, "num_layers", 40),
            num_heads=heads,
            mlp_width=count_of(config, "ffn_dim", 13824),
            patch_size=(patch[0], patch[1], patch[2]),
            text_length=_TEXT_LENGTH,
        )
        text = EmbeddedText(hidden_size=count_of(config, "text_dim", 4096), pooled_size=1, num_tokens=_TEXT_LENGTH)
        channels_in = count_of(config, "in_channels", 16)
        channels = channels_in if config.get("out_channels", 16) is None else count_of(config, "out_channels", 16)
        image_size = None if config.get("image_dim") is None else count_of(config, "image_dim")
        added = config.get("added_kv_proj_dim")
        if added != (None if image_size is None else sizes.hidden_size):
            raise ValueError(
                f"config.json: added_kv_proj_dim={shortened(added)}: must be {sizes.hidden_size}, the network's "
                f"width, where image_dim is a number, and null where it is not (it is {image_size})"
            )
        if channels_in == channels and image_size is None:
            return cls(config=sizes, channels=channels, condition=text)
        if channels_in <= 2 * channels:
            raise ValueError(
                f"config.json: in_channels={channels_in}: must be out_channels={channels}, or for image to video twice "
                "as many and those of a mask"
            )
        known = AsChannels(mask_channels=channels_in - 2 * channels, image_size=image_size)
        return cls(config=sizes, channels=channels, condition=text, known=known)

    @classmethod
    def of_official(cls, source: Source, task: Task | None) -> "WanFamily | None":
        """As in the base: as in `task`, where most tensors are its network's; else by shapes, with published heads."""
        return cls.of_most(source, task) or cls._by_shapes(source, _HEAD_DIM)

    def informed_by(self, source: Source) -> "WanFamily":
        """As in the base: sizes of patches, text and image tokens, which are in no config.json."""
        family = self._by_shapes(source, self.config.hidden_size // self.config.num_heads)
        if family is None:
            return self
        config = dataclasses.replace(self.config, patch_size=family.config.patch_size)
        return dataclasses.replace(self, config=config, condition=family.condition, known=family.known)

    @classmethod
    def _by_shapes(cls, source: Source, head_dim: int) -> "WanFamily | None":
        """Recognises official tensors by names and shapes; None where they are of another network."""
        patches, last, text = "patch_embedding.weight", "head.head.weight", "text_embedding.0.weight"
        up, image = "blocks.0.ffn.0.weight", "img_emb.proj.0.weight"
        dims = {patches: 5, last: 2, text: 2, up: 2}
        if any(name not in source or len(source[name].shape) != dim for name, dim in dims.items()):
            return None
        (hidden_size, channels_in, *patch), (outputs, _), (_, text_dim), (width, _) = (source[n].shape for n in dims)
        if hidden_size % head_dim:
            raise ValueError(f"{patches} is {list(source[patches].shape)}: heads are {head_dim} wide, in all networks")
        layers = {part[1] for part in (name.split(".") for name in source) if part[0] == "blocks" and len(part) > 1}
        image_dim = source[image].shape[0] if image in source else None
        config = {
            "_class_name": cls.diffusers_class,
            "added_kv_proj_dim": None if image_dim is None else hidden_size,
            "attention_head_dim": head_dim,
            "ffn_dim": width,
            "image_dim": image_dim,
            "in_channels": channels_in,
            "num_attention_heads": hidden_size // head_dim,
            "num_layers": len(layers),
            "out_channels": outputs // math.prod(patch),
            "patch_size": patch,
            "text_dim": text_dim,
        }
        return cls.of_diffusers(config)

    def diffusers_config(self, shape: LatentShape) -> dict[str, Any]:
        config = self.config
        if config.text_length != _TEXT_LENGTH:
            raise ValueError(
                f"config.task.network.text_length={config.text_length}: diffusers fills captions up to {_TEXT_LENGTH} "
                f"tokens, all of which are attended to; train with --config.task.network.text_length={_TEXT_LENGTH}"
            )
        return {
            "_class_name": self.diffusers_class,
            **_FIXED,
            "added_kv_proj_dim": None if self.image_size is None else config.hidden_size,
            "attention_head_dim": config.hidden_size // config.num_heads,
            "ffn_dim": config.mlp_size,
            "image_dim": self.image_size,
            "in_channels": self.channels_in,
            "num_attention_heads": config.num_heads,
            "num_layers": config.depth,
            "out_channels": self.channels,
            "patch_size": list(config.patch_size),
            "rope_max_seq_len": 1024,
            "text_dim": self.condition.hidden_size,
        }

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: LatentShape) -> Iterator[Pair]:
        """Compares at several timesteps, with captions of several lengths; then with a timestep for each frame."""
        import torch

        x_t, cond, inputs = self._inputs(np.random.default_rng(0), shape)
        frames, rows, columns = (n // p for n, p in zip(shape, self.config.patch_size))
        per_frame = np.linspace(0, NUM_TIMESTEPS, len(_TIMESTEPS) * frames, dtype=np.float32)
        timesteps = {"": np.array(_TIMESTEPS, np.float32)[:, None], " by frame": per_frame.reshape(-1, frames)}
        definition = self.define()

        @jax.jit
        def call(params, *args):
            network = definition.bind(params)
            return network.layers(*args)["blocks"], network(*args)

        names = [f"blocks.{layer}" for layer in range(self.config.depth)]
        for which, timestep in timesteps.items():
            # Theirs has a timestep for each token, whose frames come first.
            of_tokens = np.repeat(timestep, rows * columns, axis=1) if which else timestep[:, 0]
            with listening(theirs, names) as heard:
                expected = theirs(inputs[0], torch.from_numpy(of_tokens), *inputs[1:], return_dict=False)[0].numpy()
            t = np.repeat(timestep, self.config.patch_size[0], axis=1) if which else timestep
            blocks, output = call(dict(params), x_t, jnp.asarray(t / NUM_TIMESTEPS), cond)
            for name, block in zip(names, blocks):
                by_frame = np.asarray(block).reshape(len(block), -1, frames, block.shape[-1]).swapaxes(1, 2)
                yield Pair(f"{name}{which}", by_frame.reshape(block.shape), heard[name])
            yield Pair(f"output{which}", np.moveaxis(np.asarray(output), -1, 1), expected)

    def _inputs(self, rng: np.random.Generator, shape: LatentShape) -> tuple[Array, Text | ImageCond, list[Any]]:
        """Random x_t and condition; and the same as diffusers takes them, without the timestep."""
        import torch

        num, length, E = len(_TIMESTEPS), self.condition.num_tokens, self.condition.hidden_size
        cells = rng.standard_normal((num, *shape, self.channels_in), np.float32)
        tokens = rng.standard_normal((num, length, E), np.float32)
        num_tokens = np.linspace(1, length, num).astype(np.int32)
        padded = np.zeros((num, _TEXT_LENGTH, E), np.float32)
        padded[:, :length] = tokens * (np.arange(length) < num_tokens[:, None])[..., None]
        inputs = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(cells, -1, 1))), torch.from_numpy(padded)]
        pooled = np.zeros((num, self.condition.pooled_size), np.float32)
        text = Text(*(jnp.asarray(x) for x in (tokens, num_tokens, pooled)))
        x_t, extra_channels = jnp.split(jnp.asarray(cells), [self.channels], axis=-1)
        if self.known is None:
            return x_t, text, inputs
        if self.image_size is None:
            return x_t, ImageCond(text, extra_channels), inputs
        image = rng.standard_normal((num, _NUM_IMAGE_TOKENS, self.image_size), np.float32)
        return x_t, ImageCond(text, extra_channels, jnp.asarray(image)), [*inputs, torch.from_numpy(image)]

    def usage(self, shape: LatentShape) -> str:
        c, (t, h, w) = self.channels, shape
        argument, image = "", ""
        if self.image_size is not None:
            argument = ", encoder_hidden_states_image=image"
            image = f"\n- `image`, float32 `[b n {self.image_size}]`: tokens of an image encoder."
        frame = ""
        if self.known is not None:
            frame = (
                f"; then {self.known.mask_channels} channels of a mask, 1 where frames are known, and {c} of latents "
                "of the first frame followed by " + ("grey ones" if self.known.grey_frames else "zeros")
            )
        return f"""```python
from diffusers import {self.diffusers_class}

transformer = {self.diffusers_class}.from_pretrained(".")
output = transformer(latents, timestep, text{argument}).sample
```

- `latents`, float32 `[b {self.channels_in} {t} {h} {w}]`: noisy latents of the run's own codec, of zero mean and unit
  variance per channel before noise{frame}.
- `timestep`, float32 `[b]`: {NUM_TIMESTEPS} t for noise level t, 0 for data and 1 for noise; `[b n]` has one for each
  patch.
- `text`, float32 `[b {_TEXT_LENGTH} {self.condition.hidden_size}]`: tokens of the text encoder that the run was trained
  with, then zeros.{image}
- `output`, `[b {c} {t} {h} {w}]`: what the objective asks for."""

    def table(self) -> Table:
        sizes = {"channels": self.channels, "channels_in": self.channels_in}
        return table_of(self.config, **sizes, text_size=self.condition.hidden_size, image_size=self.image_size)


def _as_used(published: WanFamily, task: Denoise) -> WanFamily:
    """The published network with the fields of a task on which no weights depend."""
    shown = None if task.known is None else task.known.channels
    known, condition = published.known, published.condition
    if known is not None and shown is not None:
        known = dataclasses.replace(known, grey_frames=shown.grey_frames)
    if isinstance(task.condition, EmbeddedText):
        same = {name: getattr(task.condition, name) for name in ("drop_rate", "pooled_size", "num_tokens")}
        condition = dataclasses.replace(condition, **same)
    return dataclasses.replace(published, known=known, condition=condition)


def _as_diffusers_says(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Converts config.json of the official code to that of diffusers.

    Raises:
        ValueError: it is of a kind that is not read here; names the field.
    """
    fixed = {"model_type": _OFFICIAL_TYPES, "text_len": (_TEXT_LENGTH,)}
    for name, known in fixed.items():
        if (value := config.get(name, known[0])) not in known:
            raise refused(name, value, f"{' and '.join(str(k) for k in known)} are read")
    heads, width = count_of(config, "num_heads", 16), count_of(config, "dim", 2048)
    if width % heads:
        raise ValueError(f"config.json: dim={width}: must be a multiple of num_heads={heads}")
    renamed = {theirs: config[name] for name, theirs in _OFFICIAL_FIELDS.items() if name in config}
    fields = {"_class_name": WanFamily.diffusers_class, "attention_head_dim": width // heads, **renamed}
    return with_fields(config, fields)
