"""Wan 2.1 and 2.2 (Wan team, 2503.20314): text to video, and image to video, on video latents.

A block is self-attention, cross-attention to text, and an MLP. All blocks are modulated by the same vectors, made of
the noise level alone; each adds a table of its own to them. Queries and keys are normalised across all heads at once,
positions are rotary on three axes and count patches, the stream is normalised by LayerNorm. Noise levels may differ
from frame to frame: Wan 2.2 TI2V-5B continues an image that is the first frame at level 0. The other networks of image
to video get that frame as channels beside those of x_t (dit/known_frames.py).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import ImageCond, Latents, Output, Time
from dit_video.config.bounds import at_least
from dit_video.distributed.sharding import constrain
from dit_video.dit.condition import Cond, Condition, required
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.network import Network, NetworkConfig, scan_blocks
from dit_video.nn.attention import Attention, CrossAttention, HeadsNorm, QKNorm, kernel_init, to_heads
from dit_video.nn.embed import TimeEmbedding
from dit_video.nn.linear import linear
from dit_video.nn.mlp import PlainMLP
from dit_video.nn.modulation import AdaLN, Modulation, ModulationOffset, gated, modulate
from dit_video.nn.module import recomputed
from dit_video.nn.norm import LayerNorm, layer_normalize
from dit_video.nn.patches import from_tokens, latent_shape, per_patch, to_tokens
from dit_video.nn.positions import NTKAware, patch_angles, stretch_of
from dit_video.nn.softmax_attention import cross_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig(NetworkConfig):
    """Configuration of Wan 2.1 and 2.2. Whether it continues an image is a field of the task (`FirstFrame`).

    Attributes:
        mlp_width: hidden width of the MLP of a block.
        text_length: number of tokens that captions are padded to with zeros, all of which are attended to; 512 as
            published. None: no padding is attended to.
        extrapolation: rotary positions of latents that are larger or longer than those of training; None: as they are.
    """

    mlp_width: int
    text_length: int | None = None
    extrapolation: NTKAware | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "mlp_width", "text_length")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"WanConfig.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head size"
            )

    @property
    def mlp_size(self) -> int:
        return self.mlp_width

    def build(
        self,
        channels: int,
        condition: Condition | None,
        *,
        known: AsChannels | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> "Wan":
        return Wan(self, channels, condition, known=known, dtype=dtype, rngs=rngs)


# Wan 2.1 (2503.20314), and 2.2, whose 14B networks are of the same size. With `AsChannels` they are the networks of
# image to video.
WAN_1_3B = WanConfig(hidden_size=1536, depth=30, num_heads=12, mlp_width=8960, text_length=512)
WAN_14B = WanConfig(hidden_size=5120, depth=40, num_heads=40, mlp_width=13824, text_length=512)
WAN2_2_TI2V_5B = WanConfig(hidden_size=3072, depth=30, num_heads=24, mlp_width=14336, text_length=512)


class ImageEmbedder(nnx.Module):
    """Projection of the tokens of an image encoder to width D: LayerNorm, linear, GELU, linear, LayerNorm."""

    def __init__(self, image_size: int, hidden_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm_in = LayerNorm(image_size, rngs=rngs, epsilon=1e-5)
        self.up = linear(image_size, image_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(image_size, hidden_size, ("mlp", "embed"), rngs=rngs, dtype=dtype)
        self.norm_out = LayerNorm(hidden_size, rngs=rngs, epsilon=1e-5)

    def __call__(self, tokens: Float[Array, "B I E"]) -> Float[Array, "B I D"]:
        return self.norm_out(self.down(nnx.gelu(self.up(self.norm_in(tokens)), approximate=False)))


class ImageTextAttention(CrossAttention):
    """Decoupled cross-attention to text and to tokens of an image (IP-Adapter, 2308.06721).

    Both have the same queries, but keys, values and a softmax of their own; the two results are added.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(hidden_size, hidden_size, num_heads, qk_norm=QKNorm.ACROSS_HEADS, dtype=dtype, rngs=rngs)
        head_dim = hidden_size // num_heads
        init = kernel_init(QKNorm.ACROSS_HEADS)
        self.image_key_value = to_heads(hidden_size, (2, num_heads, head_dim), init, dtype=dtype, rngs=rngs)
        self.image_key_norm = HeadsNorm(QKNorm.ACROSS_HEADS, num_heads, head_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B L D"],
        num_context: Int[Array, "B"] | None,
        image: Float[Array, "B I D"],
    ) -> Float[Array, "B N D"]:
        """Attention to the first `num_context` tokens of text, as in `CrossAttention`, and to all of the image."""
        assert self.query_norm is not None, "it is made with norms"
        assert self.key_norm is not None, "it is made with norms"
        q = self.query_norm(self.query(x))
        k, v = jnp.moveaxis(self.key_value(context), 2, 0)
        to_text = cross_attention(q, self.key_norm(k), v, num_context)
        k, v = jnp.moveaxis(self.image_key_value(image), 2, 0)
        return self.out(to_text + cross_attention(q, self.image_key_norm(k), v, None))


class Block(nnx.Module):
    """Transformer block of Wan: self-attention, cross-attention to text (and to tokens of an image), MLP.

    Self-attention and MLP are modulated and gated by vectors that all blocks share and to which each adds a table of
    its own; cross-attention is not.

    Args of the constructor:
        image: whether there are tokens of an image.
    """

    def __init__(self, config: WanConfig, image: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D, K = config.hidden_size, config.num_heads
        self.modulation = ModulationOffset(6, D, rngs=rngs)
        self.attention = Attention(D, K, qk_norm=QKNorm.ACROSS_HEADS, dtype=dtype, rngs=rngs)
        self.cross_norm = LayerNorm(D, rngs=rngs)
        self.cross_attention: Callable[..., Array] = (
            ImageTextAttention(D, K, dtype=dtype, rngs=rngs)
            if image
            else CrossAttention(D, D, K, qk_norm=QKNorm.ACROSS_HEADS, dtype=dtype, rngs=rngs)
        )
        self.mlp = PlainMLP(D, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], shared: Modulation, angles: Float[Array, "N r"], context: Sequence[Array | None]
    ) -> Float[Array, "B N D"]:
        """One step of depth.

        Args:
            shared: the vectors that modulate all blocks, float32.
            angles: rotary positions of the tokens, in the order of x.
            context: what cross-attention attends to, as `Wan._context` has it.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(shared)
        x = _add_gated(x, gate_a, self.attention(_modulated(x, shift_a, scale_a), angles))
        x = x + self.cross_attention(self.cross_norm(x), *context)
        return _add_gated(x, gate_m, self.mlp(_modulated(x, shift_m, scale_m)))


@recomputed
def _modulated(
    x: Float[Array, "B N D"], shift: Float[Array, "B #f D"], scale: Float[Array, "B #f D"]
) -> Float[Array, "B N D"]:
    """LayerNorm and modulation in float32, as published; the result has the stream's dtype."""
    return modulate(layer_normalize(x.astype(jnp.float32)), shift, scale).astype(x.dtype)


@recomputed
def _add_gated(
    x: Float[Array, "B N D"], gate: Float[Array, "B #f D"], branch: Float[Array, "B N D"]
) -> Float[Array, "B N D"]:
    """Gated residual connection; the result has the stream's dtype."""
    return (x + gated(gate, branch)).astype(x.dtype)


class Wan(Network):
    """Wan, the network of a `WanConfig`: conditioned on text, with or without known frames as channels.

    Raises:
        ValueError: the condition has no text, or more tokens than `text_length`.
    """

    def __init__(
        self,
        config: WanConfig,
        channels: int,
        condition: Condition | None,
        *,
        known: AsChannels | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config, self.patch_size, self.dtype = config, config.patch_size, dtype
        text_encoder = None if condition is None else condition.text_encoder(dtype=dtype, rngs=rngs)
        if condition is None or text_encoder is None:
            raise ValueError(
                f"config.task.condition={condition}: every block of a Wan attends to text; give it a TextCondition "
                "or an EmbeddedText"
            )
        num_tokens = condition.num_text_tokens
        if num_tokens is not None and num_tokens > (config.text_length or num_tokens):
            raise ValueError(_too_long(num_tokens, config.text_length))
        self.text_encoder = text_encoder
        D, cells = config.hidden_size, math.prod(config.patch_size)
        channels_in = channels if known is None else channels + known.num_channels(channels)
        self.x_embedder = linear(cells * channels_in, D, (None, "embed"), rngs=rngs, dtype=dtype)
        # In float32 whatever the blocks are computed in, as published.
        self.t_embedder = TimeEmbedding(D, dtype=jnp.float32, rngs=rngs)
        self.shared_modulation = AdaLN(6, D, dtype=jnp.float32, rngs=rngs)
        self.text_embedder = PlainMLP(text_encoder.hidden_size, D, D, dtype=dtype, rngs=rngs)
        image_size = None if known is None else known.image_size
        self.image_embedder = None if image_size is None else ImageEmbedder(image_size, D, dtype=dtype, rngs=rngs)
        # One stacked Block: every parameter gains a leading axis of `depth` layers.
        self.blocks = jax.vmap(lambda key: Block(config, image_size is not None, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.final_modulation = ModulationOffset(2, D, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.final_layer = linear(D, cells * channels, ("embed", None), rngs=rngs, dtype=dtype, init=zeros)

    def output(self, x_t: Latents, t: Time, cond: Cond | None) -> Output:
        x, _, conditioning = self._through_blocks(x_t, t, cond, keep=False)
        shift, scale = self.final_modulation([conditioning, conditioning])
        x = self.final_layer(_modulated(x, shift, scale))
        return Output(from_tokens(x, self.patch_size, latent_shape(x_t)).astype(jnp.float32), None)

    def layers(self, x_t: Latents, t: Time, cond: Cond | None) -> dict[str, Array]:
        _, blocks, conditioning = self._through_blocks(x_t, t, cond, keep=True)
        assert blocks is not None, "they are kept"
        return {"conditioning": conditioning, "blocks": blocks}

    def _through_blocks(
        self, x_t: Latents, t: Time, cond: Cond | None, *, keep: bool
    ) -> tuple[Float[Array, "B N D"], Float[Array, "layers B N D"] | None, Float[Array, "B #f D"]]:
        """The stream after the last block, with `keep` those after every block, and the embedded noise level."""
        cond = required(cond)
        cells = jnp.concatenate([x_t, cond.cells], axis=-1) if isinstance(cond, ImageCond) else x_t
        conditioning = constrain(self.t_embedder(per_patch(t, self.patch_size)), "batch", None, None)
        shared = self.shared_modulation(conditioning)
        context = self._context(cond)
        frames, rows, columns = (n // p for n, p in zip(latent_shape(x_t), self.patch_size))
        # Positions count patches.
        head_dim = self.config.hidden_size // self.config.num_heads
        stretch = stretch_of(self.config.extrapolation, latent_shape(x_t))
        angles = patch_angles((frames, rows, columns), (1, 1, 1), head_dim, stretch=stretch)

        def apply_block(x, block):
            return block(constrain(x, "batch", "tokens", None), shared, angles, context)

        x = self.x_embedder(to_tokens(cells, self.patch_size))
        x, blocks = scan_blocks(apply_block, x, self.blocks, remat=self.config.remat, keep=keep)
        return x, blocks, conditioning

    def _context(self, cond: Any) -> tuple[Array | None, ...]:
        """Context of cross-attention: tokens of text, how many of them (None: all), and tokens of an image if any."""
        caption: Any = cond.text if isinstance(cond, ImageCond) else cond
        text = self.text_encoder(caption)
        tokens, num_tokens = jnp.asarray(text.tokens), jnp.asarray(text.num_tokens)
        if self.config.text_length is not None:
            tokens, num_tokens = _padded(tokens, num_tokens, self.config.text_length), None
        tokens = constrain(self.text_embedder(tokens), "batch", None, None)
        if self.image_embedder is None:
            return tokens, num_tokens
        image = self.image_embedder(cond.image.astype(self.dtype))
        return tokens, num_tokens, constrain(image, "batch", None, None)


def _padded(tokens: Float[Array, "B L E"], num_tokens: Int[Array, "B"], length: int) -> Float[Array, "B {length} E"]:
    """Padding of captions: the first `num_tokens` tokens, and zeros after them up to `length`."""
    if tokens.shape[1] > length:
        raise ValueError(_too_long(tokens.shape[1], length))
    real = jnp.arange(tokens.shape[1]) < num_tokens[:, None]
    return jnp.pad(tokens * real[..., None], ((0, 0), (0, length - tokens.shape[1]), (0, 0)))


def _too_long(num_tokens: int, length: int | None) -> str:
    return (
        f"captions of {num_tokens} tokens: config.task.network.text_length={length} is the most; give the condition no "
        "more, or leave text_length None"
    )
