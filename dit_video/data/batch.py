"""What travels through the data pipeline: a stored Record, the Clip cut from it,
the Batch that goes to the device.

Pixels stay uint8 until the device: a quarter of the bytes of float32, and one place (vae/codec.py) that says
what a pixel value means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from dit_video.arrays import Text
from dit_video.data.captions import encode_captions
from dit_video.data.record import NO_LABEL, Clip
from dit_video.data.text_cache import Embeddings


class Batch(NamedTuple):
    """What a training step receives; a pytree. Absent fields are None."""

    video: UInt8[Array | np.ndarray, "B T H W 3"] | None = None
    moments: Float[Array | np.ndarray, "B t h w m"] | None = None
    label: Int32[Array | np.ndarray, "B"] | None = None
    caption: UInt8[Array | np.ndarray, "B L"] | None = None
    text: Text | None = None

    def require_video(self) -> UInt8[Array | np.ndarray, "B T H W 3"]:
        """`video`, for those who cannot do without.

        Raises:
            ValueError: there is none.
        """
        if self.video is None:
            raise ValueError("Batch.video=None: this needs clips; read them from a source of video, not a latent cache")
        return self.video

    def require_label(self) -> Int32[Array | np.ndarray, "B"]:
        """`label`, for those who cannot do without.

        Raises:
            ValueError: there is none.
        """
        if self.label is None:
            raise ValueError(f"Batch.label=None: this needs labels; {NO_LABEL} means no label")
        return self.label


def collate(clips: Sequence[Clip], caption_bytes: int | None = None, texts: Embeddings | None = None) -> Batch:
    """Stacks clips of one shape into a batch.

    Args:
        caption_bytes: how long captions are; None for a batch without.
        texts: what has the embeddings of captions; None for a batch without.

    Raises:
        ValueError: no clips, clips that differ in shape or in kind (video against moments), or a caption without
            embedding.
    """
    if not clips:
        raise ValueError("collate: no clips")

    def stack(field: str) -> np.ndarray | None:
        arrays = [getattr(clip, field) for clip in clips]
        if all(array is None for array in arrays):
            return None
        for clip, array in zip(clips, arrays):
            if array is None or arrays[0] is None or array.shape != arrays[0].shape:
                first, other = (None if a is None else a.shape for a in (arrays[0], array))
                raise ValueError(
                    f"collate: clips of one batch differ in the shape of {field}: {clips[0].key} has {first}, "
                    f"{clip.key} has {other}"
                )
        return np.stack(arrays)

    label = np.array([clip.label for clip in clips], dtype=np.int32)
    caption = None if caption_bytes is None else encode_captions([clip.caption for clip in clips], caption_bytes)
    text = None if texts is None else texts([clip.caption for clip in clips])
    return Batch(video=stack("video"), moments=stack("moments"), label=label, caption=caption, text=text)
