"""The diffusion transformer on video latents (Peebles and Xie, 2212.09748), in its modern form.

As published: patches, adaLN-zero, sizes S, B, L, XL. As practised since: rotary positions on three axes, RMS
normalisation, normalised queries and keys, SwiGLU (LightningDiT, 2501.01423, table 2 measures each). Attention
is full over space and time. Layers are stacked and scanned, so compile time does not grow with depth.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import Latents, Time
from dit_video.dit.condition import ClassCondition
from dit_video.nn.attention import Attention
from dit_video.nn.embed import (
    AdaLN,
    TimeEmbedding,
    linear,
    modulate,
    patch_positions,
    patchify,
    rope_angles,
    unpatchify,
)
from dit_video.nn.norm import rms_normalize
from dit_video.sharding import constrain


class Remat(enum.Enum):
    """What the backward pass keeps of each block instead of computing it again."""

    NOTHING_RECOMPUTED = "none"
    DOTS = "dots"  # keep matrix products, recompute the rest
    FULL = "full"  # keep block inputs only: least memory, one more forward pass


_REMAT_POLICY = {
    Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Size of a DiT. `patch_size` is (frames, rows, columns) in latent cells."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    mlp_ratio: float = 4.0
    remat: Remat = Remat.NOTHING_RECOMPUTED

    def __post_init__(self):
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"DiTConfig.hidden_size={self.hidden_size}: must be num_heads={self.num_heads} times an even head size"
            )

    @property
    def mlp_size(self) -> int:
        """Width of SwiGLU: two thirds of the ungated MLP's, for as many parameters; a multiple of 64."""
        return max(64, round(self.hidden_size * self.mlp_ratio * 2 / 3 / 64) * 64)


# Table 1 of 2212.09748.
DIT_S = DiTConfig(hidden_size=384, depth=12, num_heads=6)
DIT_B = DiTConfig(hidden_size=768, depth=12, num_heads=12)
DIT_L = DiTConfig(hidden_size=1024, depth=24, num_heads=16)
DIT_XL = DiTConfig(hidden_size=1152, depth=28, num_heads=16)


class SwiGLU(nnx.Module):
    """Gated MLP, silu(x W) * (x V), then W_2 (Shazeer, 2002.05202, eq. 6)."""

    def __init__(self, hidden_size: int, mlp_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.up = linear(hidden_size, mlp_size, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = linear(mlp_size, hidden_size, ("mlp", "embed"), rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each normalised, modulated by the conditioning vector and gated (adaLN-zero)."""

    def __init__(self, config: DiTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.modulation = AdaLN(6, config.hidden_size, dtype=dtype, rngs=rngs)
        self.attention = Attention(config.hidden_size, config.num_heads, dtype=dtype, rngs=rngs)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B f s D"], conditioning: Float[Array, "B #f D"], angles: Float[Array, "N r"]
    ) -> Float[Array, "B f s D"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(conditioning)
        B, f, s, D = x.shape
        h = modulate(rms_normalize(x), shift_a, scale_a)
        x = x + gate_a * self.attention(h.reshape(B, f * s, D), angles).reshape(B, f, s, D)
        return x + gate_m * self.mlp(modulate(rms_normalize(x), shift_m, scale_m))


class DiT(nnx.Module):
    """Denoiser of video latents: (x_t, t, label) -> prediction of x_t's shape."""

    def __init__(
        self,
        config: DiTConfig,
        channels: int,
        condition: ClassCondition | None,
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
        self.y_embedder = condition.embedding(config.hidden_size, rngs=rngs) if condition else None
        # One stacked Block: every parameter gains a leading axis of `depth` layers.
        self.blocks = jax.vmap(lambda key: Block(config, dtype=dtype, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), config.depth)
        )
        self.final_modulation = AdaLN(2, config.hidden_size, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.final_layer = linear(config.hidden_size, patch_dim, ("embed", None), rngs=rngs, dtype=dtype, init=zeros)

    def __call__(self, x_t: Latents, t: Time, label: Int[Array, "B"] | None) -> Latents:
        """Predicts what the objective asks for, from noisy latents.

        Args:
            x_t: latents at noise level t; (t, h, w) must divide by the patch size.
            t: noise level in [0, 1], one per clip `[B 1]` or per latent frame `[B t]`.
            label: class of each clip, `num_classes` for "no label"; None where the network has no condition.

        Returns:
            float32 prediction of x_t's shape.
        """
        _, frames, rows, columns, _ = x_t.shape
        shape = (frames, rows, columns)
        conditioning = self.t_embedder(self._per_patch_frame(t))
        if self.y_embedder is not None:
            if label is None:
                raise ValueError("this DiT is conditioned on a class: pass `label` (num_classes means none)")
            conditioning = conditioning + self.y_embedder(label)[:, None].astype(conditioning.dtype)
        angles = jnp.asarray(rope_angles(patch_positions(shape, self.patch_size), self.head_dim))
        x = self.x_embedder(patchify(x_t, self.patch_size))

        def apply_block(x, block):
            return constrain(block(x, conditioning, angles), "batch", None, "tokens", None), None

        if self.remat is not Remat.NOTHING_RECOMPUTED:
            apply_block = jax.checkpoint(apply_block, policy=_REMAT_POLICY[self.remat], prevent_cse=False)
        x, _ = jax.lax.scan(apply_block, x, self.blocks)
        shift, scale = self.final_modulation(conditioning)
        x = self.final_layer(modulate(rms_normalize(x), shift, scale))
        return unpatchify(x, self.patch_size, shape).astype(jnp.float32)

    def _per_patch_frame(self, t: Time) -> Float[Array, "B f"]:
        """One noise level per patch frame; frames that share a patch must share their level."""
        return t if t.shape[1] == 1 else t[:, :: self.patch_size[0]]
