"""The diffusion transformer (DiT; Peebles and Xie, 2212.09748) on video latents: as practised today, and as published.

Both cut latents into patches and are modulated by adaLN-zero; sizes S, B, L and XL are those of the paper.
`DiTConfig` is the DiT of today: rotary positions on three axes, RMS normalisation, normalised queries and keys, SwiGLU
(LightningDiT, 2501.01423, table 2 measures each). `PublishedDiTConfig` is the DiT of the paper: fixed sine and cosine
positions in the frame, LayerNorm, GELU, a learned variance. Attention is full over space and time, or block-causal over
frames; every block attends to text where there is any. Layers are stacked and scanned, so compile time does not grow
with depth.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import Latents, Output, Text, Time
from dit_video.config.bounds import above, at_least, between
from dit_video.distributed.sharding import constrain
from dit_video.dit.condition import Cond, Condition, required
from dit_video.dit.known_frames import AsChannels, refuse_channels
from dit_video.dit.network import CausalFrames, CausalNetwork, NetworkConfig, scan_blocks, split_variance
from dit_video.nn.attention import Attend, Attention, CrossAttention, QKNorm
from dit_video.nn.attention_mask import FULL, AttentionMask, BlockCausal
from dit_video.nn.cache import KeyValueCache
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.nn.linear import linear
from dit_video.nn.mlp import MLPKind
from dit_video.nn.modulation import AdaLN, Modulation, ModulationOffset, gated, modulate
from dit_video.nn.norm import Norm
from dit_video.nn.patches import frames_first, from_tokens, latent_shape, per_patch, to_tokens
from dit_video.nn.positions import NTKAware, patch_angles, sincos_positions, stretch_of
from dit_video.nn.softmax_attention import self_attention

# Numbers of frames in their stream.
Frames = Int[Array | np.ndarray, "f"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyDiTConfig(NetworkConfig):
    """Configuration of a DiT, of today or as published: their common fields, and what `DiT` asks of either.

    Attributes:
        mlp_ratio: width of the MLP over that of the stream, for an MLP without a gate (`MLPKind.size`).
        learned_variance: the last layer has as many channels again, from which the variance of a denoising step is
            computed (Nichol and Dhariwal, 2102.09672).
    """

    mlp_ratio: float = 4.0
    learned_variance: bool = False

    # Added to the timestep 1000 t before it is embedded.
    timestep_offset: ClassVar[int] = 0

    def __post_init__(self):
        super().__post_init__()
        above(self, 0, "mlp_ratio")

    @property
    @abc.abstractmethod
    def norm(self) -> Norm:
        """Normalisation of the stream before attention, MLP and the last layer."""

    @property
    @abc.abstractmethod
    def mlp_norm_epsilon(self) -> float:
        """Epsilon of the norm before the MLP, added to the variance; that of all other norms is 1e-6."""

    @property
    @abc.abstractmethod
    def qk_norm(self) -> QKNorm:
        """Normalisation of queries and keys."""

    @property
    @abc.abstractmethod
    def mlp(self) -> MLPKind:
        """MLP of a block."""

    @property
    @abc.abstractmethod
    def shared_modulation(self) -> bool:
        """Whether blocks share one AdaLN (adaLN-single) instead of having one each."""

    @property
    @abc.abstractmethod
    def block_embedders(self) -> bool:
        """Whether every block has its own embedders of timestep and class, instead of all sharing one of each."""

    @property
    @abc.abstractmethod
    def time_frequency_shift(self) -> int:
        """`frequency_shift` of the sinusoidal embedding of the timestep (`nn.embed.sinusoid`)."""

    @abc.abstractmethod
    def with_positions(
        self, x: Float[Array, "B N D"], shape: tuple[int, int, int], frames: Frames | None = None
    ) -> tuple[Float[Array, "B N D"], Float[Array, "N r"] | None]:
        """Positional embedding of the tokens `x` of latents of `shape` (t, h, w).

        Args:
            frames: their numbers in the stream; None: from 0 on.

        Returns:
            the tokens, with fixed positions added to them or as they are, and the angles of rotary positions, by
            which every block rotates queries and keys; None where there are none.
        """

    def time_of(self, timestep: int) -> float:
        """The noise level t of a timestep as others count them; those of published DiTs are 0 ... 999."""
        return (timestep - self.timestep_offset) / NUM_TIMESTEPS

    @property
    def mlp_size(self) -> int:
        return self.mlp.size(self.hidden_size, self.mlp_ratio)

    @property
    def learns_variance(self) -> bool:
        return self.learned_variance

    @property
    def takes_frame_conditions(self) -> bool:
        return True

    def build(
        self,
        channels: int,
        condition: Condition | None,
        *,
        known: AsChannels | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> "DiT":
        refuse_channels(type(self).__name__, known)
        return DiT(self, channels, condition, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(AnyDiTConfig):
    """Configuration of the DiT as practised today, for video: rotary positions of frame, row and column.

    The noise level t is embedded as the timestep 1000 t.

    Attributes:
        shared_modulation: blocks share one AdaLN, to whose vectors each adds a table of its own (adaLN-single of
            PixArt-alpha, 2310.00426, section 2.3), instead of each having an AdaLN, which holds a third of its
            parameters.
        norm: normalisation of the stream.
        qk_norm: over what queries and keys are normalised.
        mlp: MLP of a block.
        causal: frames see no later ones; None: attention is full.
        extrapolation: rotary positions of latents that are larger or longer than those of training; None: as they are.
    """

    shared_modulation: bool = False
    norm: Norm = Norm.RMS
    qk_norm: QKNorm = QKNorm.PER_HEAD
    mlp: MLPKind = MLPKind.SWIGLU
    causal: CausalFrames | None = None
    extrapolation: NTKAware | None = None

    mlp_norm_epsilon = 1e-6
    block_embedders = False
    time_frequency_shift = 0

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"{type(self).__name__}.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an "
                "even head size"
            )
        if self.causal is not None and self.patch_size[0] != 1:
            raise ValueError(
                f"{type(self).__name__}.patch_size={self.patch_size}: frames that share a patch see each other; with "
                "causal it must be of one frame"
            )

    @property
    def causal_frames(self) -> CausalFrames | None:
        return self.causal

    def with_positions(
        self, x: Float[Array, "B N D"], shape: tuple[int, int, int], frames: Frames | None = None
    ) -> tuple[Float[Array, "B N D"], Float[Array, "N r"]]:
        head_dim, stretch = self.hidden_size // self.num_heads, stretch_of(self.extrapolation, shape)
        return x, patch_angles(shape, self.patch_size, head_dim, frames, stretch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedDiTConfig(AnyDiTConfig):
    """Configuration of the DiT as published (Peebles and Xie, 2212.09748): DiT-XL/2 is `published(DIT_XL)`.

    It is a network of images, which are clips of one frame. It computes longer clips too, but cannot tell the order of
    their frames. Its timesteps 0 ... 999 are the levels t = 1/1000 ... 1 of a noise path that is a table.

    The defaults are those of the official code (facebookresearch/DiT). diffusers computes another function of the same
    weights, with other values of `mlp_norm_epsilon` and `time_frequency_shift`.

    Attributes:
        position_grid: side of the square of patches that fixed positions are of, over which latents of another size
            are stretched (`grid` of `sincos_positions`); None counts patches.
        mlp_norm_epsilon: 1e-6 in the official code; in diffusers 1e-5 unless its config.json says otherwise.
        time_frequency_shift: 0 in the official code; 1 in diffusers, where the frequencies of the embedding of
            timesteps end at 1/10000 (`frequency_shift` of `sinusoid`).
        block_embedders: every block has its own embedders of timestep and class, and the last layer those of the
            first block, as diffusers computes. In published weights all are copies of one, which training there
            changes.
    """

    learned_variance: bool = True
    position_grid: int | None = None
    mlp_norm_epsilon: float = 1e-6
    time_frequency_shift: int = 0
    block_embedders: bool = False

    timestep_offset: ClassVar[int] = -1
    shared_modulation = False
    norm = Norm.LAYER
    qk_norm = QKNorm.NONE
    mlp = MLPKind.GELU

    def __post_init__(self):
        super().__post_init__()
        above(self, 0, "mlp_norm_epsilon")
        at_least(self, 1, "position_grid")
        between(self, 0, 1, "time_frequency_shift")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"{type(self).__name__}.hidden_size={self.hidden_size}: must be a multiple of "
                f"num_heads={self.num_heads} and of 4"
            )

    def with_positions(
        self, x: Float[Array, "B N D"], shape: tuple[int, int, int], frames: Frames | None = None
    ) -> tuple[Float[Array, "B N D"], None]:
        del frames  # it cannot tell their order
        places = sincos_positions(shape, self.patch_size, self.hidden_size, grid=self.position_grid)
        return x + places.astype(x.dtype), None


# Table 1 of 2212.09748.
DIT_S = DiTConfig(hidden_size=384, depth=12, num_heads=6)
DIT_B = DiTConfig(hidden_size=768, depth=12, num_heads=12)
DIT_L = DiTConfig(hidden_size=1024, depth=24, num_heads=16)
DIT_XL = DiTConfig(hidden_size=1152, depth=28, num_heads=16)


def published(size: AnyDiTConfig, *, patch_size: int = 2) -> PublishedDiTConfig:
    """The DiT as published, of the width, depth, heads and MLP of `size`, with square patches.

    DiT-XL/2 is `published(DIT_XL)`, DiT-B/4 `published(DIT_B, patch_size=4)`.
    """
    return PublishedDiTConfig(
        hidden_size=size.hidden_size,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_ratio,
        patch_size=(1, patch_size, patch_size),
        remat=size.remat,
    )


# Of the timestep, and of the condition: a class, or whatever a condition of a user makes.
Embedders = tuple[TimeEmbedding, nnx.Module | None]


class Block(nnx.Module):
    """Transformer block of a DiT: attention and MLP, each normalised, modulated by the conditioning vector and gated.

    A fresh block is the identity (adaLN-zero, 2212.09748, section 3.2). Where there is text, cross-attention to it
    comes in between, without modulation (as in Wan, 2503.20314).

    Args of the constructor:
        text_size: width of the text tokens; None where there is no text.
    """

    def __init__(self, config: AnyDiTConfig, text_size: int | None = None, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D = config.hidden_size
        # The one takes the conditioning vector, the other the vectors that blocks share.
        self.modulation: Callable[..., Modulation] = (
            ModulationOffset(6, D, rngs=rngs) if config.shared_modulation else AdaLN(6, D, dtype=dtype, rngs=rngs)
        )
        self.norm, self.mlp_norm_epsilon = config.norm, config.mlp_norm_epsilon
        self.attention = Attention(D, config.num_heads, dtype=dtype, rngs=rngs, qk_norm=config.qk_norm)
        self.cross_attention = (
            None if text_size is None else CrossAttention(D, text_size, config.num_heads, dtype=dtype, rngs=rngs)
        )
        self.mlp = config.mlp.build(D, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        modulating: Float[Array, "B #f D"] | Modulation,
        angles: Float[Array, "N r"] | None,
        text: Text | None = None,
        attend: Attend = self_attention,
        mask: AttentionMask = FULL,
    ) -> Float[Array, "B N D"]:
        """One step of depth.

        Args:
            modulating: the conditioning vector, or with shared modulation the vectors that blocks share.
            angles: rotary positions of the tokens, in the order of x; None where x has its positions in it.
            text: what blocks made for text attend to.
            attend, mask: as in `Attention`.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(modulating)
        x = x + gated(gate_a, self.attention(modulate(self.norm(x), shift_a, scale_a), angles, attend, mask))
        if self.cross_attention is not None:
            assert text is not None, "a DiT of such blocks encodes text"
            x = x + self.cross_attention(self.norm(x), text.tokens, text.num_tokens)
        return x + gated(gate_m, self.mlp(modulate(self.norm(x, self.mlp_norm_epsilon), shift_m, scale_m)))


class DiT(CausalNetwork):
    """Diffusion transformer: the network of a `DiTConfig` or of a `PublishedDiTConfig`.

    Noise level, and class where there is one, modulate the blocks; a fresh network predicts zero.
    """

    def __init__(
        self,
        config: AnyDiTConfig,
        channels: int,
        condition: Condition | None,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.config, self.patch_size, self.dtype = config, config.patch_size, dtype
        pt, ph, pw = config.patch_size
        patch_dim = pt * ph * pw * channels
        self.x_embedder = linear(patch_dim, config.hidden_size, (None, "embed"), rngs=rngs, dtype=dtype)
        time = {"offset": config.timestep_offset, "frequency_shift": config.time_frequency_shift}

        def embedders(rngs: nnx.Rngs) -> Embedders:
            t_embedder = TimeEmbedding(config.hidden_size, dtype=dtype, rngs=rngs, **time)
            return t_embedder, condition.label_embedding(config.hidden_size, rngs=rngs) if condition else None

        # Of blocks that have their own, every parameter gains a leading axis of `depth` layers.
        self.t_embedder, self.y_embedder = (
            jax.vmap(lambda key: embedders(nnx.Rngs(key)))(jax.random.split(rngs.params(), config.depth))
            if config.block_embedders
            else embedders(rngs)
        )
        self.text_encoder = condition.text_encoder(dtype=dtype, rngs=rngs) if condition else None
        text_size = None if self.text_encoder is None else self.text_encoder.hidden_size
        shared = config.shared_modulation
        self.shared_modulation = AdaLN(6, config.hidden_size, dtype=dtype, rngs=rngs) if shared else None
        # One stacked Block: every parameter gains a leading axis of `depth` layers.
        self.blocks = jax.vmap(lambda key: Block(config, text_size, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.final_modulation = AdaLN(2, config.hidden_size, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        out_dim = 2 * patch_dim if config.learned_variance else patch_dim
        self.final_layer = linear(config.hidden_size, out_dim, ("embed", None), rngs=rngs, dtype=dtype, init=zeros)

    def output(self, x_t: Latents, t: Time, cond: Cond | None) -> Output:
        x, _, conditioning = self._through_blocks(x_t, t, cond, keep=False)
        return self._read_out(x, conditioning, latent_shape(x_t))

    def layers(self, x_t: Latents, t: Time, cond: Cond | None) -> dict[str, Array]:
        _, blocks, conditioning = self._through_blocks(x_t, t, cond, keep=True)
        assert blocks is not None, "they are kept"
        return {"conditioning": conditioning, "blocks": blocks}

    def beside_clean(self, x_t: Latents, t: Time, clean: Latents, t_clean: Time, cond: Cond | None) -> Output:
        num_frames = x_t.shape[1]
        both = jnp.concatenate([x_t, clean], axis=1)
        levels = jnp.concatenate([jnp.broadcast_to(level, x_t.shape[:2]) for level in (t, t_clean)], axis=1)
        x, _, conditioning = self._through_blocks(both, levels, cond, keep=False, copies=2)
        # Of the clean copy nothing is asked.
        own = lambda x, axis: jax.lax.slice_in_dim(x, 0, num_frames, axis=axis)  # noqa: E731
        by_frame = x.reshape(len(x), -1, 2 * num_frames, x.shape[-1])
        x = own(by_frame, 2).reshape(len(x), -1, x.shape[-1])
        return self._read_out(x, own(conditioning, 1), latent_shape(x_t))

    def unstacked(self) -> list[Block]:
        return [jax.tree.map(lambda x, i=i: x[i], self.blocks) for i in range(self.config.depth)]

    def empty_cache(self, batch_size: int, shape: tuple[int, int, int]) -> KeyValueCache:
        config, causal = self.config, self.config.causal_frames
        if causal is None or causal.window is None:
            raise ValueError(
                "config.task.network.causal.window=None: a frame sees all before it, and a stream has no end; set how "
                "many frames are visible"
            )
        return KeyValueCache.empty(
            num_layers=config.depth,
            batch_size=batch_size,
            capacity=(causal.window + shape[0] - 1) * self._num_places(shape),
            num_heads=config.num_heads,
            head_dim=config.hidden_size // config.num_heads,
            dtype=self.dtype,
            ring=True,
        )

    def cached(
        self, blocks: list[Block], x_t: Latents, t: Time, cond: Cond | None, first: Int[Array, ""], cache: KeyValueCache
    ) -> tuple[Output, KeyValueCache]:
        shape, places, causal = latent_shape(x_t), self._num_places(latent_shape(x_t)), self.config.causal_frames
        assert causal is not None, "`empty_cache` makes none for others"
        num_frames, mask = shape[0], BlockCausal(places, causal.window)
        conditioning = self._conditioning((self.t_embedder, self.y_embedder), t, cond)
        modulating = conditioning if self.shared_modulation is None else self.shared_modulation(conditioning)
        text = None if self.text_encoder is None else self.text_encoder(required(cond))
        x = self.x_embedder(to_tokens(x_t, self.patch_size))
        x, angles = self.config.with_positions(x, shape, first + jnp.arange(num_frames))
        # Frame by frame, for a ring has whole places for these.
        starts = [(first + i) * places for i in range(num_frames)]
        for start in starts:
            cache = cache.at(start, places)
        allowed = cache.allowed(mask, starts[0], num_frames * places)
        for layer, block in enumerate(blocks):

            def attend(q: Array, k: Array, v: Array, layer: int = layer) -> Array:
                nonlocal cache
                q, k, v = (frames_first(x, num_frames) for x in (q, k, v))
                parts = (jnp.split(x, num_frames, axis=1) for x in (k, v))
                for start, key, value in zip(starts, *parts):
                    cache = cache.write(layer, key, value, start)
                return frames_first(cache.attend(layer, q, allowed), places)

            x = block(x, modulating, angles, text, attend)
        return self._read_out(x, conditioning, shape), cache

    def _read_out(
        self, x: Float[Array, "B N D"], conditioning: Float[Array, "B #f D"], shape: tuple[int, int, int]
    ) -> Output:
        """The last layer."""
        shift, scale = self.final_modulation(conditioning)
        x = self.final_layer(modulate(self.config.norm(x), shift, scale))
        cells = from_tokens(x, self.patch_size, shape).astype(jnp.float32)
        return split_variance(cells) if self.config.learned_variance else Output(cells)

    def _num_places(self, shape: tuple[int, int, int]) -> int:
        """Tokens of a frame."""
        return shape[1] // self.patch_size[1] * (shape[2] // self.patch_size[2])

    def _through_blocks(
        self, x_t: Latents, t: Time, cond: Cond | None, *, keep: bool, copies: int = 1
    ) -> tuple[Float[Array, "B N D"], Float[Array, "layers B N D"] | None, Float[Array, "B #f D"]]:
        """The stream after the last block, with `keep` those after every block, and the conditioning vector.

        Args:
            copies: with 2, frames are noisy ones and then the same clean.
        """
        embedders: Embedders = (self.t_embedder, self.y_embedder)
        of_blocks = embedders if self.config.block_embedders else None
        first = embedders if of_blocks is None else jax.tree.map(lambda leaf: leaf[0], of_blocks)
        conditioning = self._conditioning(first, t, cond)
        modulating = conditioning if self.shared_modulation is None else self.shared_modulation(conditioning)
        text = None if self.text_encoder is None else self.text_encoder(required(cond))
        x = self.x_embedder(to_tokens(x_t, self.patch_size))
        shape = latent_shape(x_t)
        x, angles = self.config.with_positions(x, shape, self._numbers(shape, copies))
        mask = self._mask(shape, copies)

        def apply_block(x, layer):
            block, own = layer
            vector = modulating if own is None else self._conditioning(own, t, cond)
            return block(constrain(x, "batch", "tokens", None), vector, angles, text, mask=mask)

        x, blocks = scan_blocks(apply_block, x, (self.blocks, of_blocks), remat=self.config.remat, keep=keep)
        return x, blocks, conditioning

    def _numbers(self, shape: tuple[int, int, int], copies: int) -> Frames | None:
        return None if copies == 1 else np.tile(np.arange(shape[0] // copies), copies)

    def _mask(self, shape: tuple[int, int, int], copies: int) -> AttentionMask:
        causal, places = self.config.causal_frames, self._num_places(shape)
        if causal is None:
            return FULL
        return causal.mask(places, shape[0]) if copies == 1 else causal.two_copies(places, shape[0] // copies)

    def _conditioning(self, embedders: Embedders, t: Time, cond: Cond | None) -> Float[Array, "B #f D"]:
        """The conditioning vector: the sum of the embeddings of noise level and class, or of what frames have."""
        t_embedder, y_embedder = embedders
        conditioning = t_embedder(per_patch(t, self.patch_size))
        if y_embedder is not None:
            vectors = y_embedder(required(cond)).astype(conditioning.dtype)
            conditioning = conditioning + (vectors[:, None] if vectors.ndim == 2 else _as_often(vectors, conditioning))
        return constrain(conditioning, "batch", None, None)


def _as_often(vectors: Float[Array, "B f D"], levels: Float[Array, "B n D"]) -> Float[Array, "B m D"]:
    """Vectors of frames once for every level that frames have: of two copies, or of all tokens in order."""
    num_frames, num_levels = vectors.shape[1], levels.shape[1]
    if num_levels == 1:
        return vectors
    if num_levels % num_frames:
        raise ValueError(f"a condition of {num_frames} latent frames for latents that have levels of {num_levels}")
    return jnp.tile(vectors, (1, num_levels // num_frames, 1))
