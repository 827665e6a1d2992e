"""How a network sees latent frames that are known, such as the first frame of image to video."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import ImageCond, Latents
from dit_video.config.bounds import at_least
from dit_video.dit.condition import Cond


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelZero:
    """Known frames within x_t: without noise and with noise level 0, as in Wan 2.2 TI2V (2503.20314).

    Any network that takes a noise level for each frame sees them.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsChannels:
    """Known frames as channels beside those of x_t, as in Wan's image to video (2503.20314).

    The channels are a mask, 1 where frames are known and 0 elsewhere, and latents that have the known frames in them.
    All of x_t is noisy. Only the network of a WanConfig takes such channels.

    Attributes:
        mask_channels: channels of the mask, as many as frames share a latent frame: 4 in Wan.
        grey_frames: the latents are those of the known frame followed by grey ones, as published, which takes the codec
            and the video itself. Else they are the latents of the frame, followed by zeros, and cached latents are
            enough.
        image_size: width of the tokens of an image encoder, which blocks attend to beside the text (Wan 2.1); None
            where they do not.
    """

    mask_channels: int = 4
    grey_frames: bool = True
    image_size: int | None = None

    def __post_init__(self):
        at_least(self, 1, "mask_channels", "image_size")

    def num_channels(self, latent_channels: int) -> int:
        """Channels that are put beside those of x_t."""
        return self.mask_channels + latent_channels

    def inputs(self) -> dict[str, str]:
        """By name, what each array means that `show` adds, in their order."""
        image = {} if self.image_size is None else {"image": "tokens of the image encoder"}
        return {"cells": "a mask, 1 where frames are known, then latents that have the first frame in them"} | image

    def show(self, cond: Cond, latents: Latents, image: Float[Array, "B I E"] | None = None) -> ImageCond:
        """Conditioning of a network on the first latent frame, beside x_t: mask and latents `[B t h w m+c]`.

        Args:
            cond: what the condition reads: the caption.
            latents: those of the frame followed by grey ones, or any that begin with those of the frame.
            image: tokens of the image encoder.

        Raises:
            ValueError: the network attends to an image and there are no tokens of it, or the other way round; or a
                clip has no frame but the first, so that there is none to generate.
        """
        if latents.shape[1] == 1:
            raise ValueError("config.data.clips.num_frames: a first frame is continued by others; use longer clips")
        if (image is None) != (self.image_size is None):
            raise ValueError(
                f"AsChannels.image_size={self.image_size}: "
                + (
                    "the network attends to tokens of an image encoder; name one in config.task.image"
                    if image is None
                    else "the network attends to no image; pass it no tokens of one"
                )
            )
        B, t, h, w, _ = latents.shape
        first = jnp.broadcast_to((jnp.arange(t) == 0)[None, :, None, None, None], (B, t, h, w, 1))
        mask = jnp.repeat(first, self.mask_channels, axis=-1).astype(latents.dtype)
        shown = latents if self.grey_frames else latents * first
        return ImageCond(cond, jnp.concatenate([mask, shown], axis=-1), image)


def refuse_channels(network: str, known: AsChannels | None) -> None:
    """Raises ValueError where known frames are to be channels of a network that takes none."""
    if known is not None:
        raise ValueError(
            f"config.task.known.shown={known}: a {network} takes no such channels, only a WanConfig makes a network "
            "that does; use LevelZero()"
        )
