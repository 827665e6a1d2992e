"""Training of a video VAE: reconstruction, perceptual, adversarial and KL losses on clips."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from dit_video.arrays import Video as Clips
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.nn.module import Precision
from dit_video.tasks.media import Video
from dit_video.tasks.task import RECONSTRUCT, VALIDATE, Function, Learnt, Metrics, Task, latent_cells
from dit_video.vae.codec import to_pixels, to_video
from dit_video.vae.losses import AutoencodeLoss, Critic, autoencode_loss
from dit_video.vae.vae import VAE, Autoencoded, VAEConfig, posterior, sample_posterior


class Autoencoder(nnx.Module):
    """VAE and, where the loss has an adversarial term, its critic: parameters "vae..." and "critic..."."""

    def __init__(self, config: VAEConfig, loss: AutoencodeLoss, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.vae = config.build(dtype=dtype, rngs=rngs)
        self.critic = Critic(dtype=dtype, rngs=rngs) if loss.adversarial > 0 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencode(Task):
    """Training of a video VAE, which other runs then use as their codec."""

    vae: VAEConfig
    losses: AutoencodeLoss = AutoencodeLoss()
    precision: Precision = Precision.FLOAT32

    @property
    def paired(self) -> bool:
        """True: a reconstruction and its clip are a pair."""
        return True

    def check(self, data: Data, mesh: Mesh | None) -> None:
        latent_cells(self.vae, data)
        idle = [] if mesh is None else [axis for axis in ("context", "tensor") if mesh.shape[axis] > 1]
        if mesh is not None and idle:
            raise ValueError(
                f"config.mesh.{idle[0]}={mesh.shape[idle[0]]}: an autoencoder is split along data and fsdp only; "
                f"devices along {' and '.join(idle)} would all do the same"
            )

    def init(self, rng: Key[Array, ""]) -> Autoencoder:
        return Autoencoder(self.vae, self.losses, dtype=self.precision.dtype, rngs=nnx.Rngs(rng))

    def loss(
        self, model: Autoencoder, frozen: None, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen  # a codec builds on no other
        pixels = to_pixels(batch.require_video())
        moments = model.vae.encode(pixels)
        output = Autoencoded(model.vae.decode(sample_posterior(moments, rng)), moments)
        return autoencode_loss(self.losses, output, pixels, model.critic, step)

    def functions(self) -> Mapping[str, Function]:
        return {
            VALIDATE: Function(lambda model, frozen, batch, keys, shape: self.validate(model, frozen, batch, keys)),
            RECONSTRUCT: Function(
                lambda model, frozen, batch, keys, shape: self.reconstruct(model, frozen, batch), Video
            ),
        }

    def validate(self, model: Autoencoder, frozen: None, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Mean absolute error of pixels per clip, from the posterior's mean."""
        del frozen, rngs
        pixels = to_pixels(batch.require_video())
        error = jnp.abs(_through(model.vae, pixels) - pixels)
        return {"pixel_error": error.mean(axis=(1, 2, 3, 4))}

    def reconstruct(self, model: Autoencoder, frozen: None, batch: Batch) -> Clips:
        """The clips of `batch`, encoded and decoded."""
        del frozen
        return to_video(_through(model.vae, to_pixels(batch.require_video())))

    def in_float32(self) -> "Autoencode":
        return dataclasses.replace(self, precision=Precision.FLOAT32)

    def learnt(self) -> Learnt:
        return Learnt({"vae": self.vae}, {"losses": self.losses})

    @property
    def learnt_vae(self) -> VAEConfig:
        return self.vae


def _through(vae: VAE, pixels: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    mean, _ = posterior(vae.encode(pixels))
    return vae.decode(mean)
