"""Learn a codec: a VAE, its losses and a batch of clips meet here."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from dit_video.arrays import Video
from dit_video.data.batch import Batch
from dit_video.nn.module import Precision
from dit_video.tasks.task import ClipShape, Metrics
from dit_video.vae.codec import to_pixels, to_video
from dit_video.vae.losses import AutoencodeLoss, Critic, autoencode_loss
from dit_video.vae.vae import VAE, Autoencoded, VAEConfig, posterior, sample_posterior


class Autoencoder(nnx.Module):
    """The VAE, and where the loss asks for one the critic: parameters "vae..." and "critic..."."""

    def __init__(self, config: VAEConfig, loss: AutoencodeLoss, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.vae = config.build(dtype=dtype, rngs=rngs)
        self.critic = Critic(dtype=dtype, rngs=rngs) if loss.adversarial > 0 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencode:
    """The task of a codec's run."""

    vae: VAEConfig
    losses: AutoencodeLoss = AutoencodeLoss()
    precision: Precision = Precision.FLOAT32

    @property
    def paired(self) -> bool:
        """A codec makes clips from the clips themselves."""
        return True

    def init(self, rng: Key[Array, ""]) -> Autoencoder:
        return Autoencoder(self.vae, self.losses, dtype=self.precision.dtype, rngs=nnx.Rngs(rng))

    def loss(
        self, model: Autoencoder, frozen: None, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen  # a codec builds on nothing
        pixels = to_pixels(batch.require_video())
        moments = model.vae.encode(pixels)
        output = Autoencoded(model.vae.decode(sample_posterior(moments, rng)), moments)
        return autoencode_loss(self.losses, output, pixels, model.critic, step)

    def validate(self, model: Autoencoder, frozen: None, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Mean absolute error of pixels per clip, from the posterior's mean."""
        del frozen, rngs
        pixels = to_pixels(batch.require_video())
        error = jnp.abs(_through(model.vae, pixels) - pixels)
        return {"pixel_error": error.mean(axis=(1, 2, 3, 4))}

    def generate(
        self, model: Autoencoder, frozen: None, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape
    ) -> Video:
        """A codec makes clips from the clips themselves."""
        del rngs, shape
        return self.reconstruct(model, frozen, batch)

    def reconstruct(self, model: Autoencoder, frozen: None, batch: Batch) -> Video:
        del frozen
        return to_video(_through(model.vae, to_pixels(batch.require_video())))


def _through(vae: VAE, pixels: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    mean, _ = posterior(vae.encode(pixels))
    return vae.decode(mean)
