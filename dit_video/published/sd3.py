"""Stable Diffusion 3 and 3.5 (Esser et al., 2403.03206): MMDiT in the layouts of diffusers and of official files.

The file of weights holds the table of positions, which is no parameter: it follows from a `PositionTable`. Which, the
file says: a fresh network of diffusers has other positions than published weights have, with the same config.json.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit_video.arrays import Text
from dit_video.config.json_file import read_object
from dit_video.diffusion.objective import Gaussian, rectified_flow
from dit_video.diffusion.path import ConstantShift
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.mmdit import MMDiTConfig, PositionTable
from dit_video.encoders.text import FrozenT5, PretrainedText, ZeroTokens, sd3_text
from dit_video.nn.attention import QKNorm
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.nn.positions import sincos_places
from dit_video.published.family import DenoiserFamily, Pair, listening
from dit_video.published.family import Shape as LatentShape
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import Task
from dit_video.weights.config_json import count_of, refused
from dit_video.weights.folder import PIPELINE
from dit_video.weights.names import LAYER, Dialect, Row, Shape, Source, Table, linear, vector

_POSITIONS = {Dialect.DIFFUSERS: "pos_embed.pos_embed", Dialect.OFFICIAL: "pos_embed"}
_BLOCK = {Dialect.DIFFUSERS: f"transformer_blocks.{LAYER}", Dialect.OFFICIAL: f"joint_blocks.{LAYER}"}
_HEAD_DIM = 64  # of all published networks, which shapes do not tell
_MLP_RATIO = 4.0
# Tokens of CLIP and of T5, one after the other; the network takes any number.
_NUM_TOKENS = 77 + 256
_SHIFT = 3.0
_SIZE = 128  # rows and columns of latents, where no config says
_TIMESTEPS = (1.0, 250.0, 500.5, 999.0, 1000.0)
_QK_NORM = {None: QKNorm.NONE, "rms_norm": QKNorm.PER_HEAD}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SD3(DenoiserFamily):
    """Published MMDiT for images (SD3, SD3.5)."""

    diffusers_class: ClassVar[str] = "SD3Transformer2DModel"
    config: MMDiTConfig
    condition: EmbeddedText

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "SD3 | None":
        """As in the base, with the positions that diffusers computes; `informed_by` reads those of a file."""
        if config.get("_class_name") != cls.diffusers_class:
            return None
        heads, depth = count_of(config, "num_attention_heads", 18), count_of(config, "num_layers", 18)
        channels, patch = count_of(config, "in_channels", 16), count_of(config, "patch_size", 2)
        hidden_size = heads * count_of(config, "attention_head_dim", 64)
        grid, size = count_of(config, "sample_size", _SIZE) // patch, count_of(config, "pos_embed_max_size", 96)
        same = {"out_channels": (channels, 16), "caption_projection_dim": (hidden_size, 1152)}
        for name, (expected, default) in same.items():
            if (actual := config.get(name, default)) not in (expected, None):
                raise refused(name, actual, f"in every published network it is {expected}")
        qk_norm = config.get("qk_norm")
        if not isinstance(qk_norm, str | None) or qk_norm not in _QK_NORM:
            raise refused("qk_norm", qk_norm, "published networks have None or 'rms_norm'")
        dual = config.get("dual_attention_layers") or ()
        if not isinstance(dual, list | tuple) or len(dual) > depth or list(dual) != list(range(len(dual))):
            raise refused("dual_attention_layers", dual, "published are the first layers, in order")
        condition = EmbeddedText(
            hidden_size=count_of(config, "joint_attention_dim", 4096),
            pooled_size=count_of(config, "pooled_projection_dim", 2048),
            num_tokens=_NUM_TOKENS,
        )
        network = MMDiTConfig(
            hidden_size=hidden_size,
            depth=depth,
            num_heads=heads,
            patch_size=(1, patch, patch),
            mlp_ratio=_MLP_RATIO,
            qk_norm=_QK_NORM[qk_norm],
            num_dual_blocks=len(dual),
            attend_padding=True,
            position_table=PositionTable(size=size, origin=0.0, step=grid / size),
        )
        return cls(config=network, channels=channels, condition=condition)

    def informed_by(self, source: Source) -> "SD3":
        """As in the base: takes the table of positions from the weights."""
        size = self._positions.size
        stored = next((source[name] for name in _POSITIONS.values() if name in source), None)
        if size == 1 or stored is None or stored.shape != (1, size**2, self.config.hidden_size):
            return self  # what is wrong, `check` says
        # Columns of the first row, which the first half of the features tells apart.
        sines, cosines, *_ = np.split(stored.read()[0, :size].astype(np.float64), 4, axis=1)
        phases = np.arctan2(sines, cosines)
        if not np.isfinite(phases).all():
            return self
        config = dataclasses.replace(self.config, position_table=_line_through(phases))
        return dataclasses.replace(self, config=config)

    @classmethod
    def of_official(cls, source: Source, task: Task | None) -> "SD3 | None":
        """As in the base: as in `task`, where most tensors are its network's; else by shapes, with published heads."""
        return cls.of_most(source, task) or cls._by_shapes(source)

    @classmethod
    def _by_shapes(cls, source: Source) -> "SD3 | None":
        """Recognises official tensors by names and shapes; None where they are of another network."""
        patches, positions = "x_embedder.proj.weight", _POSITIONS[Dialect.OFFICIAL]
        dims = {patches: 4, positions: 3, "context_embedder.weight": 2, "y_embedder.mlp.0.weight": 2}
        if any(name not in source or len(source[name].shape) != dim for name, dim in dims.items()):
            return None
        (D, channels, patch, _), (_, places, _), (_, text_dim), (_, pooled_dim) = (source[name].shape for name in dims)
        if D % _HEAD_DIM:
            raise ValueError(f"{patches} is {list(source[patches].shape)}: heads are {_HEAD_DIM} wide in all networks")
        blocks = [name.split(".", 2) for name in source if name.startswith("joint_blocks.") and name.count(".") > 1]
        dual = sum(rest == "x_block.attn2.qkv.weight" for _, _, rest in blocks)
        config = {
            "_class_name": cls.diffusers_class,
            "attention_head_dim": _HEAD_DIM,
            "caption_projection_dim": D,
            "dual_attention_layers": list(range(dual)),
            "in_channels": channels,
            "joint_attention_dim": text_dim,
            "num_attention_heads": D // _HEAD_DIM,
            "num_layers": len({number for _, number, _ in blocks}),
            "out_channels": channels,
            "patch_size": patch,
            "pooled_projection_dim": pooled_dim,
            "pos_embed_max_size": math.isqrt(places),
            "qk_norm": "rms_norm" if any(rest == "x_block.attn.ln_q.weight" for _, _, rest in blocks) else None,
        }
        return cls.of_diffusers(config)

    def usual_latents(self, config: Mapping[str, Any]) -> LatentShape:
        """As in the base: latents of 1024 x 1024 pixels, where config.json has no size."""
        return super().usual_latents({"sample_size": _SIZE} | dict(config))

    @classmethod
    def of_task(cls, task: Task) -> "SD3 | None":
        if not isinstance(task, Denoise) or not isinstance(task.network, MMDiTConfig):
            return None
        network, where = task.network, "config.task.network"
        expected = {"mlp_ratio": _MLP_RATIO, "text_output": False, "attend_padding": True}
        for name, value in expected.items():
            if (actual := getattr(network, name)) != value:
                raise ValueError(f"{where}.{name}={actual}: as published it is {value}")
        if network.qk_norm not in _QK_NORM.values():
            raise ValueError(f"{where}.qk_norm={network.qk_norm.value}: as published it is none or per_head")
        pt, ph, pw = network.patch_size
        if pt != 1 or ph != pw:
            raise ValueError(f"{where}.patch_size={network.patch_size}: published patches are squares")
        if network.position_table is None:
            raise ValueError(f"{where}.position_table=None: published networks have one")
        if not isinstance(task.condition, EmbeddedText):
            raise ValueError(f"config.task.condition={task.condition}: published networks are given an EmbeddedText")
        return cls(config=network, channels=task.codec.vae.latent_channels, condition=task.condition)

    def objective(self) -> Gaussian:
        return dataclasses.replace(rectified_flow(), shift=ConstantShift(shift=_SHIFT))

    def text_encoders(self, pipeline: str) -> PretrainedText:
        """As in the base: the pipeline's index says whether it comes without the T5."""
        text = sd3_text(pipeline)
        listed = read_object(Path(pipeline) / PIPELINE).get("text_encoder_3", ["transformers"])
        if isinstance(text.t5, FrozenT5) and (listed is None or listed == [None, None]):
            zeros = ZeroTokens(num_tokens=text.t5.num_tokens, hidden_size=self.condition.hidden_size)
            return dataclasses.replace(text, t5=zeros)
        return text

    def differences(self, task: Task) -> list[str]:
        """As in the base, but for the number of text tokens, which any network takes."""
        if not isinstance(task, Denoise) or not isinstance(task.condition, EmbeddedText):
            return super().differences(task)
        condition = dataclasses.replace(self.condition, num_tokens=task.condition.num_tokens)
        return super(SD3, dataclasses.replace(self, condition=condition)).differences(task)

    def diffusers_config(self, shape: LatentShape) -> dict[str, Any]:
        t, h, w = shape
        config, table, patch = self.config, self._positions, self.config.patch_size[1]
        if t != 1:
            raise ValueError(f"latents are of (t, h, w) = {shape}: it takes images alone")
        if max(h, w) > table.size * patch:
            raise ValueError(f"latents are of (t, h, w) = {shape}: its table of positions has {table.size} patches")
        return {
            "_class_name": self.diffusers_class,
            "attention_head_dim": config.hidden_size // config.num_heads,
            "caption_projection_dim": config.hidden_size,
            "dual_attention_layers": list(range(config.num_dual_blocks)),
            "in_channels": self.channels,
            "joint_attention_dim": self.condition.hidden_size,
            "num_attention_heads": config.num_heads,
            "num_layers": config.depth,
            "out_channels": self.channels,
            "patch_size": patch,
            "pooled_projection_dim": self.condition.pooled_size,
            "pos_embed_max_size": table.size,
            "qk_norm": next(name for name, value in _QK_NORM.items() if value is config.qk_norm),
            # Where weights are loaded, this decides the default size of pipelines alone.
            "sample_size": max(h, w),
        }

    @property
    def _positions(self) -> PositionTable:
        assert self.config.position_table is not None, "`of_task` refuses networks without a position table"
        return self.config.position_table

    def table(self) -> Table:
        config, D, p = self.config, self.config.hidden_size, self.config.patch_size[1]
        of_time, of_text = "time_text_embed.timestep_embedder", "time_text_embed.text_embedder"
        num_dual = min(config.num_dual_blocks, config.depth - 1)
        all_dual = config.num_dual_blocks == config.depth
        rows = (
            # A convolution there: cells of a patch are ordered (row, column, channel) here.
            Row(
                ours="x_embedder.kernel",
                our_shape=(p * p * self.channels, D),
                theirs=_theirs("x_embedder.proj.weight", "pos_embed.proj.weight"),
                shape=(D, self.channels, p, p),
                order=(2, 3, 1, 0),
            ),
            vector("x_embedder.bias", (D,), _theirs("x_embedder.proj.bias", "pos_embed.proj.bias")),
            *_linear(
                *("t_embedder.up", (TimeEmbedding.num_frequencies,), (D,)),
                *("t_embedder.mlp.0", f"{of_time}.linear_1"),
            ),
            *_linear("t_embedder.down", (D,), (D,), "t_embedder.mlp.2", f"{of_time}.linear_2"),
            *_linear(
                *("pooled_embedder.up", (self.condition.pooled_size,), (D,)),
                *("y_embedder.mlp.0", f"{of_text}.linear_1"),
            ),
            *_linear("pooled_embedder.down", (D,), (D,), "y_embedder.mlp.2", f"{of_text}.linear_2"),
            *_linear("text_embedder", (self.condition.hidden_size,), (D,), "context_embedder", "context_embedder"),
            *_stack(config, "dual_blocks", range(num_dual), dual=True),
            *_stack(config, "blocks", range(num_dual, config.depth - 1), dual=False),
            *_stack(config, "last_block", range(config.depth - 1, config.depth), dual=all_dual, reads_text=True),
            *_shift_first(
                _linear(
                    *("final_modulation.projection", (D,), (2, D)),
                    *("final_layer.adaLN_modulation.1", "norm_out.linear"),
                )
            ),
            *_linear("final_layer", (D,), (p * p * self.channels,), "final_layer.linear", "proj_out"),
        )
        places = self._positions.middle(self._positions.size)
        positions = sincos_places(places, places, D)[None]
        return Table(rows=rows, constants={dialect: {name: positions} for dialect, name in _POSITIONS.items()})

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: LatentShape) -> Iterator[Pair]:
        import torch

        rng, num = np.random.default_rng(0), len(_TIMESTEPS)
        x_t = rng.standard_normal((num, *shape, self.channels), np.float32)
        text = Text(
            rng.standard_normal((num, self.condition.num_tokens, self.condition.hidden_size), np.float32),
            np.full(num, self.condition.num_tokens, np.int32),
            rng.standard_normal((num, self.condition.pooled_size), np.float32),
        )
        inputs = (x_t[:, 0].transpose(0, 3, 1, 2), text.tokens, text.pooled, np.asarray(_TIMESTEPS, np.float32))
        names = [f"transformer_blocks.{layer}" for layer in range(self.config.depth)]
        # The last block says nothing of text.
        with listening(theirs, names, which=1) as of_video, listening(theirs, names[:-1]) as of_text:
            expected = theirs(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs), return_dict=False)[
                0
            ].numpy()
        definition = self.define()

        @jax.jit
        def call(params, *args):
            network = definition.bind(params)
            return network.layers(*args), network(*args)

        t = jnp.asarray(_TIMESTEPS, jnp.float32)[:, None] / NUM_TIMESTEPS
        layers, actual = call(dict(params), jnp.asarray(x_t), t, jax.tree.map(jnp.asarray, text))
        for layer, name in enumerate(names):
            yield Pair(f"block {layer}, video", np.asarray(layers["blocks.video"][layer]), of_video[name])
            if name in of_text:
                yield Pair(f"block {layer}, text", np.asarray(layers["blocks.text"][layer]), of_text[name])
        yield Pair("output", np.asarray(actual)[:, 0].transpose(0, 3, 1, 2), expected)

    def usage(self, shape: LatentShape) -> str:
        _, h, w = shape
        c, E, P = self.channels, self.condition.hidden_size, self.condition.pooled_size
        return f"""```python
from diffusers import {self.diffusers_class}

transformer = {self.diffusers_class}.from_pretrained(".")
output = transformer(latents, tokens, pooled, timestep).sample
```

- `latents`, float32 `[b {c} {h} {w}]`: noisy latents of the run's own codec, of zero mean and unit variance per
  channel before noise. A pipeline of diffusers needs a VAE with the same latents.
- `tokens`, float32 `[b L {E}]`: what a text encoder makes of captions, in training
  {self.condition.num_tokens} tokens each; all are attended to.
- `pooled`, float32 `[b {P}]`: one vector for each caption.
- `timestep`, float32 `[b]`: {NUM_TIMESTEPS} t for noise level t, 0 for data and 1 for noise.
- `output`, `[b {c} {h} {w}]`: what the objective asks for."""


def _line_through(phases: Float[np.ndarray, "n frequencies"]) -> PositionTable:
    """Fits a `PositionTable` to phases, modulo a turn and with the precision of 16 bits."""
    size, num_frequencies = phases.shape
    middle = num_frequencies // 2
    # The middle frequency tells how many turns the highest, whose phases are positions, has made.
    coarse = np.unwrap(phases[:, middle]) * 10_000.0 ** (middle / num_frequencies)
    positions = coarse + np.angle(np.exp(1j * (phases[:, 0] - coarse)))
    step, first = np.polyfit(np.arange(size), positions, 1)
    step = float(Fraction(step).limit_denominator(1000)) or 1.0
    return PositionTable(size=size, origin=round(-2 * first / step) / 2, step=abs(step))


def _theirs(official: str, *diffusers: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.OFFICIAL: (official,), Dialect.DIFFUSERS: diffusers}


def _linear(ours: str, inputs: Shape, outputs: Shape, official: str, *diffusers: str) -> tuple[Row, ...]:
    return linear(ours, inputs, outputs, _theirs(official, *diffusers))


def _shift_first(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows of the last modulation, (shift, scale) in official files and (scale, shift) in diffusers."""
    return tuple(dataclasses.replace(row, swapped=frozenset({Dialect.OFFICIAL})) for row in rows)


def _stack(config: MMDiTConfig, stack: str, layers: range, *, dual: bool, reads_text: bool = False) -> Iterator[Row]:
    """Rows of the blocks of one kind, which here are one stack."""
    if not layers:
        return
    D, K, M = config.hidden_size, config.num_heads, config.mlp_size
    heads = (K, D // K)

    def placed(*rows: Row) -> Iterator[Row]:
        for row in rows:
            names = {dialect: tuple(f"{_BLOCK[dialect]}.{name}" for name in n) for dialect, n in row.theirs.items()}
            yield dataclasses.replace(
                row,
                ours=f"{stack}.{row.ours}",
                theirs=names,
                num_layers=len(layers),
                first_layer=layers.start,
                stacked=True,
            )

    def attention(ours: str, official: str, theirs: str, qkv: tuple[str, ...], norms: tuple[str, str]) -> Iterator[Row]:
        yield from _linear(f"{ours}.qkv", (D,), (3, *heads), f"{official}.qkv", *(f"{theirs}.{name}" for name in qkv))
        if config.qk_norm is not QKNorm.NONE:
            for norm, ln, name in zip(("query_norm", "key_norm"), ("ln_q", "ln_k"), norms):
                names = _theirs(f"{official}.{ln}.weight", f"{theirs}.{name}.weight")
                yield vector(f"{ours}.{norm}.scale", (D // K,), names)

    of_video, of_text = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
    norms, added_norms = ("norm_q", "norm_k"), ("norm_added_q", "norm_added_k")
    modulation = "adaLN_modulation.1"
    of_context = _linear(
        *("text_modulation.projection", (D,), (2 if reads_text else 6, D)),
        *(f"context_block.{modulation}", "norm1_context.linear"),
    )
    yield from placed(
        *_linear("video_modulation.projection", (D,), (9 if dual else 6, D), f"x_block.{modulation}", "norm1.linear"),
        *(_shift_first(of_context) if reads_text else of_context),
        *attention("attention.video", "x_block.attn", "attn", of_video, norms),
        *attention("attention.text", "context_block.attn", "attn", of_text, added_norms),
        *_linear("attention.video.out", heads, (D,), "x_block.attn.proj", "attn.to_out.0"),
        *_linear("video_mlp.up", (D,), (M,), "x_block.mlp.fc1", "ff.net.0.proj"),
        *_linear("video_mlp.down", (M,), (D,), "x_block.mlp.fc2", "ff.net.2"),
    )
    if dual:
        yield from placed(
            *attention("video_attention", "x_block.attn2", "attn2", of_video, norms),
            *_linear("video_attention.out", heads, (D,), "x_block.attn2.proj", "attn2.to_out.0"),
        )
    if not reads_text:
        yield from placed(
            *_linear("attention.text.out", heads, (D,), "context_block.attn.proj", "attn.to_add_out"),
            *_linear("text_mlp.up", (D,), (M,), "context_block.mlp.fc1", "ff_context.net.0.proj"),
            *_linear("text_mlp.down", (M,), (D,), "context_block.mlp.fc2", "ff_context.net.2"),
        )
