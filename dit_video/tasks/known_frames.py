"""Known frames of a clip: which are known in training, how a network sees them, and what is encoded of them.

One idea for image to video, extension forwards and backwards, connecting two clips and in-painting: what is known has
noise level 0 and bears no loss (or is shown as channels beside x_t).
"""

import abc
import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dit_video.arrays import Latents, Video
from dit_video.config.bounds import between
from dit_video.data.batch import Batch
from dit_video.diffusion.process import Known
from dit_video.dit.known_frames import AsChannels, LevelZero
from dit_video.dit.network import NetworkConfig
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.nn.patches import PatchSize, latent_shape
from dit_video.vae.codec import LatentCodec, to_pixels
from dit_video.vae.vae import VAEConfig


class Pattern(enum.StrEnum):
    """What can be known of a clip, by the names of the shares of `KnownFrames`."""

    FIRST = "first"
    LAST = "last"
    ENDS = "ends"
    RANDOM = "random"
    REGION = "region"

    @property
    def words(self) -> str:
        """What is known, and "is" or "are"."""
        return {
            Pattern.FIRST: "first frames are",
            Pattern.LAST: "last frames are",
            Pattern.ENDS: "frames at both ends are",
            Pattern.RANDOM: "any frames are",
            Pattern.REGION: "cells of a region are",
        }[self]


class KnownInTraining(abc.ABC):
    """What is known of the clips of a training batch."""

    @property
    @abc.abstractmethod
    def how(self) -> LevelZero | AsChannels:
        """How the network sees it: in x_t at noise level 0, where it bears no loss, or as channels beside x_t."""

    @property
    def channels(self) -> AsChannels | None:
        """Channels of known frames that the network takes beside those of x_t; None where it takes none."""
        return self.how if isinstance(self.how, AsChannels) else None

    @property
    def at_level_zero(self) -> bool:
        return isinstance(self.how, LevelZero)

    @property
    @abc.abstractmethod
    def patterns(self) -> frozenset[Pattern]:
        """What is known of some clips."""

    @property
    @abc.abstractmethod
    def always(self) -> bool:
        """Whether something is known of every clip, so that none is made from nothing."""

    @abc.abstractmethod
    def drawn(
        self, rng: Key[Array, ""], codec: LatentCodec, batch: Batch, x_0: Latents, patch_size: PatchSize
    ) -> Known | None:
        """What is known of the clips of a batch, whose latents are x_0; None where all of them are noised alike."""

    def check_codec(self, vae: VAEConfig, *, cached: bool) -> None:
        """Checks that what is known can be encoded as it is in sampling, from video or a latent cache.

        Raises:
            ValueError: names the field of the task and what it must be.
        """
        del vae, cached

    def untaught(self, vae: VAEConfig) -> str | None:
        """What sampling does with known frames that training, as it is set, never shows the network; None: nothing."""
        del vae
        return None

    def check(self, vae: VAEConfig, network: NetworkConfig) -> None:
        """Checks that frames can be known in latents of `vae`, and can be shown to `network`.

        Raises:
            ValueError: names the field of the task and what it must be.
        """
        if vae.frame_group != 1:
            raise ValueError(
                f"Denoise.codec.vae={type(vae).__name__}: it takes {vae.frame_group} latent frames at once, so that "
                "the first is another alone than in its clip; no first frame can be known"
            )
        if self.channels is not None and self.channels.mask_channels != vae.compression[0]:
            raise ValueError(
                f"Denoise.known.shown.mask_channels={self.channels.mask_channels}: there is one for each frame that "
                f"shares a latent frame, of {type(vae).__name__} {vae.compression[0]}; set it so"
            )
        if self.at_level_zero and network.patch_size[0] != 1:
            raise ValueError(
                f"Denoise.known={self}: frames that share a patch share their noise level; network.patch_size="
                f"{network.patch_size} must be of one frame"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrame(KnownInTraining):
    """The first latent frame of every clip is known, in training and in sampling: image to video.

    Attributes:
        shown: how the network sees it: in x_t at noise level 0, where it bears no loss, or as channels beside x_t.
    """

    shown: LevelZero | AsChannels = LevelZero()

    @property
    def how(self) -> LevelZero | AsChannels:
        return self.shown

    @property
    def patterns(self) -> frozenset[Pattern]:
        return frozenset()

    @property
    def always(self) -> bool:
        return True

    def drawn(
        self, rng: Key[Array, ""], codec: LatentCodec, batch: Batch, x_0: Latents, patch_size: PatchSize
    ) -> Known | None:
        return self.known(x_0[:, :1], x_0.shape[1])

    def known(self, first: Float[Array, "B 1 h w c"], num_frames: int) -> Known | None:
        """The latent frames that a process leaves as they are, of clips of `num_frames`; None where all are noised.

        Raises:
            ValueError: there is no other frame.
        """
        if not self.at_level_zero:
            return None
        if num_frames == 1:
            raise ValueError(
                "config.task.known=FirstFrame: clips of one latent frame have none after it; train on longer clips"
            )
        return Known(followed_by_zeros(first, num_frames), (jnp.arange(num_frames) == 0)[None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownFrames(KnownInTraining):
    """A mixture of what is known: one model for text to video, images, extension, connection and in-painting.

    Each clip of a batch falls into one of the shares below, which add up to 1. How many frames are known, and which
    cells, is drawn uniformly. What is known has noise level 0 and bears no loss; the rest of a clip has one level.

    Attributes:
        one_level: nothing is known and all frames have one noise level: video from nothing.
        independent: nothing is known and each frame has a noise level of its own (diffusion forcing, 2407.01392).
        first, last, ends: the first frames are known; the last ones; some of both.
        random: any frames.
        region: the cells of a rectangle in all frames, or those around it. Where it is above 0 every cell has a noise
            level, so that modulation is computed for each token and not for each frame.
        single: the first frame alone, an image; noise at level 1 stands for the others, which bear no loss.
        in_place: of the clips with known frames that do not begin the video, how many are encoded as they will be in
            sampling: without the frames before them, for which the first of them stands. These are encoded a second
            time, from video; a latent cache needs 0.
    """

    one_level: float = 0.5
    independent: float = 0.2
    first: float = 0.06
    last: float = 0.04
    ends: float = 0.04
    random: float = 0.03
    region: float = 0.03
    single: float = 0.1
    in_place: float = 0.5

    def __post_init__(self):
        between(self, 0, 1, *_SHARES, "in_place")
        if abs(sum(self.shares) - 1) > 1e-6:
            listed = ", ".join(f"{name}={share:g}" for name, share in zip(_SHARES, self.shares))
            raise ValueError(f"KnownFrames: the shares add up to {sum(self.shares):g} and must to 1: {listed}")

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order of `_SHARES`."""
        return tuple(getattr(self, name) for name in _SHARES)

    @property
    def how(self) -> LevelZero:
        return LevelZero()

    @property
    def patterns(self) -> frozenset[Pattern]:
        return frozenset(pattern for pattern in Pattern if getattr(self, pattern) > 0)

    @property
    def always(self) -> bool:
        return False

    def check_codec(self, vae: VAEConfig, *, cached: bool) -> None:
        if cached and self._placed and vae.compression[0] > 1:
            raise ValueError(
                f"config.task.known.in_place={self.in_place}: known frames that do not begin a clip are encoded once "
                "more without those before them, but config.data.cache has latents and no video; set in_place=0, or "
                "cache=None"
            )

    def untaught(self, vae: VAEConfig) -> str | None:
        if self.in_place > 0 or not self._later or vae.compression[0] == 1:
            return None
        return (
            "config.task.known.in_place=0: sampling encodes known frames that do not begin a clip without those before "
            "them, and training never does; expect a seam where a video is extended backwards, connected or looped. "
            "Train from video, config.data.cache=None, with in_place=0.5"
        )

    @property
    def _later(self) -> float:
        """Share of clips of which frames are known that may not begin the clip."""
        return self.last + self.ends + self.random

    @property
    def _placed(self) -> bool:
        return self.in_place > 0 and self._later > 0

    def masks(
        self, keys: Key[Array, "B"], shape: tuple[int, int, int], patch_size: PatchSize
    ) -> dict[Pattern, Bool[Array, "B t"] | Bool[Array, "B t h w"]]:
        """Frames of latents of `shape` (t, h, w) that each pattern has known; cells, where one is a region."""
        masks = {pattern: known_frames(pattern, keys, shape[0]) for pattern in sorted(self.patterns - {Pattern.REGION})}
        if Pattern.REGION not in self.patterns:
            return masks
        cells = {pattern: jnp.broadcast_to(m[:, :, None, None], (len(keys), *shape)) for pattern, m in masks.items()}
        return cells | {Pattern.REGION: known_region(keys, shape, patch_size)}

    def drawn(
        self, rng: Key[Array, ""], codec: LatentCodec, batch: Batch, x_0: Latents, patch_size: PatchSize
    ) -> Known:
        of_share, of_mask, of_place = jax.random.split(rng, 3)
        num_clips, num_frames = x_0.shape[:2]
        share = jnp.searchsorted(jnp.cumsum(jnp.asarray(self.shares[:-1])), _stratified(of_share, num_clips))
        masks = self.masks(jax.random.split(of_mask, num_clips), latent_shape(x_0), patch_size)
        mask = jnp.zeros((num_clips, num_frames, 1, 1) if self.region else (num_clips, num_frames), bool)
        for pattern, known in masks.items():
            chosen = share == _SHARES.index(pattern)
            mask = jnp.where(chosen.reshape(-1, *(1,) * (known.ndim - 1)), known, mask)
        values = x_0
        if self._placed and codec.vae.config.compression[0] > 1:
            placed = jax.random.bernoulli(of_place, self.in_place, (num_clips,))
            of_frames = whole_frames(mask) & placed[:, None] & (share != _SHARES.index(Pattern.REGION))[:, None]
            values = encoded_in_place(codec, batch.require_video(), x_0, of_frames)
        absent = (share == _SHARES.index("single"))[:, None] & (jnp.arange(num_frames) > 0)
        return Known(values, mask, share == _SHARES.index("independent"), absent)


_SHARES = ("one_level", "independent", *Pattern, "single")


def _stratified(key: Key[Array, ""], num_clips: int) -> Float[Array, "B"]:
    """Numbers in [0, 1), one in each of `num_clips` equal intervals, in a random order: shares vary less by batch."""
    order, offset = jax.random.split(key)
    return (jax.random.permutation(order, num_clips) + jax.random.uniform(offset, (num_clips,))) / num_clips


def whole_frames(mask: Bool[Array, "B t ..."]) -> Bool[Array, "B t"]:
    """Frames of which all cells are known."""
    return mask.reshape(*mask.shape[:2], -1).all(axis=2)


@functools.partial(jax.vmap, in_axes=(None, 0, None))
def known_frames(pattern: Pattern, key: Key[Array, ""], num_frames: int) -> Bool[Array, "t"]:
    """Which frames of a clip are known, drawn for each key; one at least is not, and of a single frame none is."""
    places, (of_num, of_split, of_each) = jnp.arange(num_frames), jax.random.split(key, 3)
    if num_frames == 1:
        return places < 0
    num = jax.random.randint(of_num, (), 1, num_frames)
    match pattern:
        case Pattern.FIRST:
            return places < num
        case Pattern.LAST:
            return places >= num_frames - num
        case Pattern.ENDS:
            # Of two frames, one is known.
            num = jnp.maximum(num, min(2, num_frames - 1))
            first = jax.random.randint(of_split, (), 1, jnp.maximum(num, 2))
            return (places < first) | (places >= num_frames - (num - first))
        case _:
            # So many of them, the one as probably as the other.
            return jax.random.permutation(of_each, places) < num


@functools.partial(jax.vmap, in_axes=(0, None, None))
def known_region(key: Key[Array, ""], shape: tuple[int, int, int], patch_size: PatchSize) -> Bool[Array, "t h w"]:
    """Cells of a rectangle of patches in every frame, or those around it, drawn for each key."""
    of_rows, of_columns, of_side = jax.random.split(key, 3)

    def within(key: Key[Array, ""], cells: int, patch: int) -> Bool[Array, "n"]:
        of_length, of_start = jax.random.split(key)
        patches = cells // patch
        length = jax.random.randint(of_length, (), 1, patches + 1)
        start = jax.random.randint(of_start, (), 0, patches - length + 1)
        place = jnp.arange(cells) // patch
        return (place >= start) & (place < start + length)

    rectangle = within(of_rows, shape[1], patch_size[1])[:, None] & within(of_columns, shape[2], patch_size[2])
    known = jnp.where(jax.random.bernoulli(of_side), rectangle, ~rectangle)
    # What is known altogether leaves nothing to learn.
    return jnp.broadcast_to(known & ~known.all(), shape)


def encoded_in_place(codec: LatentCodec, video: Video, whole: Latents, mask: Bool[Array, "B t"]) -> Latents:
    """Latents of clips of which the frames before the last run of known ones are not there.

    A causal codec makes the latents of that run from what comes before it too: the first frame of the run stands for
    all of that, and its latents are dropped.

    Args:
        whole: latents of the whole clips, which stay in all other places.
        mask: of the latent frames that are known.
    """
    before = jnp.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    places = jnp.arange(mask.shape[1])
    start = jnp.max(jnp.where(mask & ~before, places, 0), axis=1, keepdims=True)
    moments = codec.moments(filled_before(jnp.asarray(video), codec.vae.config.first_pixel_frame(start)))
    placed = jax.lax.stop_gradient(codec.whiten(moments))
    return jnp.where((mask & (places >= start) & (start > 0))[:, :, None, None, None], placed, whole)


def filled_before(video: Video, start: Int[Array, "B 1"]) -> Video:
    """Videos whose frames before `start` are that frame."""
    places = jnp.maximum(jnp.arange(video.shape[1]), start)
    return jnp.take_along_axis(jnp.asarray(video), places[:, :, None, None, None], axis=1)


def first_frame(codec: LatentCodec, batch: Batch) -> Float[Array, "B 1 h w c"]:
    """Whitened latents of the first frame of each clip, which the VAE encodes alone; the posterior's mean."""
    cached = None if batch.moments is None else jnp.asarray(batch.moments)[:, :1]
    moments = codec.moments(batch.require_video()[:, :1]) if cached is None else cached
    return jax.lax.stop_gradient(codec.whiten(moments))


def followed_by_zeros(first: Float[Array, "B 1 h w c"], num_frames: int) -> Latents:
    """`first` followed by zeros: clips of `num_frames` latent frames."""
    return jnp.pad(first, ((0, 0), (0, num_frames - 1), (0, 0), (0, 0), (0, 0)))


def grey_after_first(codec: LatentCodec, batch: Batch, num_frames: int) -> Latents:
    """Whitened latents of clips of so many latent frames that are grey after their first frame.

    Raises:
        ValueError: the batch has no video.
    """
    frame = to_pixels(batch.require_video()[:, :1])
    grey = (num_frames - 1) * codec.vae.config.compression[0]
    # Grey is 0 in pixels; no integer of a video is.
    moments = codec.vae.encode(jnp.pad(frame, ((0, 0), (0, grey), (0, 0), (0, 0), (0, 0))))
    return jax.lax.stop_gradient(codec.whiten(moments))


def check_image(channels: AsChannels | None, image: PretrainedImage | None) -> None:
    """Checks that there is an encoder of first frames where the network attends to its tokens, and nowhere else.

    Raises:
        ValueError: names the field of the task and what it must be.
    """
    attended = None if channels is None else channels.image_size
    if image is None and attended is not None:
        raise ValueError(
            f"Denoise.image=None: known.shown.image_size={attended}, so the network attends to tokens of an image "
            "encoder; name it, Denoise.image=PretrainedImage(...), or import the folder of a whole pipeline"
        )
    if image is not None and attended is None:
        raise ValueError(f"Denoise.image={image}: the network attends to no tokens of an image; leave it None")
    if image is not None and attended != image.encoder.hidden_size:
        raise ValueError(
            f"Denoise.image.encoder.hidden_size={image.encoder.hidden_size}: the network attends to tokens of "
            f"known.shown.image_size={attended}; make them the same"
        )


def image_tokens(encoder: CLIPVisionModel, batch: Batch) -> Float[Array, "B I E"]:
    """Tokens of an image encoder for the first frame of each clip.

    Raises:
        ValueError: the batch has no video.
    """
    if batch.video is None:
        raise ValueError(
            "config.task.image: its tokens are made of the pixels of the first frame, which a latent cache does not "
            "have; train on video, config.data.cache=None"
        )
    return jax.lax.stop_gradient(encoder(batch.video[:, 0]))
