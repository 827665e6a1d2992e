"""Learn to denoise video latents: the codec, the DiT, its condition and a Gaussian objective meet here."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from dit_video.arrays import Latents, Output, Time, Video
from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import Gaussian, rectified_flow
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.sampler import Euler, Sampler, noise
from dit_video.dit.condition import Cond, Condition
from dit_video.dit.first_frame import FirstFrame
from dit_video.dit.network import Network, NetworkConfig
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.text import PretrainedText
from dit_video.nn.module import Precision
from dit_video.tasks.known_frames import (
    after_first,
    by_frame,
    first_frame,
    followed_by_zeros,
    grey_after_first,
    held,
    image_tokens,
)
from dit_video.tasks.task import ClipShape, Metrics
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained import TrainedCodec


class Frozen(NamedTuple):
    """The parts of a diffusion run that are used and not trained.

    Attributes:
        nothing: what guidance has instead of a condition, for one clip `[1 ...]`; None where the condition makes it
            (`Condition.null`).
        image: the encoder of first frames, where the network attends to tokens of such.
    """

    codec: LatentCodec
    null: Cond | None = None
    image: CLIPVisionModel | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise:
    """The task of a diffusion run.

    Attributes:
        text: the frozen encoders that embed captions for `condition`; None where it reads none of theirs, or where a
            text cache is all there is.
        image: the frozen encoder of the first frame; None where `condition` has no tokens of an image.
        hold_first_frame: the first latent frame of a clip is known: it has noise level 0 while the others are denoised,
            and counts in no loss, so that a network continues images that has no other way to be told them (as Wan 2.2
            TI2V-5B does).
        held_out_logsnr: noise levels, as log(alpha^2 / sigma^2), at which the held-out error of x_0 is measured; the
            same levels and the same noise for every objective, so that epsilon, v and velocity compare.
    """

    network: NetworkConfig
    codec: TrainedCodec
    condition: Condition | None
    text: PretrainedText | None = None
    image: PretrainedImage | None = None
    objective: Gaussian = dataclasses.field(default_factory=rectified_flow)
    sampler: Sampler = dataclasses.field(default_factory=lambda: Euler(num_steps=50))
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    hold_first_frame: bool = False
    held_out_logsnr: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    precision: Precision = Precision.FLOAT32

    def __post_init__(self):
        if self.objective.variance is not None and not self.network.learns_variance:
            raise ValueError(
                f"Denoise.objective.variance={self.objective.variance}: the network says nothing of a variance; set "
                "network.learned_variance=True, or objective.variance=None"
            )
        attended = self.condition.image_size if isinstance(self.condition, FirstFrame) else None
        if self.image is None and attended is not None:
            raise ValueError(
                f"Denoise.image=None: condition.image_size={attended}, so the network attends to tokens of an image "
                "encoder; name it, Denoise.image=PretrainedImage(...), or import the folder of a whole pipeline"
            )
        if self.image is not None and attended != self.image.encoder.hidden_size:
            raise ValueError(
                f"Denoise.image.encoder.hidden_size={self.image.encoder.hidden_size}: the network attends to tokens of "
                f"condition.image_size={attended}; make them the same"
                if attended is not None
                else f"Denoise.image={self.image}: the network attends to no tokens of an image; leave it None"
            )
        if self.condition is None and self.guidance.scale != 1:
            raise ValueError(
                f"Denoise.guidance.scale={self.guidance.scale}: there is no condition to be followed; leave it 1, or "
                "give a condition"
            )
        if (self.hold_first_frame or isinstance(self.condition, FirstFrame)) and self.codec.vae.frame_group != 1:
            raise ValueError(
                f"Denoise.codec.vae={type(self.codec.vae).__name__}: it takes {self.codec.vae.frame_group} latent "
                "frames at once, so that the first is another alone than in its clip; a first frame cannot be given"
            )
        if isinstance(self.condition, FirstFrame) and self.condition.mask_channels != self.codec.vae.compression[0]:
            raise ValueError(
                f"Denoise.condition.mask_channels={self.condition.mask_channels}: there is one for each frame that "
                f"shares a latent frame, of {type(self.codec.vae).__name__} {self.codec.vae.compression[0]}; set it so"
            )
        if self.hold_first_frame and isinstance(self.condition, FirstFrame):
            raise ValueError("Denoise.hold_first_frame=True: the condition is a FirstFrame, which tells it already")
        if self.hold_first_frame and self.network.patch_size[0] != 1:
            raise ValueError(
                f"Denoise.hold_first_frame=True: frames that share a patch share their noise level; network.patch_size="
                f"{self.network.patch_size} must be of one frame"
            )

    @property
    def paired(self) -> bool:
        """Where the first frame of each clip is given, which is then continued; labels and captions make no pairs."""
        return self.hold_first_frame or isinstance(self.condition, FirstFrame)

    def init(self, rng: Key[Array, ""]) -> Network:
        channels = self.codec.vae.latent_channels
        return self.network.build(channels, self.condition, dtype=self.precision.dtype, rngs=nnx.Rngs(rng))

    def blank(self, rng: Key[Array, ""]) -> Frozen:
        """The frozen parts with random weights: for shapes, FLOPs and tests, where no trained ones are at hand."""
        null = None if self.condition is None else self.condition.blank_null()
        return Frozen(self.codec.blank(rng), null, None if self.image is None else self.image.blank(rng))

    def loss(
        self, model: Network, frozen: Frozen, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del step  # the objective is the same at every step
        corruption, posterior, dropping = jax.random.split(rng, 3)
        x_0 = _latents(frozen.codec, batch, posterior)
        cond = self._cond(frozen, batch, x_0.shape[1])
        if self.condition is not None and cond is not None:
            cond = self.condition.drop(dropping, cond, self._null(self.condition, frozen, cond))
        corrupted = self.objective.corrupt(corruption, x_0)
        output = model.output(*held(corrupted.x_t, corrupted.t, self._held_of(x_0)), cond)
        if self.hold_first_frame:
            output, corrupted = after_first(output), after_first(by_frame(corrupted))
        return self.objective.loss(output, corrupted)

    def validate(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Squared error of the denoised x_0 per clip at each of `held_out_logsnr`, and their mean."""
        x_0 = _latents(frozen.codec, batch, None)
        cond = self._cond(frozen, batch, x_0.shape[1])
        eps = noise(rngs, x_0.shape[1:])

        def error(logsnr: Float[Array, ""]) -> Float[Array, "B"]:
            t = jnp.full((x_0.shape[0], 1), self.objective.path.time_of_logsnr(logsnr))
            x_t = self.objective.corrupt_with(x_0, eps, t).x_t
            denoised = self.objective.denoised(model(*held(x_t, t, self._held_of(x_0)), cond), x_t, t)
            error = jnp.square(denoised - x_0)
            return jnp.mean(after_first(error) if self.hold_first_frame else error, axis=(1, 2, 3, 4))

        errors = jax.lax.map(error, jnp.asarray(self.held_out_logsnr))
        named = {f"x_0_error/logsnr_{level:+g}": e for level, e in zip(self.held_out_logsnr, errors)}
        return {"x_0_error": errors.mean(0)} | named

    def generate(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> Video:
        """Samples a clip for each row of `batch`, of its label or its caption where the network is conditioned."""
        latents = self.codec.vae.latent_shape(shape)
        cond = self._cond(frozen, batch, latents[0])
        x_1 = noise(rngs, (*latents, self.codec.vae.latent_channels))
        first = first_frame(frozen.codec, batch) if self.hold_first_frame else None

        def conditional(x_t: Latents, t: Time) -> Output:
            return model.output(*held(x_t, t, first), cond)

        denoise: DenoiseFn = conditional
        if self.condition is not None and cond is not None:
            null = self._null(self.condition, frozen, cond)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)]), cond, null)

            def pair(x_t: Latents, t: Time) -> tuple[Output, Output]:
                # One forward pass over the conditional and the unconditional half.
                x_t_twice, t_twice = (jnp.concatenate([x, x]) for x in held(x_t, t, first))
                output = model.output(x_t_twice, t_twice, both)
                num_clips = x_t.shape[0]
                return jax.tree.map(lambda x: x[:num_clips], output), jax.tree.map(lambda x: x[num_clips:], output)

            denoise = self.guidance.classifier_free(conditional, pair)
        x_0 = self.sampler(denoise, self.objective, x_1, rngs)
        return frozen.codec.decode(x_0 if first is None else x_0.at[:, :1].set(first))

    def reconstruct(self, model: Network, frozen: Frozen, batch: Batch) -> Video:
        """The clips of `batch` encoded and decoded by the codec."""
        del model
        codec = frozen.codec
        return codec.decode(codec.whiten(codec.moments(batch.require_video()), None))

    def _cond(self, frozen: Frozen, batch: Batch, num_frames: int) -> Cond | None:
        """What the network is told of each clip of so many latent frames."""
        if self.condition is None:
            return None
        cond = self.condition.read(label=batch.label, caption=batch.caption, text=batch.text)
        if isinstance(self.condition, FirstFrame):
            image = None if frozen.image is None else image_tokens(frozen.image, batch)
            if self.condition.grey_frames:
                return self.condition.framed(cond, grey_after_first(frozen.codec, batch, num_frames), image)
            return self.condition.framed(cond, followed_by_zeros(first_frame(frozen.codec, batch), num_frames), image)
        return cond

    def _held_of(self, x_0: Latents) -> Float[Array, "B 1 h w c"] | None:
        """What is known of x_0 before anything is denoised."""
        return x_0[:, :1] if self.hold_first_frame else None

    def _null(self, condition: Condition, frozen: Frozen, cond: Cond) -> Any:
        """What guidance has instead of what is given, for each clip or for one."""
        return condition.null(cond, frozen.null)


def _latents(codec: LatentCodec, batch: Batch, rng: Key[Array, ""] | None) -> Latents:
    """Whitened latents of a batch of cached moments or of video; the posterior's mean where `rng` is None."""
    moments = codec.moments(batch.require_video()) if batch.moments is None else jnp.asarray(batch.moments)
    return jax.lax.stop_gradient(codec.whiten(moments, rng))
