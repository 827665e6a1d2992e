"""Opener: loads the frozen parts of a task (codec, encoders), so that tasks know nothing of folders."""

from typing import Protocol, runtime_checkable

from dit_video.arrays import Text
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec


@runtime_checkable
class Opener(Protocol):
    """Loads frozen parts onto the mesh; each is returned with the digest of its weights written into its value.

    Whatever is not there, or is not what its value says, is an error that names the field.
    """

    def codec(self, codec: TrainedCodec) -> tuple[TrainedCodec, LatentCodec]:
        """The codec that a run has trained, with the statistics of its latents."""
        ...

    def image(self, image: PretrainedImage) -> tuple[PretrainedImage, CLIPVisionModel]:
        """A published image encoder."""
        ...

    def empty_text(self, sizes: tuple[int, ...] | None) -> Text | None:
        """The embedding of an empty caption, of (tokens, width, pooled width); None where the data name no cache, or
        no text is embedded (`sizes` is None).
        """
        ...
