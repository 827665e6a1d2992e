"""Learn to denoise video latents: the codec, the DiT, its condition and a Gaussian objective meet here."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from dit_video.arrays import Latents, Time, Video
from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import Gaussian, rectified_flow
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.sampler import Euler, Sampler, noise
from dit_video.dit.condition import Condition, Given
from dit_video.dit.network import Network, NetworkConfig
from dit_video.nn.module import Precision
from dit_video.tasks.task import ClipShape, Metrics
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

    def blank(self, rng: Key[Array, ""]) -> LatentCodec:
        """The codec with random weights: for shapes, FLOPs and tests, where no trained one is at hand."""
        vae = self.vae.build(rngs=nnx.Rngs(rng))
        channels = self.vae.latent_channels
        return LatentCodec(vae, jnp.zeros(channels), jnp.ones(channels))


class Frozen(NamedTuple):
    """The parts of a diffusion run that are used and not trained.

    Attributes:
        nothing: what guidance has instead of a condition, for one clip `[1 ...]`; None where the condition makes it
            (`Condition.null`).
    """

    codec: LatentCodec
    nothing: Given | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise:
    """The task of a diffusion run.

    Attributes:
        held_out_logsnr: noise levels, as log(alpha^2 / sigma^2), at which the held-out error of x_0 is measured; the
            same levels and the same noise for every objective, so that epsilon, v and velocity compare.
    """

    network: NetworkConfig
    codec: TrainedCodec
    condition: Condition | None
    objective: Gaussian = dataclasses.field(default_factory=rectified_flow)
    sampler: Sampler = dataclasses.field(default_factory=lambda: Euler(num_steps=50))
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    held_out_logsnr: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    precision: Precision = Precision.FLOAT32

    @property
    def paired(self) -> bool:
        """Of the clips of a batch, only labels or captions are seen."""
        return False

    def init(self, rng: Key[Array, ""]) -> Network:
        channels = self.codec.vae.latent_channels
        return self.network.build(channels, self.condition, dtype=self.precision.dtype, rngs=nnx.Rngs(rng))

    def blank(self, rng: Key[Array, ""]) -> Frozen:
        """The frozen parts with random weights: for shapes, FLOPs and tests, where no trained ones are at hand."""
        return Frozen(self.codec.blank(rng), None if self.condition is None else self.condition.blank_nothing())

    def loss(
        self, model: Network, frozen: Frozen, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del step  # the objective is the same at every step
        corruption, posterior, dropping = jax.random.split(rng, 3)
        x_0 = _latents(frozen.codec, batch, posterior)
        given = self._given(batch)
        if self.condition is not None and given is not None:
            given = self.condition.drop(dropping, given, self._nothing(self.condition, frozen, given))
        corrupted = self.objective.corrupt(corruption, x_0)
        prediction = model(corrupted.x_t, corrupted.t, given)
        return self.objective.loss(prediction, corrupted)

    def validate(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Squared error of the denoised x_0 per clip at each of `held_out_logsnr`, and their mean."""
        x_0, given = _latents(frozen.codec, batch, None), self._given(batch)
        eps = noise(rngs, x_0.shape[1:])

        def error(logsnr: Float[Array, ""]) -> Float[Array, "B"]:
            t = jnp.full((x_0.shape[0], 1), self.objective.path.time_of_logsnr(logsnr))
            x_t = self.objective.corrupt_with(x_0, eps, t).x_t
            denoised = self.objective.denoised(model(x_t, t, given), x_t, t)
            return jnp.mean(jnp.square(denoised - x_0), axis=(1, 2, 3, 4))

        errors = jax.lax.map(error, jnp.asarray(self.held_out_logsnr))
        named = {f"x_0_error/logsnr_{level:+g}": e for level, e in zip(self.held_out_logsnr, errors)}
        return {"x_0_error": errors.mean(0)} | named

    def generate(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> Video:
        """Samples a clip for each row of `batch`, of its label or its caption where the network is conditioned."""
        given = self._given(batch)
        x_1 = noise(rngs, (*self.codec.vae.latent_shape(shape), self.codec.vae.latent_channels))

        def conditional(x_t: Latents, t: Time) -> Latents:
            return model(x_t, t, given)

        denoise: DenoiseFn = conditional
        if self.condition is not None and given is not None:
            nothing = self._nothing(self.condition, frozen, given)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)]), given, nothing)

            def pair(x_t: Latents, t: Time) -> tuple[Latents, Latents]:
                # One forward pass over the conditional and the unconditional half.
                prediction = model(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
                conditioned, unconditioned = jnp.split(prediction, 2)
                return conditioned, unconditioned

            denoise = self.guidance.classifier_free(conditional, pair)
        return frozen.codec.decode(self.sampler(denoise, self.objective, x_1, rngs))

    def reconstruct(self, model: Network, frozen: Frozen, batch: Batch) -> Video:
        """The clips of `batch` encoded and decoded by the codec."""
        del model
        codec = frozen.codec
        return codec.decode(codec.whiten(codec.moments(batch.require_video()), None))

    def _given(self, batch: Batch) -> Given | None:
        if self.condition is None:
            return None
        return self.condition.known(label=batch.label, caption=batch.caption, text=batch.text)

    def _nothing(self, condition: Condition, frozen: Frozen, given: Given) -> Given:
        """What guidance has instead of what is given, for each clip or for one."""
        return condition.null(given) if frozen.nothing is None else frozen.nothing


def _latents(codec: LatentCodec, batch: Batch, rng: Key[Array, ""] | None) -> Latents:
    """Whitened latents of a batch of cached moments or of video; the posterior's mean where `rng` is None."""
    moments = codec.moments(batch.require_video()) if batch.moments is None else jnp.asarray(batch.moments)
    return jax.lax.stop_gradient(codec.whiten(moments, rng))
