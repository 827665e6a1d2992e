"""The codec that a run of this package has trained, as a value of an experiment."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from dit_video.config.paths import expand
from dit_video.vae.codec import LatentCodec
from dit_video.vae.vae import VAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedCodec:
    """Which codec makes the latents.

    Attributes:
        vae: its network.
        run: folder of the run that trained it.
        digest: digest of its weights; left None, it is looked up when the run starts and recorded then.
    """

    vae: VAEConfig
    run: str
    digest: str | None = None

    PATHS: ClassVar[tuple[str, ...]] = ("run",)

    def __post_init__(self):
        expand(self)

    def blank(self, rng: Key[Array, ""]) -> LatentCodec:
        """The codec with random weights: for shapes, FLOPs and tests, where no trained one is at hand."""
        vae = self.vae.build(rngs=nnx.Rngs(rng))
        channels = self.vae.latent_channels
        return LatentCodec(vae, jnp.zeros(channels), jnp.ones(channels))
