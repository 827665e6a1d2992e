"""Batches: clips of one shape stacked, with the signals that accompany them, as they go to the device.

Pixels stay uint8 until the device: a quarter of the bytes of float32, and one place (vae/codec.py) that says
what a pixel value means.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from dit_video.data.record import Clip
from dit_video.data.signals import Reader


class Batch(NamedTuple):
    """What a training step receives; a pytree. `video` and `moments` are None where they are absent.

    Attributes:
        signals: what accompanies each clip (data/signals.py), arrays [B ...] by name.
        known: in sampling, which latent frames or cells of the clip are known; None: as the task has it.
    """

    video: UInt8[Array | np.ndarray, "B T H W 3"] | None = None
    moments: Float[Array | np.ndarray, "B t h w m"] | None = None
    signals: Mapping[str, Any] = {}
    known: Bool[Array | np.ndarray, "B t"] | Bool[Array | np.ndarray, "B t h w"] | None = None

    def require_video(self) -> UInt8[Array | np.ndarray, "B T H W 3"]:
        """`video`, for those who cannot do without.

        Raises:
            ValueError: there is none.
        """
        if self.video is None:
            raise ValueError("Batch.video=None: this needs clips; read them from a source of video, not a latent cache")
        return self.video

    def require_signal(self, name: str) -> Any:
        """One of `signals`, for those who cannot do without."""
        return require_signal(self.signals, name)


def require_signal(signals: Mapping[str, Any], name: str) -> Any:
    """The signal of this name.

    Raises:
        ValueError: there is none; says which there are, and where they come from.
    """
    if name not in signals:
        raise ValueError(
            f"Batch.signals has no {name!r}, which is needed here; it has {', '.join(signals) or 'none'}: add one to "
            "config.data.signals"
        )
    return signals[name]


def collate(clips: Sequence[Clip], readers: Mapping[str, Reader] | None = None) -> Batch:
    """Stacks clips of one shape into a batch.

    Args:
        readers: make the signals of the batch (`signals.open_all`); None for a batch without.

    Raises:
        ValueError: no clips, clips that differ in shape or in kind (video against moments), or a clip of which a signal
            cannot be read.
    """
    if not clips:
        raise ValueError("collate: no clips")

    def stack(field: str) -> np.ndarray | None:
        arrays = [getattr(clip, field) for clip in clips]
        if all(array is None for array in arrays):
            return None
        shapes = [None if array is None else array.shape for array in arrays]
        for clip, shape in zip(clips, shapes):
            if shape != shapes[0]:
                raise ValueError(
                    f"collate: clips of one batch differ in the shape of {field}: {clips[0].key} has {shapes[0]}, "
                    f"{clip.key} has {shape}"
                )
        return np.stack(arrays)

    signals = {name: read(clips) for name, read in (readers or {}).items()}
    return Batch(video=stack("video"), moments=stack("moments"), signals=signals)
