"""Latte with interleaved blocks: text-conditional in diffusers, class-conditional or unconditional in official code.

The one is `LatteTransformer3DModel`, the other Vchitect/Latte (`models/latte.py`), for which diffusers has no class.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dit_video.arrays import Text
from dit_video.diffusion.objective import Gaussian, UniformLevels
from dit_video.diffusion.path import DiscreteBetas
from dit_video.diffusion.prediction import Epsilon
from dit_video.diffusion.variance import LearnedVariance
from dit_video.dit.condition import ClassCondition, EmbeddedText
from dit_video.dit.latte import LATTE_B, LATTE_L, LATTE_S, LATTE_XL, LatteConfig, Variant, frame_positions
from dit_video.encoders.text import PretrainedText, latte_text
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.nn.positions import sincos_positions
from dit_video.published.family import DenoiserFamily, Pair, listening
from dit_video.published.family import Shape as LatentShape
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import Task
from dit_video.weights.config_json import check_fixed, count_of, with_fields
from dit_video.weights.names import EVEN, LAYER, ODD, Dialect, Row, Shape, Source, Table, linear, vector

# Official names that tell sizes; no other official network has the second.
_PATCHES, _FRAMES, _PLACES = "x_embedder.proj.weight", "temp_embed", "pos_embed"
_LABELS, _LAST = "y_embedder.embedding_table.weight", "final_layer.linear.weight"

# What diffusers' class can be, where the published network is one thing.
_DIFFUSERS_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
}
# What the class takes where its config does not say.
_DIFFUSERS_DEFAULTS = {
    "activation_fn": "geglu",
    "attention_bias": False,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "num_layers": 1,
    "sample_size": 64,
}
# Positions are counted in patches up to twice this many rows of latents, and beyond in fewer, larger steps.
_DIFFUSERS_ROWS = 64
_TEXT_LENGTH = 120  # tokens of a caption, as published
_TIMESTEPS = (0, 500, 999)

# The layers of a block: ours, and theirs behind the name of the block.
_QKV, _OUT, _UP, _DOWN = "attentions.0.qkv", "attentions.0.out", "mlp.up", "mlp.down"
_BLOCKS = {
    Dialect.OFFICIAL: {_QKV: ("attn.qkv",), _OUT: ("attn.proj",), _UP: ("mlp.fc1",), _DOWN: ("mlp.fc2",)},
    Dialect.DIFFUSERS: {
        _QKV: ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        _OUT: ("attn1.to_out.0",),
        _UP: ("ff.net.0.proj",),
        _DOWN: ("ff.net.2",),
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterleavedLatte(DenoiserFamily):
    """Published Latte.

    Attributes:
        condition: text, as in diffusers; or a class or nothing, as in the official code.
        num_frames: of official weights, which hold the positions of so many.
    """

    diffusers_class: ClassVar[str] = "LatteTransformer3DModel"

    config: LatteConfig
    condition: EmbeddedText | ClassCondition | None
    num_frames: int = 16

    def objective(self) -> Gaussian:
        variance = LearnedVariance() if self.config.learned_variance else None
        return Gaussian(path=DiscreteBetas(), prediction=Epsilon(), times=UniformLevels(), variance=variance)

    def usual_latents(self, config: Mapping[str, Any]) -> LatentShape:
        grid = self.config.position_grid
        size = count_of(config, "sample_size", _DIFFUSERS_ROWS if grid is None else grid * self.config.patch_size[1])
        return count_of(config, "video_length", self.num_frames), size, size

    def text_encoders(self, pipeline: str) -> PretrainedText | None:
        return latte_text(pipeline) if isinstance(self.condition, EmbeddedText) else None

    def differences(self, task: Task) -> list[str]:
        config, condition = self.config, self.condition
        if isinstance(task, Denoise):
            # Positions that count patches are the same function at the size that the weights are of.
            if isinstance(task.network, LatteConfig) and task.network.position_grid is None:
                config = dataclasses.replace(config, position_grid=None)
            # No weights depend on how many tokens a caption has, and none read the vector for a whole one.
            if isinstance(task.condition, EmbeddedText) and isinstance(condition, EmbeddedText):
                used = task.condition
                condition = dataclasses.replace(condition, pooled_size=used.pooled_size, num_tokens=used.num_tokens)
        family = dataclasses.replace(self, config=config, condition=condition)
        return super(InterleavedLatte, family).differences(task)

    @classmethod
    def of_task(cls, task: Task) -> "InterleavedLatte | None":
        if not isinstance(task, Denoise) or not isinstance(task.network, LatteConfig):
            return None
        config, condition, where = task.network, task.condition, "config.task.network"
        if config.variant is not Variant.INTERLEAVED:
            raise ValueError(
                f"{where}.variant={config.variant.value}: published weights and code are of "
                f"{Variant.INTERLEAVED.value} alone"
            )
        pt, ph, pw = config.patch_size
        if pt != 1 or ph != pw:
            raise ValueError(f"{where}.patch_size={config.patch_size}: published patches are squares")
        if condition is not None and not isinstance(condition, EmbeddedText | ClassCondition):
            raise ValueError(
                f"config.task.condition={condition}: published networks are conditioned on a class, on text that is "
                "embedded (EmbeddedText), or on nothing"
            )
        if config.shared_modulation != isinstance(condition, EmbeddedText):
            raise ValueError(
                f"{where}.shared_modulation={config.shared_modulation} with config.task.condition={condition}: the "
                "published network of text shares its modulation, and the others do not"
            )
        return cls(config=config, channels=task.codec.vae.latent_channels, condition=condition)

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "InterleavedLatte | None":
        if config.get("_class_name") != cls.diffusers_class:
            return None
        config = with_fields(config, _DIFFUSERS_DEFAULTS | dict(config))
        check_fixed(config, _DIFFUSERS_FIXED)
        num_heads, channels = count_of(config, "num_attention_heads"), count_of(config, "in_channels")
        hidden_size, patch = num_heads * count_of(config, "attention_head_dim"), count_of(config, "patch_size")
        outputs = channels if config.get("out_channels") is None else count_of(config, "out_channels")
        if outputs not in (channels, 2 * channels):
            raise ValueError(f"config.json: out_channels={outputs}: must be in_channels={channels} or twice as many")
        if count_of(config, "cross_attention_dim") != hidden_size:
            raise ValueError(
                f"config.json: cross_attention_dim={config['cross_attention_dim']}: captions are brought to the width "
                f"of the blocks, {hidden_size}"
            )
        size = count_of(config, "sample_size")
        step = max(size // _DIFFUSERS_ROWS, 1)
        if size // patch % step:
            raise ValueError(
                f"config.json: sample_size={size}: {size // patch} patches do not divide into steps of {step}, which "
                "diffusers counts positions in at this size"
            )
        network = LatteConfig(
            hidden_size=hidden_size,
            depth=2 * count_of(config, "num_layers"),
            num_heads=num_heads,
            patch_size=(1, patch, patch),
            position_grid=size // patch // step,
            shared_modulation=True,
            learned_variance=outputs == 2 * channels,
        )
        text_size = count_of(config, "caption_channels")
        condition = EmbeddedText(hidden_size=text_size, pooled_size=1, num_tokens=_TEXT_LENGTH)
        return cls(config=network, channels=channels, condition=condition)

    @classmethod
    def of_official(cls, source: Source, task: Task | None) -> "InterleavedLatte | None":
        """Recognises official weights by names and shapes; None where they are of something else.

        How many heads there are shapes do not tell: that is as in the published network of this width and depth, and
        else as in `task`.
        """
        dims = {_PATCHES: 4, _FRAMES: 3, _PLACES: 3, _LAST: 2}
        if any(name not in source or len(source[name].shape) != dim for name, dim in dims.items()):
            return cls.of_most(source, task)
        (D, channels, patch, _), (_, num_frames, _), (_, places, _), (outputs, _) = (source[n].shape for n in dims)
        if num_frames == 1:
            raise ValueError(f"{_FRAMES}: has the position of one frame; a Latte of images is not read")
        depth = len({name.split(".")[1] for name in source if name.startswith("blocks.")})
        like = task.network if isinstance(task, Denoise) and isinstance(task.network, LatteConfig) else LATTE_XL
        heads = {(size.hidden_size, size.depth): size.num_heads for size in (LATTE_S, LATTE_B, LATTE_L, LATTE_XL)}
        config = LatteConfig(
            hidden_size=D,
            depth=depth,
            num_heads=heads.get((D, depth), math.gcd(like.num_heads, D)),
            patch_size=(1, patch, patch),
            position_grid=math.isqrt(places),
            learned_variance=outputs == 2 * channels * patch**2,
        )
        labels = source.get(_LABELS)
        condition = None if labels is None else ClassCondition(num_classes=labels.shape[0] - 1)
        return cls(config=config, channels=channels, condition=condition, num_frames=num_frames)

    def diffusers_config(self, shape: LatentShape) -> dict[str, Any]:
        config, (t, h, w) = self.config, shape
        if not isinstance(self.condition, EmbeddedText):
            raise ValueError(
                f"config.task.condition={self.condition}: it is conditioned on text; set EmbeddedText(...) and "
                "config.task.network.shared_modulation=True"
            )
        patch = config.patch_size[1]
        if config.position_grid is None and h != w:
            raise ValueError(
                f"config.task.network.position_grid=None with latents of (t, h, w) = {shape}: positions that count "
                "patches are those of squares alone; set it, or make clips square"
            )
        size = h if config.position_grid is None else config.position_grid * patch
        if size >= 2 * _DIFFUSERS_ROWS:
            raise ValueError(
                f"config.task.network.position_grid={config.position_grid}: positions of {size} rows are counted in "
                f"larger steps; less than {2 * _DIFFUSERS_ROWS // patch} patches can be said"
            )
        return {
            "_class_name": self.diffusers_class,
            **_DIFFUSERS_FIXED,
            "attention_head_dim": config.hidden_size // config.num_heads,
            "caption_channels": self.condition.hidden_size,
            "cross_attention_dim": config.hidden_size,
            "dropout": 0.0,
            "in_channels": self.channels,
            "num_attention_heads": config.num_heads,
            "num_embeds_ada_norm": NUM_TIMESTEPS,
            "num_layers": config.depth // 2,
            "out_channels": self.channels * (2 if config.learned_variance else 1),
            "patch_size": patch,
            "sample_size": size,
            "video_length": t,
        }

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: LatentShape) -> Iterator[Pair]:
        """Compares at several timesteps, with captions of several lengths."""
        assert isinstance(self.condition, EmbeddedText), "diffusers has a class for Latte with text conditions only"
        import torch

        rng, num, (t, h, w) = np.random.default_rng(0), len(_TIMESTEPS), shape
        num_tokens, width = self.condition.num_tokens, self.condition.hidden_size
        x_t = rng.standard_normal((num, t, h, w, self.channels), np.float32)
        text = Text(
            rng.standard_normal((num, num_tokens, width), np.float32),
            np.linspace(1, num_tokens, num).astype(np.int32),
            np.zeros((num, self.condition.pooled_size), np.float32),
        )
        # Added to logits. A row for each frame: frames are a part of the batch there.
        hidden = np.arange(num_tokens) >= text.num_tokens[:, None]
        bias = np.repeat(np.where(hidden, -np.inf, 0.0).astype(np.float32), t, axis=0)[:, None]
        parts = [f"temporal_transformer_blocks.{pair}" for pair in range(self.config.depth // 2)]
        with listening(theirs, parts) as heard:
            inputs = (torch.from_numpy(x_t.transpose(0, 4, 1, 2, 3)), torch.tensor(_TIMESTEPS))
            captions = (torch.from_numpy(x) for x in (text.tokens, bias))
            expected = theirs(*inputs, *captions, return_dict=False)[0].numpy()
        definition = self.define()

        @jax.jit
        def call(params, *args):
            network = definition.bind(params)
            return network.layers(*args)["blocks"], network.output(*args)

        levels = jnp.asarray([[self.config.time_of(n)] for n in _TIMESTEPS], jnp.float32)
        blocks, output = call(dict(params), jnp.asarray(x_t), levels, jax.tree.map(jnp.asarray, text))
        for part, ours in zip(parts, np.asarray(blocks)):
            yield Pair(part, ours, heard[part].reshape(ours.shape))
        actual = np.concatenate([part for part in output if part is not None], axis=-1)
        yield Pair("output", actual.transpose(0, 4, 1, 2, 3), expected)

    def usage(self, shape: LatentShape) -> str:
        assert isinstance(self.condition, EmbeddedText), "diffusers has a class for Latte with text conditions only"
        config, c, size = self.config, self.channels, " ".join(map(str, shape))
        variance = f", then {c} channels that its variance is made of" if config.learned_variance else ""
        return f"""```python
from diffusers import {self.diffusers_class}

transformer = {self.diffusers_class}.from_pretrained(".")
output = transformer(latents, timestep=timestep, encoder_hidden_states=text, encoder_attention_mask=bias).sample
```

- `latents`, float32 `[b {c} {size}]`: noisy latents of the run's own codec, of zero mean and unit variance per channel
  before noise. A pipeline of diffusers needs a VAE with the same latents.
- `timestep`, int64 `[b]`: {NUM_TIMESTEPS} t - 1 for noise level t, 0 for data and 1 for noise.
- `text`, float32 `[b l {self.condition.hidden_size}]`: embeddings of the tokens of captions.
- `bias`, float32 `[b * {shape[0]}, 1, l]`, a row for each frame of each clip: 0 at tokens, minus infinity at padding;
  left out where there is none.
- `output`, `[b {2 * c if config.learned_variance else c} {size}]`: what the objective asks for{variance}."""

    def table(self) -> Table:
        return self._of_text() if isinstance(self.condition, EmbeddedText) else self._of_class()

    def _of_text(self) -> Table:
        config, D, K = self.config, self.config.hidden_size, self.config.num_heads
        assert isinstance(self.condition, EmbeddedText), "`table` calls this for text conditions only"
        spatial, temporal = f"transformer_blocks.{LAYER}", f"temporal_transformer_blocks.{LAYER}"
        heads = (K, D // K)

        def layer(ours: str, inputs: Shape, outputs: Shape, theirs: str) -> tuple[Row, ...]:
            return linear(ours, inputs, outputs, {Dialect.DIFFUSERS: (theirs,)})

        def across(ours: str, inputs: Shape, outputs: Shape, *theirs: str) -> tuple[Row, ...]:
            names = {Dialect.DIFFUSERS: tuple(f"{spatial}.attn2.{name}" for name in theirs)}
            ours = f"blocks.spatial.cross_attention.{ours}"
            return linear(ours, inputs, outputs, names, num_layers=config.depth // 2, stacked=True)

        def offset(ours: str, num: int, theirs: str, *, stacked: bool) -> Row:
            return Row(
                ours=f"{ours}.table",
                our_shape=(num, D),
                theirs={Dialect.DIFFUSERS: (theirs,)},
                shape=(num, D),
                order=(0, 1),
                num_layers=config.depth // 2 if stacked else 1,
                stacked=stacked,
            )

        rows = (
            *self._patches(Dialect.DIFFUSERS, "pos_embed.proj"),
            *layer(
                *("t_embedder.up", (TimeEmbedding.num_frequencies,), (D,)),
                "adaln_single.emb.timestep_embedder.linear_1",
            ),
            *layer("t_embedder.down", (D,), (D,), "adaln_single.emb.timestep_embedder.linear_2"),
            *layer("shared_modulation.projection", (D,), (6, D), "adaln_single.linear"),
            *layer("text_embedder.up", (self.condition.hidden_size,), (D,), "caption_projection.linear_1"),
            *layer("text_embedder.down", (D,), (D,), "caption_projection.linear_2"),
            *self._block("blocks.spatial", Dialect.DIFFUSERS, spatial),
            *across("query", (D,), heads, "to_q"),
            *across("key_value", (D,), (2, *heads), "to_k", "to_v"),
            *across("out", heads, (D,), "to_out.0"),
            *self._block("blocks.temporal", Dialect.DIFFUSERS, temporal),
            offset("blocks.spatial.modulation", 6, f"{spatial}.scale_shift_table", stacked=True),
            offset("blocks.temporal.modulation", 6, f"{temporal}.scale_shift_table", stacked=True),
            offset("final_modulation", 2, "scale_shift_table", stacked=False),
            *layer("final_layer", (D,), (self._out_cells,), "proj_out"),
        )
        return Table(rows=rows)

    def _of_class(self) -> Table:
        config, D = self.config, self.config.hidden_size

        def layer(ours: str, inputs: Shape, outputs: Shape, theirs: str, *, stacked: bool = False) -> tuple[Row, ...]:
            num = config.depth // 2 if stacked else 1
            return linear(ours, inputs, outputs, {Dialect.OFFICIAL: (theirs,)}, num_layers=num, stacked=stacked)

        rows = [
            *self._patches(Dialect.OFFICIAL, "x_embedder.proj"),
            *layer("t_embedder.up", (TimeEmbedding.num_frequencies,), (D,), "t_embedder.mlp.0"),
            *layer("t_embedder.down", (D,), (D,), "t_embedder.mlp.2"),
            *layer("final_modulation.projection", (D,), (2, D), "final_layer.adaLN_modulation.1"),
            *layer("final_layer", (D,), (self._out_cells,), "final_layer.linear"),
        ]
        for ours, block in (("blocks.spatial", f"blocks.{EVEN}"), ("blocks.temporal", f"blocks.{ODD}")):
            modulation, theirs = f"{ours}.modulation.projection", f"{block}.adaLN_modulation.1"
            rows += self._block(ours, Dialect.OFFICIAL, block)
            rows += layer(modulation, (D,), (6, D), theirs, stacked=True)
        if isinstance(self.condition, ClassCondition):
            shape = (self.condition.num_classes + 1, D)
            theirs = {Dialect.OFFICIAL: (_LABELS,)}
            rows.append(Row(ours="y_embedder.table", our_shape=shape, theirs=theirs, shape=shape, order=(0, 1)))
        grid = config.position_grid or 1
        positions = {
            _PLACES: np.array(sincos_positions((1, grid, grid), (1, 1, 1), D))[None],
            _FRAMES: frame_positions(self.num_frames, D)[None],
        }
        return Table(rows=tuple(rows), constants={Dialect.OFFICIAL: positions})

    @property
    def _out_cells(self) -> int:
        channels = 2 * self.channels if self.config.learned_variance else self.channels
        return self.config.patch_size[1] ** 2 * channels

    def _patches(self, dialect: Dialect, theirs: str) -> tuple[Row, ...]:
        D, p, c = self.config.hidden_size, self.config.patch_size[1], self.channels
        # A convolution there: cells of a patch are ordered (row, column, channel) here.
        kernel = Row(
            ours="x_embedder.kernel",
            our_shape=(p * p * c, D),
            theirs={dialect: (f"{theirs}.weight",)},
            shape=(D, c, p, p),
            order=(2, 3, 1, 0),
        )
        return kernel, vector("x_embedder.bias", (D,), {dialect: (f"{theirs}.bias",)})

    def _block(self, ours: str, dialect: Dialect, theirs: str) -> tuple[Row, ...]:
        """Rows of the spatial and temporal blocks in either dialect."""
        D, K, M = self.config.hidden_size, self.config.num_heads, self.config.mlp_size
        sizes = {_QKV: ((D,), (3, K, D // K)), _OUT: ((K, D // K), (D,)), _UP: ((D,), (M,)), _DOWN: ((M,), (D,))}
        rows: list[Row] = []
        for name, (inputs, outputs) in sizes.items():
            names = {dialect: tuple(f"{theirs}.{part}" for part in _BLOCKS[dialect][name])}
            rows += linear(f"{ours}.{name}", inputs, outputs, names, num_layers=self.config.depth // 2, stacked=True)
        return tuple(rows)
