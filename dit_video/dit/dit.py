"""The diffusion transformer on video latents (Peebles and Xie, 2212.09748), in its modern form.

As published: patches, adaLN-zero, sizes S, B, L, XL. As practised since: rotary positions on three axes, RMS
normalisation, normalised queries and keys, SwiGLU (LightningDiT, 2501.01423, table 2 measures each). Attention
is full over space and time; text, where there is any, is attended to from every block. Layers are stacked and scanned,
so compile time does not grow with depth.
"""

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.arrays import Latents, Time
from dit_video.dit.condition import Condition, Given
from dit_video.dit.text_encoder import Text
from dit_video.nn.attention import Attention, CrossAttention
from dit_video.nn.embed import (
    AdaLN,
    TimeEmbedding,
    for_tokens,
    linear,
    modulate,
    patch_positions,
    patchify,
    rope_angles,
    unpatchify,
)
from dit_video.nn.mlp import SwiGLU, swiglu_size
from dit_video.nn.norm import rms_normalize
from dit_video.sharding import constrain


class Remat(enum.Enum):
    """What the backward pass keeps of each block instead of computing it again."""

    NOTHING_RECOMPUTED = "none"
    DOTS = "dots"  # keep matrix products, recompute the rest
    FULL = "full"  # keep block inputs only: least memory, one more forward pass
    OFFLOAD = "offload"  # as FULL, with block inputs in the memory of the host until they are needed


_BLOCK_INPUT = "block input"
_REMAT_POLICY = {
    Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
    Remat.OFFLOAD: jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Size of a DiT.

    Attributes:
        patch_size: (frames, rows, columns) in latent cells.
        shared_modulation: blocks share one AdaLN and each adds a vector of its own to what it makes, instead of having
            each one of their own, which holds a third of their parameters (PixArt-alpha, 2310.00426).
    """

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    mlp_ratio: float = 4.0
    shared_modulation: bool = False
    remat: Remat = Remat.NOTHING_RECOMPUTED

    def __post_init__(self):
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"DiTConfig.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head size"
            )

    @property
    def mlp_size(self) -> int:
        return swiglu_size(self.hidden_size, self.mlp_ratio)


# Table 1 of 2212.09748.
DIT_S = DiTConfig(hidden_size=384, depth=12, num_heads=6)
DIT_B = DiTConfig(hidden_size=768, depth=12, num_heads=12)
DIT_L = DiTConfig(hidden_size=1024, depth=24, num_heads=16)
DIT_XL = DiTConfig(hidden_size=1152, depth=28, num_heads=16)


# Shift, scale and gate for attention and for the MLP.
Modulation = list[Float[Array, "B #f D"]]


class ModulationOffset(nnx.Module):
    """What one block adds to the modulation vectors that all blocks share; zero at initialisation.

    This is adaLN-single (PixArt-alpha, 2310.00426, section 2.3). An AdaLN in every block holds 6 D^2 of its 18 D^2
    parameters, at the usual width of the MLP.
    """

    def __init__(self, num: int, hidden_size: int, *, rngs: nnx.Rngs):
        axes = ("modulation", "mlp")
        init = nnx.with_metadata(nnx.initializers.zeros, axes=axes)
        self.table = nnx.Param(init(rngs.params(), (num, hidden_size), jnp.float32), axes=axes)

    def __call__(self, shared: Modulation) -> Modulation:
        table = self.table[...]
        return [vector + table[i].astype(vector.dtype) for i, vector in enumerate(shared)]


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
        self.attention = Attention(D, config.num_heads, dtype=dtype, rngs=rngs)
        self.cross_attention = (
            None if text_size is None else CrossAttention(D, text_size, config.num_heads, dtype=dtype, rngs=rngs)
        )
        self.mlp = SwiGLU(D, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        modulating: Float[Array, "B #f D"] | Modulation,
        angles: Float[Array, "N r"],
        text: Text | None = None,
    ) -> Float[Array, "B N D"]:
        """One step of depth.

        Args:
            modulating: the conditioning vector, or with shared modulation the vectors that blocks share.
            angles: rotary positions of the tokens, in the order of x.
            text: what blocks made for text attend to.
        """
        vectors = [for_tokens(vector, x.shape[1]) for vector in self.modulation(modulating)]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors
        x = x + gate_a * self.attention(modulate(rms_normalize(x), shift_a, scale_a), angles)
        if self.cross_attention is not None:
            assert text is not None, "a DiT of such blocks encodes text"
            x = x + self.cross_attention(rms_normalize(x), text.tokens, text.num_tokens)
        return x + gate_m * self.mlp(modulate(rms_normalize(x), shift_m, scale_m))


def _known(given: Given | None) -> Given:
    if given is None:
        raise ValueError("this DiT is conditioned: pass `given`, which `known` of its condition makes of a batch")
    return given


class DiT(nnx.Module):
    """Denoiser of video latents: (x_t, t, what is given) -> prediction of x_t's shape."""

    def __init__(
        self,
        config: DiTConfig,
        channels: int,
        condition: Condition | None,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size, self.remat, self.dtype = config.patch_size, config.remat, dtype
        self.head_dim = config.hidden_size // config.num_heads
        pt, ph, pw = config.patch_size
        patch_dim = pt * ph * pw * channels
        self.x_embedder = linear(patch_dim, config.hidden_size, (None, "embed"), rngs=rngs, dtype=dtype)
        self.t_embedder = TimeEmbedding(config.hidden_size, dtype=dtype, rngs=rngs)
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
        self.final_layer = linear(config.hidden_size, patch_dim, ("embed", None), rngs=rngs, dtype=dtype, init=zeros)

    def __call__(self, x_t: Latents, t: Time, given: Given | None) -> Latents:
        """Predicts what the objective asks for, from noisy latents.

        Args:
            x_t: latents at noise level t; (t, h, w) must divide by the patch size.
            t: noise level in [0, 1], one per clip `[B 1]` or per latent frame `[B t]`.
            given: labels or captions as `Condition.known` makes them; None where the network has no condition.

        Returns:
            float32 prediction of x_t's shape.
        """
        _, frames, rows, columns, _ = x_t.shape
        shape = (frames, rows, columns)
        conditioning = self.t_embedder(self._per_patch_frame(t))
        if self.y_embedder is not None:
            conditioning = conditioning + self.y_embedder(_known(given))[:, None].astype(conditioning.dtype)
        conditioning = constrain(conditioning, "batch", None, None)
        modulating = conditioning if self.shared_modulation is None else self.shared_modulation(conditioning)
        text = None if self.text_encoder is None else self.text_encoder(_known(given))
        angles = jnp.asarray(rope_angles(patch_positions(shape, self.patch_size), self.head_dim))
        patches = patchify(x_t, self.patch_size)
        # Tokens in one row: devices have them on two axes of their own, of which the smaller would be padded.
        x = self.x_embedder(patches.reshape(patches.shape[0], -1, patches.shape[-1]))

        def apply_block(x, block):
            x = checkpoint_name(constrain(x, "batch", "tokens", None), _BLOCK_INPUT)
            return block(x, modulating, angles, text), None

        if self.remat is not Remat.NOTHING_RECOMPUTED:
            apply_block = jax.checkpoint(apply_block, policy=_REMAT_POLICY[self.remat], prevent_cse=False)
        x, _ = jax.lax.scan(apply_block, x, self.blocks)
        shift, scale = (for_tokens(vector, x.shape[1]) for vector in self.final_modulation(conditioning))
        x = self.final_layer(modulate(rms_normalize(x), shift, scale))
        return unpatchify(x.reshape(patches.shape), self.patch_size, shape).astype(jnp.float32)

    def _per_patch_frame(self, t: Time) -> Float[Array, "B f"]:
        """One noise level per patch frame; frames that share a patch must share their level."""
        return t if t.shape[1] == 1 else t[:, :: self.patch_size[0]]
