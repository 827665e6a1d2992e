"""CLIP vision transformer (ViT), the image encoder (Radford et al., 2103.00020, section 3.2; OpenCLIP, 2212.07143).

Patches of a picture and one token more, with learnt positions, which all attend to one another. What is taken are the
states before the last block, so neither it nor what follows it is here. Blocks are stacked and scanned.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt8

from dit_video.config.bounds import at_least
from dit_video.distributed.sharding import constrain
from dit_video.encoders.clip_block import Activation, CLIPBlock
from dit_video.nn.linear import linear
from dit_video.nn.norm import LayerNorm
from dit_video.nn.patches import to_tokens

# Of red, green and blue from 0 to 1, over the pictures that CLIP was trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of a CLIP vision transformer.

    Attributes:
        depth: blocks as published, the last of which is not computed.
        image_size: rows and columns of pixels of a picture.
        patch_size: rows and columns of pixels of a patch.
        norm_epsilon: added to the variance.
    """

    hidden_size: int
    depth: int
    num_heads: int
    mlp_size: int
    activation: Activation
    image_size: int = 224
    patch_size: int = 14
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        at_least(self, 2, "depth", why="the last is left out")
        for name, divisor in (("hidden_size", "num_heads"), ("image_size", "patch_size")):
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"CLIPVisionConfig.{name}={getattr(self, name)}: must be a multiple of "
                    f"{divisor}={getattr(self, divisor)}"
                )

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture: its patches and the class token."""
        return 1 + (self.image_size // self.patch_size) ** 2


# ViT-H/14 of OpenCLIP, trained with XLM-RoBERTa: that of Wan 2.1's image to video (2503.20314, section 5.1).
CLIP_VIT_H = CLIPVisionConfig(hidden_size=1280, depth=32, num_heads=16, mlp_size=5120, activation=Activation.GELU)


class CLIPVisionModel(nnx.Module):
    """CLIP vision transformer: pictures -> one token for each patch, and the class token.

    Attributes:
        dtype: what is computed in. Parameters may be of any type that `Definition.bind` is given.
    """

    def __init__(self, config: CLIPVisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        D, pixels = config.hidden_size, 3 * config.patch_size**2
        self.patch_embedder = linear(pixels, D, (None, "embed"), rngs=rngs, dtype=dtype, use_bias=False)
        init = nnx.with_metadata(nnx.initializers.normal(0.02), axes=(None, "embed"))
        # The token more comes first.
        self.class_token = nnx.Param(init(rngs.params(), (1, D), jnp.float32), axes=(None, "embed"))
        self.positions = nnx.Param(init(rngs.params(), (config.num_tokens, D), jnp.float32), axes=(None, "embed"))
        self.norm = LayerNorm(D, rngs=rngs, epsilon=config.norm_epsilon)

        def block(key: Key[Array, ""]) -> CLIPBlock:
            sizes = (D, config.num_heads, config.mlp_size, config.activation)
            rest = {"causal": False, "epsilon": config.norm_epsilon}
            return CLIPBlock(*sizes, **rest, dtype=dtype, rngs=nnx.Rngs(key))

        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), config.depth - 1))

    def __call__(self, pictures: UInt8[Array | np.ndarray, "B H W 3"]) -> Float[Array, "B I E"]:
        """Tokens of pictures of any size, the states before the last block, float32."""
        return self.penultimate(prepared(pictures, self.config.image_size))

    def penultimate(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B I E"]:
        """Tokens of pictures that are `prepared`, the states before the last block, float32."""
        side = self.config.patch_size
        patches = self.patch_embedder(to_tokens(pixels[:, None], (1, side, side)).astype(self.dtype))
        first = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (len(patches), 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], axis=1) + self.positions[...].astype(self.dtype)

        def apply_block(x, block):
            return block(constrain(x, "batch", None, None)), None

        x, _ = jax.lax.scan(apply_block, self.norm(x), self.blocks)
        return x.astype(jnp.float32)


def prepared(pictures: UInt8[Array | np.ndarray, "B H W 3"], size: int) -> Float[Array, "B {size} {size} 3"]:
    """CLIP image preprocessing: shorter side scaled to `size` pixels, centre crop, normalisation.

    As in CLIPImageProcessor of transformers: scaled by bicubic interpolation, over as many pixels as one of a smaller
    picture covers, along columns and then along rows, and rounded to bytes after each.
    """
    H, W = pictures.shape[1:3]
    rows, columns = (size * n // min(H, W) for n in (H, W))
    pixels = jnp.asarray(pictures).astype(jnp.float32)
    for scaled in ((H, columns), (rows, columns)):
        pixels = jax.image.resize(pixels, (len(pixels), *scaled, 3), jax.image.ResizeMethod.CUBIC)
        pixels = jnp.clip(jnp.round(pixels), 0, 255)
    top, left = (rows - size) // 2, (columns - size) // 2
    pixels = pixels[:, top : top + size, left : left + size]
    return (pixels / 255 - jnp.array(MEAN)) / jnp.array(STD)
