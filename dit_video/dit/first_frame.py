"""The first frame of a clip as a condition, beside its caption: image to video."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from dit_video.arrays import ImageCond, Latents, Text
from dit_video.dit.condition import Cond, Condition, EmbeddedText, TextCondition


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrame(Condition):
    """Condition on the first frame of a clip and on its caption, as in Wan's image to video (2503.20314).

    A network sees the frame as channels beside those of x_t: a mask, one where frames are known, and latents that have
    the frame in them. It is not dropped, nor does guidance leave it out; the caption is, as `text` says.

    Attributes:
        text: what is made of the caption.
        mask_channels: channels of the mask, as many as frames share a latent frame: 4 in Wan.
        grey_frames: the latents are those of the frame followed by grey ones, as published, which takes the codec and
            the video itself. Else they are the latents of the frame, followed by zeros, and cached latents are enough.
        image_size: width of the tokens of an image encoder, which blocks attend to beside the text (Wan 2.1); None
            where they do not.
    """

    drop_rate: float = 0.0
    text: Condition
    mask_channels: int = 4
    grey_frames: bool = True
    image_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.drop_rate:
            raise ValueError(
                f"FirstFrame.drop_rate={self.drop_rate}: must be 0, the frame is never dropped; how often its caption "
                "is says FirstFrame.text.drop_rate"
            )
        if not isinstance(self.text, TextCondition | EmbeddedText):
            raise ValueError(f"FirstFrame.text={self.text}: must be a TextCondition or an EmbeddedText")
        for name in ("mask_channels", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"FirstFrame.{name}={value}: must be at least 1")

    def num_channels(self, latent_channels: int) -> int:
        """Channels that are put beside those of x_t."""
        return self.mask_channels + latent_channels

    def read(
        self,
        *,
        label: Int[Array | np.ndarray, "B"] | None,
        caption: UInt8[Array | np.ndarray, "B L"] | None,
        text: Text | None,
    ) -> Cond:
        """What `text` reads: the caption. `framed` makes of it, and of latents, what a network is given."""
        return self.text.read(label=label, caption=caption, text=text)

    def framed(self, cond: Any, latents: Latents, image: Float[Array, "B I E"] | None = None) -> ImageCond:
        """What a network is given of a clip whose latents are `latents` wherever they are known or seem so.

        Args:
            given: of `read`.
            latents: those of the frame followed by grey ones, or any that begin with those of the frame.
            image: tokens of the image encoder.

        Raises:
            ValueError: the network attends to an image and there are no tokens of it, or the first frame is all there
                is, so that nothing is left to be made.
        """
        if latents.shape[1] == 1:
            raise ValueError("config.data.clips.num_frames: a first frame is continued by others; give longer clips")
        if (image is None) != (self.image_size is None):
            raise ValueError(
                f"FirstFrame.image_size={self.image_size}: "
                + (
                    "the network attends to tokens of an image encoder; name one in config.task.image"
                    if image is None
                    else "the network attends to no image; give it no tokens of one"
                )
            )
        B, t, h, w, _ = latents.shape
        first = jnp.broadcast_to((jnp.arange(t) == 0)[None, :, None, None, None], (B, t, h, w, 1))
        mask = jnp.repeat(first, self.mask_channels, axis=-1).astype(latents.dtype)
        shown = latents if self.grey_frames else latents * first
        return ImageCond(cond, jnp.concatenate([mask, shown], axis=-1), image)

    def empty(self, cond: ImageCond) -> ImageCond:
        """The same frame without a caption."""
        return cond._replace(text=self.text.empty(cond.text))

    def null(self, cond: ImageCond, loaded: Cond | None = None) -> ImageCond:
        return cond._replace(text=self.text.null(cond.text, loaded))

    def blank_null(self) -> Cond | None:
        return self.text.blank_null()

    def drop(self, rng: Key[Array, ""], cond: Any, null: Any) -> ImageCond:
        """Replaces the captions alone."""
        return cond._replace(text=self.text.drop(rng, cond.text, null.text))

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> None:
        raise ValueError(_WAN_ALONE)

    def text_encoder(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        raise ValueError(_WAN_ALONE)


_WAN_ALONE = "config.task.condition=FirstFrame: only a WanConfig makes a network that takes a first frame"
