"""Inventory of a split: how many clips it gives, and which have labels and captions, known without decoding."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from dit_video.data.captions import length_in_bytes
from dit_video.data.record import NO_LABEL, Examples
from dit_video.data.shapes import BatchShape, Extents, assigned
from dit_video.data.transforms import ClipTransform
from dit_video.video.actions import ActionSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a split of a source holds; of records that are long enough for a clip.

    Attributes:
        num_records: of all, those too short for a clip among them.
        num_usable: records long enough for a clip, of any shape; None where only reading them would tell.
        num_clips: different clips that evaluation finds in them; None likewise.
        labelled: whether each has a class; None where only reading them would tell.
        caption_bytes: bytes of the caption of each in UTF-8, 0 where it has none; None likewise.
        class_names: of the source: label i means class_names[i].
        actions: of which each frame has one; None where there are none.
    """

    num_records: int
    num_usable: int | None
    num_clips: int | None
    labelled: Bool[np.ndarray, "n"] | None
    caption_bytes: Int[np.ndarray, "n"] | None
    class_names: tuple[str, ...]
    actions: ActionSpace | None = None

    @property
    def captioned(self) -> Bool[np.ndarray, "n"] | None:
        """Whether each has a caption; None where only reading them would tell."""
        return None if self.caption_bytes is None else self.caption_bytes > 0


def lacking(have: Bool[np.ndarray, "n"] | None, what: str, remedy: str) -> list[str]:
    """A warning where some of the usable records have no `what`, such as a class or a caption.

    Raises:
        ValueError: none has one; ends with `remedy`.
    """
    if have is None or have.all():
        return []
    if not have.any():
        raise ValueError(f"none of the {len(have)} training videos has a {what}; {remedy}")
    return [f"{int((~have).sum())} of {len(have)} training videos have no {what}, and are learnt as without condition"]


def take_inventory(
    examples: Examples,
    transform: ClipTransform,
    class_names: tuple[str, ...],
    actions: ActionSpace | None = None,
    shapes: Sequence[BatchShape] = (),
) -> Inventory:
    """Counts what `examples` hold for clips of `transform`, or of `shapes` where there are any; nothing is decoded."""
    num_frames, unknown = None if examples.reads_to_count else examples.num_frames, examples.reads_to_count
    starts = np.ones(len(examples), int)
    if num_frames is not None:
        starts = transform.num_starts(num_frames, None if transform.fps is None else examples.fps)
    usable = assigned(Extents.of(examples), shapes, transform) >= 0 if shapes else starts > 0
    labels, captions = examples.labels, examples.captions
    return Inventory(
        num_records=len(examples),
        num_usable=None if unknown else int(usable.sum()),
        num_clips=None if unknown else int(starts.sum()),
        labelled=None if labels is None else (labels != NO_LABEL)[usable],
        caption_bytes=None if captions is None else np.array([length_in_bytes(c) for c in captions], int)[usable],
        class_names=class_names,
        actions=actions,
    )
