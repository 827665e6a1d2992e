"""The diffusion transformer on video latents (Peebles and Xie, 2212.09748): as practised today, and as published.

Of both: patches, adaLN-zero, sizes S, B, L, XL. As practised: rotary positions on three axes, RMS normalisation,
normalised queries and keys, SwiGLU (LightningDiT, 2501.01423, table 2 measures each). As published (`published`):
sine and cosine positions of the place in the frame, LayerNorm, GELU, a variance beside each prediction. Attention
is full over space and time; text, where there is any, is attended to from every block. Layers are stacked and scanned,
so compile time does not grow with depth.
"""

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Latents, Output, Text, Time
from dit_video.config.bounds import above
from dit_video.distributed.sharding import constrain
from dit_video.dit.condition import Cond, Condition, required
from dit_video.dit.known import AsChannels, refuse_channels
from dit_video.dit.network import Network, NetworkConfig, scan_blocks, split_variance
from dit_video.nn.attention import Attention, CrossAttention, QKNorm
from dit_video.nn.embed import NUM_TIMESTEPS, TimeEmbedding
from dit_video.nn.linear import linear
from dit_video.nn.mlp import MLPKind
from dit_video.nn.modulation import AdaLN, Modulation, ModulationOffset, gated, modulate
from dit_video.nn.norm import Norm
from dit_video.nn.patches import from_tokens, latent_shape, per_patch_frame, to_tokens
from dit_video.nn.positions import patch_angles, sincos_positions


class Positions(enum.Enum):
    """How tokens know where they are."""

    ROTARY = "rotary"  # queries and keys are turned by frame, row and column, in every block
    SINCOS = "sincos"  # a fixed vector for row and column is added to each token; frames are not told apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(NetworkConfig):
    """What a DiT is: the modern one, unless its last fields say otherwise (`published` does).

    Attributes:
        shared_modulation: blocks share one AdaLN and each adds a vector of its own to what it makes, instead of having
            each one of their own, which holds a third of their parameters (PixArt-alpha, 2310.00426).
        position_grid: of SINCOS alone, `grid` of `sincos_positions`: the side of the square of patches that positions
            are of, over which latents of another size are stretched; None counts patches.
        qk_norm: over what queries and keys are normalised.
        mlp_norm_epsilon: what the norm before the MLP adds to the variance; all others add 1e-6. As published it is
            1e-6 too, in diffusers 1e-5 unless its config says otherwise.
        timestep_offset: what is added to the timestep 1000 t that the network is told: -1 as published, where the
            timesteps 0 ... 999 are the levels t = 1/1000 ... 1 of a path that is a table.
        time_frequency_shift: `frequency_shift` of `sinusoid`: 0 as published. diffusers computes DiT with 1, also with
            the published weights.
        learned_variance: the last layer has as many channels again, from which a variance is made (Nichol and
            Dhariwal, 2102.09672).
    """

    mlp_ratio: float = 4.0
    shared_modulation: bool = False
    positions: Positions = Positions.ROTARY
    position_grid: int | None = None
    norm: Norm = Norm.RMS
    qk_norm: QKNorm = QKNorm.PER_HEAD
    mlp: MLPKind = MLPKind.SWIGLU
    mlp_norm_epsilon: float = 1e-6
    timestep_offset: int = 0
    time_frequency_shift: int = 0
    learned_variance: bool = False

    def __post_init__(self):
        super().__post_init__()
        above(self, 0, "mlp_ratio", "mlp_norm_epsilon")
        if self.positions is Positions.SINCOS:
            if self.hidden_size % self.num_heads or self.hidden_size % 4:
                raise ValueError(
                    f"DiTConfig.hidden_size={self.hidden_size}: must be a multiple of num_heads={self.num_heads} and, "
                    "for positions=sincos, of 4"
                )
        elif self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"DiTConfig.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head size"
            )
        if self.position_grid is not None and (self.positions is Positions.ROTARY or self.position_grid < 1):
            raise ValueError(
                f"DiTConfig.position_grid={self.position_grid}: must be at least 1 with positions=sincos, else None"
            )
        if self.timestep_offset not in (-1, 0):
            raise ValueError(f"DiTConfig.timestep_offset={self.timestep_offset}: must be -1 or 0")
        if self.time_frequency_shift not in (0, 1):
            raise ValueError(f"DiTConfig.time_frequency_shift={self.time_frequency_shift}: must be 0 or 1")

    def time_of(self, timestep: int) -> float:
        """The noise level t of a timestep as others count them: published DiTs have 0 ... 999."""
        return (timestep - self.timestep_offset) / NUM_TIMESTEPS

    @property
    def mlp_size(self) -> int:
        return self.mlp.size(self.hidden_size, self.mlp_ratio)

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
    ) -> "DiT":
        refuse_channels(type(self).__name__, known)
        return DiT(self, channels, condition, dtype=dtype, rngs=rngs)


# Table 1 of 2212.09748.
DIT_S = DiTConfig(hidden_size=384, depth=12, num_heads=6)
DIT_B = DiTConfig(hidden_size=768, depth=12, num_heads=12)
DIT_L = DiTConfig(hidden_size=1024, depth=24, num_heads=16)
DIT_XL = DiTConfig(hidden_size=1152, depth=28, num_heads=16)


def published(config: DiTConfig, *, patch_size: int = 2) -> DiTConfig:
    """The DiT of 2212.09748 of the size of `config`, with square patches: DiT-XL/2 is `published(DIT_XL)`.

    It is a network of images, clips of one frame: it takes more of them, but cannot tell their order.
    """
    return dataclasses.replace(
        config,
        patch_size=(1, patch_size, patch_size),
        positions=Positions.SINCOS,
        norm=Norm.LAYER,
        qk_norm=QKNorm.NONE,
        mlp=MLPKind.GELU,
        timestep_offset=-1,
        learned_variance=True,
    )


class Block(nnx.Module):
    """Attention and MLP, each normalised, modulated by the conditioning vector and gated (adaLN-zero).

    Where there is text, every token attends to it in between, without modulation (as in Wan, 2503.20314).
    """

    def __init__(self, config: DiTConfig, text_size: int | None = None, *, dtype: DTypeLike, rngs: nnx.Rngs):
        D = config.hidden_size
        # Takes what __call__ is told to modulate by, which is of the one kind or of the other.
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
    ) -> Float[Array, "B N D"]:
        """One step of depth.

        Args:
            modulating: the conditioning vector, or with shared modulation the vectors that blocks share.
            angles: rotary positions of the tokens, in the order of x; None where x has its positions in it.
            text: what blocks made for text attend to.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(modulating)
        x = x + gated(gate_a, self.attention(modulate(self.norm(x), shift_a, scale_a), angles))
        if self.cross_attention is not None:
            assert text is not None, "a DiT of such blocks encodes text"
            x = x + self.cross_attention(self.norm(x), text.tokens, text.num_tokens)
        return x + gated(gate_m, self.mlp(modulate(self.norm(x, self.mlp_norm_epsilon), shift_m, scale_m)))


class DiT(Network):
    """The network of a `DiTConfig`; its `time_of` says which noise level a timestep of others is."""

    def __init__(
        self,
        config: DiTConfig,
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
        self.t_embedder = TimeEmbedding(config.hidden_size, dtype=dtype, rngs=rngs, **time)
        self.y_embedder = condition.label_embedding(config.hidden_size, rngs=rngs) if condition else None
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
        shift, scale = self.final_modulation(conditioning)
        x = self.final_layer(modulate(self.config.norm(x), shift, scale))
        cells = from_tokens(x, self.patch_size, latent_shape(x_t)).astype(jnp.float32)
        return split_variance(cells) if self.config.learned_variance else Output(cells)

    def layers(self, x_t: Latents, t: Time, cond: Cond | None) -> dict[str, Array]:
        _, blocks, conditioning = self._through_blocks(x_t, t, cond, keep=True)
        assert blocks is not None, "they are kept"
        return {"conditioning": conditioning, "blocks": blocks}

    def _through_blocks(
        self, x_t: Latents, t: Time, cond: Cond | None, *, keep: bool
    ) -> tuple[Float[Array, "B N D"], Float[Array, "layers B N D"] | None, Float[Array, "B #f D"]]:
        """The stream after the last block, where it is kept after every one, and the conditioning vector."""
        conditioning = self.t_embedder(per_patch_frame(t, self.patch_size))
        if self.y_embedder is not None:
            conditioning = conditioning + self.y_embedder(required(cond))[:, None].astype(conditioning.dtype)
        conditioning = constrain(conditioning, "batch", None, None)
        modulating = conditioning if self.shared_modulation is None else self.shared_modulation(conditioning)
        text = None if self.text_encoder is None else self.text_encoder(required(cond))
        x, angles = self._placed(self.x_embedder(to_tokens(x_t, self.patch_size)), latent_shape(x_t))

        def apply_block(x, block):
            return block(constrain(x, "batch", "tokens", None), modulating, angles, text)

        x, blocks = scan_blocks(apply_block, x, self.blocks, remat=self.config.remat, keep=keep)
        return x, blocks, conditioning

    def _placed(
        self, x: Float[Array, "B N D"], shape: tuple[int, int, int]
    ) -> tuple[Float[Array, "B N D"], Float[Array, "N r"] | None]:
        """Tokens with their positions in them, or beside them the angles that blocks turn queries and keys by."""
        config = self.config
        if config.positions is Positions.SINCOS:
            places = sincos_positions(shape, config.patch_size, config.hidden_size, grid=config.position_grid)
            return x + places.astype(x.dtype), None
        return x, patch_angles(shape, config.patch_size, config.hidden_size // config.num_heads)
