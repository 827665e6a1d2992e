"""Known frames of a clip (image to video): which frames are given, and how a network sees them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import Latents
from dit_video.data.batch import Batch
from dit_video.diffusion.process import Known
from dit_video.dit.known_frames import AsChannels, LevelZero
from dit_video.dit.network import NetworkConfig
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.vae.codec import LatentCodec, to_pixels
from dit_video.vae.vae import VAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrame:
    """The first latent frame of every clip is known, in training and in sampling: image to video.

    Attributes:
        shown: how the network sees it: in x_t at noise level 0, where it bears no loss, or as channels beside x_t.
    """

    shown: LevelZero | AsChannels = LevelZero()

    @property
    def channels(self) -> AsChannels | None:
        """Channels of known frames that the network takes beside those of x_t; None where it takes none."""
        return self.shown if isinstance(self.shown, AsChannels) else None

    @property
    def at_level_zero(self) -> bool:
        return isinstance(self.shown, LevelZero)

    def check(self, vae: VAEConfig, network: NetworkConfig) -> None:
        """Checks that the first frame can be known in latents of `vae`, and can be shown to `network`.

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
