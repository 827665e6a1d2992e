"""Latte (Ma et al., 2401.03048): a DiT whose attention is over space or over time, in four variants (section 3.2).

Blocks are those of the DiT as published (sine and cosine positions, LayerNorm, GELU, adaLN-zero). Conditioned on a
class, each block has an AdaLN of its own; on text, as in Latte-1, all share one, and blocks that attend over space also
attend to the caption (adaLN-single and cross-attention of PixArt-alpha, 2310.00426). Published code and weights are of
the first variant alone; the others follow the words and the figure of the paper.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Latents, Output, Text, Time
from dit_video.config.bounds import at_least
from dit_video.distributed.sharding import constrain
from dit_video.dit.condition import Cond, Condition, required
from dit_video.dit.known_frames import AsChannels, refuse_channels
from dit_video.dit.network import Network, NetworkConfig, scan_blocks, split_variance
from dit_video.nn.attention import Attention, CrossAttention, QKNorm
from dit_video.nn.axial_attention import spatial_attention, split_attention, temporal_attention
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.nn.linear import linear
from dit_video.nn.mlp import PlainMLP
from dit_video.nn.modulation import AdaLN, Modulation, ModulationOffset, gated, modulate, with_frames
from dit_video.nn.norm import layer_normalize
from dit_video.nn.patches import from_tokens, latent_shape, per_patch, to_tokens
from dit_video.nn.positions import sincos_positions

_MLP_RATIO = 4
_TIMESTEP_OFFSET = -1  # the timesteps 0 ... 999 are the levels t = 1/1000 ... 1 of a path that is a table


class Variant(enum.Enum):
    """How attention is split over space and time: the variants, in the order of the paper's figure 2."""

    INTERLEAVED = "interleaved"  # a block over space, then one over time, and so on
    LATE = "late"  # the first half of the blocks over space, the second half over time
    FACTORISED = "factorised"  # each block has attention over space, then attention over time
    SPLIT_HEADS = "split_heads"  # in each block half of the heads attend over space, the others over time

    @property
    def paired(self) -> bool:
        """Whether a block attends over one axis alone, so that there are as many of either kind."""
        return self in (Variant.INTERLEAVED, Variant.LATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatteConfig(NetworkConfig):
    """Configuration of Latte.

    Attributes:
        variant: how attention is split over space and time.
        depth: number of blocks, of both kinds together where there are two.
        position_grid: side of the square of patches that fixed positions are of, over which latents of another size
            are stretched (`grid` of `sincos_positions`); None counts patches.
        shared_modulation: blocks share one AdaLN, to whose vectors each adds a table of its own (adaLN-single); the
            last layer adds one to the embedding of the timestep.
        learned_variance: the last layer has as many channels again, from which the variance of a denoising step is
            computed (Nichol and Dhariwal, 2102.09672).
    """

    variant: Variant = Variant.INTERLEAVED
    position_grid: int | None = None
    shared_modulation: bool = False
    learned_variance: bool = False

    def __post_init__(self):
        super().__post_init__()
        D, K = self.hidden_size, self.num_heads
        if D % K or D % 4:
            raise ValueError(f"LatteConfig.hidden_size={D}: must be a multiple of num_heads={K} and of 4")
        if self.variant.paired and self.depth % 2:
            raise ValueError(f"LatteConfig.depth={self.depth}: variant={self.variant.value} takes an even number")
        if self.variant is Variant.SPLIT_HEADS and K % 2:
            raise ValueError(f"LatteConfig.num_heads={K}: variant={self.variant.value} takes an even number")
        at_least(self, 1, "position_grid", why="None counts patches")

    def time_of(self, timestep: int) -> float:
        """The noise level t of a timestep as others count them, 0 ... 999."""
        return (timestep - _TIMESTEP_OFFSET) / NUM_TIMESTEPS

    @property
    def mlp_size(self) -> int:
        return _MLP_RATIO * self.hidden_size

    @property
    def learns_variance(self) -> bool:
        return self.learned_variance

    def build(
        self,
        channels: int,
        condition: Condition | None,
        *,
        known: AsChannels | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> "Latte":
        refuse_channels(type(self).__name__, known)
        return Latte(self, channels, condition, dtype=dtype, rngs=rngs)


# The official code's sizes, of a class; patches of (1, 4, 4) and (1, 8, 8) are published as well.
LATTE_S = LatteConfig(hidden_size=384, depth=12, num_heads=6, learned_variance=True)
LATTE_B = LatteConfig(hidden_size=768, depth=12, num_heads=12, learned_variance=True)
LATTE_L = LatteConfig(hidden_size=1024, depth=24, num_heads=16, learned_variance=True)
LATTE_XL = LatteConfig(hidden_size=1152, depth=28, num_heads=16, learned_variance=True)
# Latte-1, of text, for latents of 64 rows and columns.
LATTE_TEXT = LatteConfig(
    hidden_size=1152, depth=56, num_heads=16, position_grid=32, shared_modulation=True, learned_variance=True
)


# Softmax attention of queries, keys and values of tokens in so many frames.
Attend = Callable[..., Float[Array, "B N K d"]]


class LatteBlock(nnx.Module):
    """Transformer block of Latte: attention, once or twice, and MLP, each normalised, modulated and gated as in DiT.

    Two attentions of a block are modulated alike and added to the stream one after the other, which the paper leaves
    open. Cross-attention to text comes between attention and MLP, with neither norm nor modulation.

    Args of the constructor:
        attend: the attention functions, over space or over time.
        text_size: width of the text tokens; None where there is no text.
    """

    def __init__(
        self,
        config: LatteConfig,
        attend: tuple[Attend, ...],
        text_size: int | None,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        D, K = config.hidden_size, config.num_heads
        # The one takes the conditioning vector, the other the vectors that blocks share.
        self.modulation: Callable[..., Modulation] = (
            ModulationOffset(6, D, rngs=rngs) if config.shared_modulation else AdaLN(6, D, dtype=dtype, rngs=rngs)
        )
        self.attend = attend
        self.attentions = nnx.List([Attention(D, K, dtype=dtype, rngs=rngs, qk_norm=QKNorm.NONE) for _ in attend])
        self.cross_attention = (
            None if text_size is None else CrossAttention(D, text_size, K, dtype=dtype, rngs=rngs, qk_norm=QKNorm.NONE)
        )
        self.mlp = PlainMLP(D, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        modulating: Float[Array, "B #f D"] | Modulation,
        num_frames: int,
        text: Text | None,
    ) -> Float[Array, "B N D"]:
        """One step of depth.

        Args:
            modulating: the conditioning vector, or with shared modulation the vectors that blocks share.
            num_frames: of patches, over which tokens lie frame by frame within a place.
            text: what blocks made for text attend to.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(modulating)
        for attend, attention in zip(self.attend, self.attentions):
            seen = functools.partial(attend, num_frames=num_frames)
            x = x + gated(gate_a, attention(modulate(layer_normalize(x), shift_a, scale_a), None, seen))
        if self.cross_attention is not None:
            assert text is not None, "a Latte of such blocks encodes text"
            x = x + self.cross_attention(x, text.tokens, text.num_tokens)
        return x + gated(gate_m, self.mlp(modulate(layer_normalize(x), shift_m, scale_m)))


class BlockPair(nnx.Module):
    """Two blocks, one over space and one over time: a layer of the stack in variants with both kinds."""

    def __init__(self, config: LatteConfig, text_size: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spatial = LatteBlock(config, (spatial_attention,), text_size, dtype=dtype, rngs=rngs)
        self.temporal = LatteBlock(config, (temporal_attention,), None, dtype=dtype, rngs=rngs)


class Latte(Network):
    """Latte, the network of a `LatteConfig`.

    Positions of row and column are added to the tokens at the start; those of frames before the first block over time,
    or at the start where every block attends over both. A clip of one frame has no positions of frames.
    """

    def __init__(
        self,
        config: LatteConfig,
        channels: int,
        condition: Condition | None,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = config, dtype
        D, (pt, ph, pw) = config.hidden_size, config.patch_size
        patch_dim = pt * ph * pw * channels
        self.x_embedder = linear(patch_dim, D, (None, "embed"), rngs=rngs, dtype=dtype)
        self.t_embedder = TimeEmbedding(D, dtype=dtype, rngs=rngs, offset=_TIMESTEP_OFFSET)
        self.y_embedder = condition.label_embedding(D, rngs=rngs) if condition else None
        self.text_encoder = condition.text_encoder(dtype=dtype, rngs=rngs) if condition else None
        encoder = self.text_encoder
        self.text_embedder = None if encoder is None else PlainMLP(encoder.hidden_size, D, D, dtype=dtype, rngs=rngs)
        text_size = None if encoder is None else D
        shared = config.shared_modulation
        self.shared_modulation = AdaLN(6, D, dtype=dtype, rngs=rngs) if shared else None

        def layer(key: Array) -> LatteBlock | BlockPair:
            options = {"dtype": dtype, "rngs": nnx.Rngs(key)}
            match config.variant:
                case Variant.FACTORISED:
                    return LatteBlock(config, (spatial_attention, temporal_attention), text_size, **options)
                case Variant.SPLIT_HEADS:
                    return LatteBlock(config, (split_attention,), text_size, **options)
                case _:
                    return BlockPair(config, text_size, **options)

        num_layers = config.depth // 2 if config.variant.paired else config.depth
        # One stacked block, or pair of blocks: every parameter gains a leading axis of layers.
        self.blocks = jax.vmap(layer)(jax.random.split(rngs.params(), num_layers))
        self.final_modulation: Callable[..., Modulation] = (
            ModulationOffset(2, D, rngs=rngs) if shared else AdaLN(2, D, dtype=dtype, rngs=rngs)
        )
        zeros = nnx.initializers.zeros
        out_dim = 2 * patch_dim if config.learned_variance else patch_dim
        self.final_layer = linear(D, out_dim, ("embed", None), rngs=rngs, dtype=dtype, init=zeros)

    def output(self, x_t: Latents, t: Time, cond: Cond | None) -> Output:
        x, _, conditioning = self._through_blocks(x_t, t, cond, keep=False)
        modulating = [conditioning] * 2 if self.config.shared_modulation else conditioning
        shift, scale = self.final_modulation(modulating)
        x = self.final_layer(modulate(layer_normalize(x), shift, scale))
        cells = from_tokens(x, self.config.patch_size, latent_shape(x_t)).astype(jnp.float32)
        return split_variance(cells) if self.config.learned_variance else Output(cells)

    def layers(self, x_t: Latents, t: Time, cond: Cond | None) -> dict[str, Float[Array, "..."]]:
        _, blocks, conditioning = self._through_blocks(x_t, t, cond, keep=True)
        return {"conditioning": conditioning, **blocks}

    def _through_blocks(
        self, x_t: Latents, t: Time, cond: Cond | None, *, keep: bool
    ) -> tuple[Float[Array, "B N D"], dict[str, Float[Array, "layers B N D"]], Float[Array, "B #f D"]]:
        """The stream after the last block, with `keep` those after every layer by name, and the conditioning vector."""
        config, blocks = self.config, self.blocks
        conditioning = self.t_embedder(per_patch(t, config.patch_size))
        if self.y_embedder is not None:
            conditioning = conditioning + self.y_embedder(required(cond))[:, None].astype(conditioning.dtype)
        conditioning = constrain(conditioning, "batch", None, None)
        modulating = conditioning if self.shared_modulation is None else self.shared_modulation(conditioning)
        text, num_frames = self._text(cond), x_t.shape[1] // config.patch_size[0]
        places = sincos_positions(latent_shape(x_t), config.patch_size, config.hidden_size, grid=config.position_grid)
        x = self.x_embedder(to_tokens(x_t, config.patch_size)) + places.astype(self.dtype)
        frames = jnp.asarray(frame_positions(num_frames, config.hidden_size), self.dtype)[None]
        kept: dict[str, Float[Array, "layers B N D"]] = {}

        def step(x, block: LatteBlock):
            return block(constrain(x, "batch", "tokens", None), modulating, num_frames, text)

        def two_steps(x, layer: tuple[BlockPair, Float[Array, ""]]):
            pair, is_first = layer
            # Times one or zero, as layers are one program: a second one, for the first layer alone, would cost more.
            return step(with_frames(jnp.add, step(x, pair.spatial), is_first * frames), pair.temporal)

        def through(name: str, apply: Callable, x: Array, layers: Any) -> Array:
            x, every = scan_blocks(apply, x, layers, remat=config.remat, keep=keep)
            if every is not None:
                kept[name] = every
            return x

        if not isinstance(blocks, BlockPair):
            x = through("blocks", step, with_frames(jnp.add, x, frames), blocks)
        elif config.variant is Variant.LATE:
            x = through("blocks.spatial", step, x, blocks.spatial)
            x = through("blocks.temporal", step, with_frames(jnp.add, x, frames), blocks.temporal)
        else:
            is_first = jnp.zeros(config.depth // 2, self.dtype).at[0].set(1)
            x = through("blocks", two_steps, x, (blocks, is_first))
        return x, kept, conditioning

    def _text(self, cond: Cond | None) -> Text | None:
        if self.text_encoder is None or self.text_embedder is None:
            return None
        text = self.text_encoder(required(cond))
        return text._replace(tokens=constrain(self.text_embedder(jnp.asarray(text.tokens)), "batch", None, None))


def frame_positions(num_frames: int, hidden_size: int) -> Float[np.ndarray, "f D"]:
    """Sinusoidal positions of frames: sines, then cosines, of frequencies 10000^(-2 i / D); zeros for one frame."""
    if num_frames == 1:
        return np.zeros((1, hidden_size), np.float32)
    half = hidden_size // 2
    phase = np.arange(num_frames)[:, None] * 10_000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)
