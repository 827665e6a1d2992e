"""The codec that a run of this package has trained, as a value of an experiment."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from dit_video.config.paths import expand
from dit_video.nn.module import params_of
from dit_video.vae.codec import LatentCodec
from dit_video.vae.vae import VAEConfig
from dit_video.weights.digest import is_name_of_before, name_as


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedCodec:
    """Which codec makes the latents.

    Attributes:
        vae: its network.
        run: folder of the run that trained it.
        digest: of its weights and its latent statistics; left None, it is looked up when the run starts and recorded
            then.
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


def name_codec_as(recorded: str | None, codec: LatentCodec) -> str:
    """Digest of a codec, its weights and the statistics of its latents, to be compared with a recorded one.

    Records of before are of the weights alone, and in another form: it is computed in the form of `recorded`, or in
    today's where that is None.
    """
    of_before = recorded is not None and is_name_of_before(recorded)
    return name_as(recorded, params_of(codec.vae if of_before else codec))
