"""Latent video diffusion: codec, denoising network, condition and Gaussian objective (2212.09748, 2403.03206)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from dit_video.arrays import Latents, Output, Time
from dit_video.arrays import Video as Clips
from dit_video.config.components import to_json
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.inventory import Inventory
from dit_video.data.record import Split
from dit_video.data.signals import examples_of
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import Gaussian, rectified_flow
from dit_video.diffusion.path import over_latents
from dit_video.diffusion.prediction import DenoiseFn
from dit_video.diffusion.process import Known
from dit_video.diffusion.sampler import Euler, Sampler
from dit_video.diffusion.scheduling_matrix import Levels, Pyramid, SchedulingMatrix, WholeClip
from dit_video.diffusion.timestep_spacing import Trailing
from dit_video.dit.condition import Cond, Condition
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.network import Network, NetworkConfig, TransformerConfig
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.text import PretrainedText
from dit_video.nn.module import Precision
from dit_video.nn.patches import PatchSize, latent_shape
from dit_video.tasks import diffuse
from dit_video.tasks.known_frames import (
    FirstFrame,
    KnownFrames,
    Pattern,
    check_image,
    encoded_in_place,
    first_frame,
    followed_by_zeros,
    grey_after_first,
    image_tokens,
    whole_frames,
)
from dit_video.tasks.media import Video
from dit_video.tasks.opener import Opener
from dit_video.tasks.past_frames import PastFrames, in_training, in_validation
from dit_video.tasks.roll_out import RollOut
from dit_video.tasks.task import (
    EDIT,
    GENERATE,
    RECONSTRUCT,
    ROLL_OUT,
    VALIDATE,
    ClipShape,
    Encoders,
    Function,
    Learnt,
    Metrics,
    SamplingOptions,
    Task,
    fill,
    latent_cells,
)
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec


class Frozen(NamedTuple):
    """Frozen parts of a latent diffusion run.

    Attributes:
        null: the null condition of guidance, for one clip `[1 ...]`; None where the condition makes it
            (`Condition.empty`).
        image: the encoder of first frames, where the network attends to tokens of such.
    """

    codec: LatentCodec
    null: Cond | None = None
    image: CLIPVisionModel | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoise(Task):
    """Latent video diffusion: a network is trained to denoise the latents of a frozen codec.

    Attributes:
        text: the frozen encoders that embed captions for `condition`; None where it reads none of theirs, or where a
            text cache is all there is.
        image: the frozen encoder of the first frame; None where the network attends to no tokens of an image.
        known: which frames of a clip are known before it is generated, and how the network sees them: the first of
            every clip, or any, a mixture; None where none are.
        past: how a network that is causal over frames sees those before; None: it makes whole clips only.
        scheduling: in what order the frames of a clip are sampled.
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
    known: FirstFrame | KnownFrames | None = None
    past: PastFrames | None = None
    scheduling: SchedulingMatrix = WholeClip()
    held_out_logsnr: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    precision: Precision = Precision.FLOAT32

    def __post_init__(self):
        if self.objective.variance is not None and not self.network.learns_variance:
            raise ValueError(
                f"Denoise.objective.variance={self.objective.variance}: the network predicts no variance; set "
                "network.learned_variance=True, or objective.variance=None"
            )
        if self.condition is None and self.guidance.scale != 1:
            raise ValueError(
                f"Denoise.guidance.scale={self.guidance.scale}: there is no condition to be followed; leave it 1, or "
                "name a condition"
            )
        check_image(self._channels, self.image)
        if self.known is not None:
            self.known.check(self.codec.vae, self.network)
        if self.past is not None:
            self.past.check(self.network, self.condition)
        if self.condition is not None:
            self.network.check_condition(self.condition, frames_per_latent=self.codec.vae.compression[0])

    @property
    def _channels(self) -> AsChannels | None:
        return None if self.known is None else self.known.channels

    def check(self, data: Data, mesh: Mesh | None) -> None:
        del mesh
        cells, patch = latent_cells(self.codec.vae, data), self.network.patch_size
        if self.known is not None:
            self.known.check_codec(self.codec.vae, cached=data.cache is not None)
        if any(n % p for n, p in zip(cells, patch)):
            clip = (data.clips.num_frames, *data.clips.size)
            raise ValueError(
                f"config.data.clips (num_frames, size) = {clip}: latents of {cells} do not divide into "
                f"config.task.network.patch_size={patch}"
            )

    def check_data(self, inventories: Mapping[Split, Inventory]) -> list[str]:
        of_known = None if self.known is None else self.known.untaught(self.codec.vae)
        of_condition = [] if self.condition is None else self.condition.check_data(inventories[Split.TRAIN])
        return [*of_condition, *([] if of_known is None else [of_known])]

    @property
    def paired(self) -> bool:
        """True where the first frame of each clip is known, so that a sample and its clip are a pair."""
        return self.known is not None and self.known.always

    def init(self, rng: Key[Array, ""]) -> Network:
        return self.network.build(
            self.codec.vae.latent_channels,
            self.condition,
            known=self._channels,
            dtype=self.precision.dtype,
            rngs=nnx.Rngs(rng),
        )

    def open(self, opener: Opener) -> tuple["Denoise", Frozen]:
        named, codec = opener.codec(self.codec)
        blank = None if self.condition is None else self.condition.blank_null()
        sizes = None if blank is None else (*blank.tokens.shape[1:], blank.pooled.shape[1])
        null = opener.empty_text(sizes)
        image, encoder = (None, None) if self.image is None else opener.image(self.image)
        return dataclasses.replace(self, codec=named, image=image), Frozen(codec, null, encoder)

    def blank(self, rng: Key[Array, ""]) -> Frozen:
        null = None if self.condition is None else self.condition.blank_null()
        return Frozen(self.codec.blank(rng), null, None if self.image is None else self.image.blank(rng))

    def loss(
        self, model: Network, frozen: Frozen, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del step  # the objective is the same at every step
        corruption, posterior, dropping = jax.random.split(rng, 3)
        x_0 = _latents(frozen.codec, batch, posterior)
        cond = self._cond(batch)
        if self.condition is not None:
            cond = self.condition.drop(dropping, cond, self.condition.null(cond, frozen.null))
        cond = self._shown(frozen, batch, cond, x_0.shape[1])
        known = None
        if self.known is not None:
            of_known = jax.random.fold_in(rng, _KNOWN)
            known = self.known.drawn(of_known, frozen.codec, batch, x_0, self.network.patch_size)
        predict = in_training(self.past, model, self.objective, cond, x_0, jax.random.fold_in(rng, _PAST))
        return diffuse.training_loss(self.objective, predict, x_0, corruption, known)

    def functions(self) -> Mapping[str, Function]:
        return {
            VALIDATE: Function(lambda model, frozen, batch, keys, shape: self.validate(model, frozen, batch, keys)),
            GENERATE: Function(self.generate, Video),
            RECONSTRUCT: Function(
                lambda model, frozen, batch, keys, shape: self.reconstruct(model, frozen, batch), Video
            ),
            EDIT: Function(self.edit, Video),
            **({} if self.past is None else {ROLL_OUT: Function(self.roll_out_clips, Video)}),
        }

    def validate(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"]) -> Metrics:
        """Squared error of the denoised x_0 per clip at each of `held_out_logsnr`, and their mean.

        Where runs are trained with a mixture of known frames, the mean for each pattern of it too.
        """
        x_0 = _latents(frozen.codec, batch, None)
        cond = self._shown(frozen, batch, self._cond(batch), x_0.shape[1])
        eps, known = self.objective.prior(rngs, x_0.shape[1:]), self._known(x_0[:, :1], x_0.shape[1])
        predict = in_validation(self.past, model, self.objective, cond, x_0, rngs)
        errors = self._errors(predict, x_0, eps, known)
        named = {f"x_0_error/logsnr_{level:+g}": e for level, e in zip(self.held_out_logsnr, errors)}
        if isinstance(self.known, KnownFrames) and self.known.patterns:
            masks = self.known.masks(rngs, latent_shape(x_0), self.network.patch_size)
            # One program for all patterns.
            of_patterns = jax.lax.map(
                lambda mask: self._errors(predict, x_0, eps, Known(x_0, mask)).mean(0), jnp.stack([*masks.values()])
            )
            named |= {f"x_0_error/known_{pattern}": errors for pattern, errors in zip(masks, of_patterns)}
        return {"x_0_error": errors.mean(0)} | named

    def _errors(self, predict: DenoiseFn, x_0: Latents, eps: Latents, known: Known | None) -> Float[Array, "levels B"]:
        """Squared error of the denoised x_0 per clip, where it is not known, at each of `held_out_logsnr`."""
        unknown = None if known is None else over_latents(~known.mask)

        def error(logsnr: Float[Array, ""]) -> Float[Array, "B"]:
            t = jnp.full((x_0.shape[0], 1), self.objective.path.time_of_logsnr(logsnr))
            x_t = self.objective.corrupt_with(x_0, eps, t).x_t
            seen = (x_t, t) if known is None else known.clean(x_t, t)
            error = jnp.square(self.objective.denoised(predict(*seen).prediction, x_t, t) - x_0)
            return jnp.mean(error, axis=(1, 2, 3, 4), where=unknown)

        return jax.lax.map(error, jnp.asarray(self.held_out_logsnr))

    def generate(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> Clips:
        """Samples a clip for each row of `batch`, conditioned on its label or caption where the network is.

        What `batch.known` says of its video is not generated; without it, the first frame where the run says so.
        """
        return frozen.codec.decode(self.generate_latents(model, frozen, batch, rngs, shape))

    def roll_out(self, shape: ClipShape, *, guided: bool | None = None) -> RollOut:
        if self.past is None:
            return super().roll_out(shape, guided=guided)
        latents, guided = self.codec.vae.latent_shape(shape), self.guided if guided is None else guided
        return self.past.roll_out(self.condition, self.objective, self.sampler, self.guidance, latents, guided)

    def roll_out_clips(
        self, model: Any, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape
    ) -> Clips:
        """The clips of a batch, and what follows them by as many actions as it has more."""
        x_0 = _latents(frozen.codec, batch, None)
        return frozen.codec.decode(self.roll_out(shape).clips(model, batch, x_0, rngs))

    def edit(self, model: Network, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"], shape: ClipShape) -> Clips:
        """The clips of `batch` made anew from the first noise level of the sampler on (SDEdit, 2108.01073)."""
        noised = self._noised(frozen, batch, rngs)
        return frozen.codec.decode(self.generate_latents(model, frozen, batch, rngs, shape, noised))

    def _noised(self, frozen: Frozen, batch: Batch, rngs: Key[Array, "B"]) -> Latents:
        """Latents of the clips of a batch at the first noise level of the sampler."""
        x_0 = _latents(frozen.codec, batch, None)
        t = jnp.full((x_0.shape[0], 1), self.sampler.time_grid(self.objective, x_0)[0])
        return self.objective.corrupt_with(x_0, self.objective.prior(rngs, x_0.shape[1:]), t).x_t

    def generate_latents(
        self,
        model: Network,
        frozen: Frozen,
        batch: Batch,
        rngs: Key[Array, "B"],
        shape: ClipShape,
        start: Latents | None = None,
    ) -> Latents:
        """The latents of `generate`, from noise or from `start`."""
        latents, channels = self.codec.vae.latent_shape(shape), self.codec.vae.latent_channels
        cond = self._cond(batch)
        null = self.condition.null(cond, frozen.null) if self.condition is not None and self.guided else None
        known = self._known_of(frozen, batch, latents[0])

        def network(x_t: Latents, t: Time, cond: Cond) -> Output:
            return model.output(x_t, t, cond)

        return diffuse.sample(
            self.objective,
            self.sampler,
            network,
            self.objective.prior(rngs, (*latents, channels)) if start is None else start,
            rngs,
            conditioning=diffuse.Conditioning(
                self._shown(frozen, batch, cond, latents[0]),
                null=None if null is None else self._shown(frozen, batch, null, latents[0]),
                guidance=self.guidance,
            ),
            known=known,
            levels=self._levels(known, latents),
        )

    def _known_of(self, frozen: Frozen, batch: Batch, num_frames: int) -> Known | None:
        """What is known of the clips that are sampled; None where nothing is."""
        if batch.known is None:
            return None if not self._holds else self._known(first_frame(frozen.codec, batch), num_frames)
        mask = jnp.asarray(batch.known)
        whole = _latents(frozen.codec, batch, None)
        if batch.video is not None and self.codec.vae.compression[0] > 1:
            whole = encoded_in_place(frozen.codec, batch.video, whole, whole_frames(mask))
        return Known(whole, mask)

    def _levels(self, known: Known | None, latents: tuple[int, int, int]) -> Levels | None:
        """The scheduling matrix of sampling; None where all frames have one level."""
        if self.scheduling.delay(self.sampler.num_steps) == 0:
            return None
        grid = self.objective.time_grid(self.sampler.num_steps, math.prod(latents), self.sampler.spacing)
        mask = jnp.zeros((1, latents[0]), bool) if known is None else known.mask
        return self.scheduling.levels(grid, whole_frames(mask)[0])

    def reconstruct(self, model: Network, frozen: Frozen, batch: Batch) -> Clips:
        """The clips of `batch` encoded and decoded by the codec."""
        del model
        codec = frozen.codec
        return codec.decode(codec.whiten(codec.moments(batch.require_video()), None))

    def _cond(self, batch: Batch) -> Cond | None:
        """Condition of the network, without the channels and image tokens of known frames."""
        return None if self.condition is None else self.condition.read(batch.signals)

    @property
    def _holds(self) -> bool:
        return isinstance(self.known, FirstFrame) and self.known.at_level_zero

    def _known(self, first: Float[Array, "B 1 h w c"], num_frames: int) -> Known | None:
        """Known frames of x_0 where these are the first of every clip; None where there are none."""
        return self.known.known(first, num_frames) if isinstance(self.known, FirstFrame) else None

    def _shown(self, frozen: Frozen, batch: Batch, cond: Cond | None, num_frames: int) -> Cond | None:
        """`cond` with the channels and image tokens of known frames, where the network takes them."""
        if self._channels is None:
            return cond
        image = None if frozen.image is None else image_tokens(frozen.image, batch)
        if self._channels.grey_frames:
            return self._channels.show(cond, grey_after_first(frozen.codec, batch, num_frames), image)
        return self._channels.show(cond, followed_by_zeros(first_frame(frozen.codec, batch), num_frames), image)

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.condition is None else (self.condition.reads,)

    @property
    def guided(self) -> bool:
        return self.condition is not None and self.guidance.scale != 1

    def check_prompt(self, signals: Mapping[str, Any]) -> None:
        if self.condition is not None:
            self.condition.check(signals)

    def with_negative(self, frozen: Frozen, signals: Mapping[str, Any]) -> Frozen:
        if self.condition is None:
            raise ValueError("this run follows no label and no text")
        return frozen._replace(null=self.condition.read(signals))

    def with_sampling(self, options: SamplingOptions) -> "Denoise":
        """Another sampler keeps steps and spacing of the run's own."""
        if options.guidance is not None and self.condition is None:
            raise ValueError(f"--guidance={options.guidance}: this run follows no label and no text; leave it out")
        kind = options.sampler or type(self.sampler)
        if not issubclass(kind, Sampler):
            raise ValueError(f"--sampler: {kind.__name__} is an order of writing text; this run makes videos")
        guidance, apart = self.guidance, options.steps_apart
        steps = self.sampler.num_steps if options.num_steps is None else options.num_steps
        return dataclasses.replace(
            self,
            sampler=kind(num_steps=steps, spacing=self.sampler.spacing),
            guidance=dataclasses.replace(
                guidance,
                scale=guidance.scale if options.guidance is None else options.guidance,
                history=guidance.history if options.history is None else options.history,
            ),
            scheduling=self.scheduling if apart is None else Pyramid(steps_apart=apart),
        )

    def continuing_images(self) -> "Denoise | None":
        """The task that continues a picture: itself if it always does, or with its first frame at level 0 if it was
        trained with first frames known or a noise level for each; None where it cannot.
        """
        if isinstance(self.known, FirstFrame):
            return self
        try:
            self.with_known(Pattern.FIRST)
        except ValueError:
            return None
        return dataclasses.replace(self, known=FirstFrame())

    def with_known(self, pattern: Pattern) -> tuple["Denoise", str | None]:
        known = self.known
        trained = frozenset() if known is None else known.patterns
        if pattern in trained or (Pattern.RANDOM in trained and pattern is not Pattern.REGION):
            return self, None
        levels = self.objective.per_frame or (isinstance(known, KnownFrames) and known.independent > 0)
        if levels and pattern is not Pattern.REGION and self._channels is None:
            return self, (
                f"this run was trained with a noise level for each frame, but on no clips of which the {pattern.words} "
                f"known; expect less of it than of one with config.task.known.{pattern} above 0"
            )
        share = f"KnownFrames.{pattern}=0" if isinstance(known, KnownFrames) else f"config.task.known={known}"
        raise ValueError(
            f"this run was trained on no clips of which the {pattern.words} known: {share}; train one with "
            f"config.task.known=KnownFrames({pattern}=...)"
        )

    def with_strength(self, strength: float) -> "Denoise":
        return dataclasses.replace(self, sampler=dataclasses.replace(self.sampler, spacing=Trailing(first=strength)))

    def describe(self) -> Mapping[str, Any]:
        return {
            "codec": self.codec.digest,
            "sampler": to_json(self.sampler),
            "guidance": to_json(self.guidance),
        }

    def example(self, data: Data, batch_size: int) -> Batch:
        signals = examples_of(data.signals, batch_size)
        if self.condition is not None:
            signals = dict(self.condition.example(signals, batch_size))
        if data.cache is None:
            return super().example(data, batch_size)._replace(signals=signals)
        moments = (batch_size, *latent_cells(self.codec.vae, data), 2 * self.codec.vae.latent_channels)
        return Batch(moments=np.zeros(moments, np.float32), signals=signals)

    def random(self, rng: np.random.Generator, batch: Batch) -> Batch:
        filled = fill(rng, batch)
        return filled if self.condition is None else filled._replace(signals=self.condition.random(rng, batch.signals))

    def num_tokens(self, data: Data) -> int:
        return int(np.prod([n // p for n, p in zip(latent_cells(self.codec.vae, data), self.network.patch_size)]))

    def in_float32(self) -> "Denoise":
        return dataclasses.replace(self, precision=Precision.FLOAT32)

    @property
    def backbone(self) -> NetworkConfig:
        return self.network

    def with_backbone(self, backbone: TransformerConfig) -> "Denoise":
        return dataclasses.replace(self, network=backbone)

    @property
    def patch_size(self) -> PatchSize:
        return self.network.patch_size

    def learnt(self) -> Learnt:
        """What the weights are: the network, what it is conditioned on and shown; and what they were trained for."""
        condition = None if self.condition is None else dataclasses.replace(self.condition, drop_rate=0.0)
        function = {"network": self.network.function, "condition": condition, "known.shown": self._channels}
        target = {"objective": self.objective, "codec.vae": self.codec.vae, "text": self.text, "image": self.image}
        return Learnt(function, target)

    def trained_codec(self) -> TrainedCodec:
        return self.codec

    def with_codec(self, codec: TrainedCodec) -> "Denoise":
        return dataclasses.replace(self, codec=codec)

    def latent_denoiser(self) -> "Denoise":
        return self

    def encoders(self) -> Encoders:
        return Encoders(self.text, self.image)

    def with_encoders(self, encoders: Encoders) -> "Denoise":
        return dataclasses.replace(self, text=encoders.text, image=encoders.image)


# Of the random numbers of a step, those for what is known and for copies of past frames; the others are split.
_KNOWN, _PAST = 1, 2


def _latents(codec: LatentCodec, batch: Batch, rng: Key[Array, ""] | None) -> Latents:
    """Whitened latents of a batch of cached moments or of video; the posterior's mean where `rng` is None."""
    moments = codec.moments(batch.require_video()) if batch.moments is None else jnp.asarray(batch.moments)
    return jax.lax.stop_gradient(codec.whiten(moments, rng))
