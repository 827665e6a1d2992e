"""Signals: what accompanies a clip in a batch beside its pixels, such as its class, its caption, an action, a number.

A signal is a value of an experiment, `Data.signals`, under the name by which conditions find it in `Batch.signals`. One
of your own is a frozen dataclass of this type in the experiment's file.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dit_video.config.bounds import at_least
from dit_video.data.captions import encode_captions, room_for
from dit_video.data.inventory import Inventory
from dit_video.data.record import NO_LABEL, Clip
from dit_video.data.transforms import ClipTransform
from dit_video.video.actions import ActionSpace

# Names under which the conditions of this package look for signals.
LABEL, CAPTION, TEXT, ACTION = "label", "caption", "text", "action"
# Short options of `dit-video sample`, and the signals that they type.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "--label": (LABEL,),
    "--text": (CAPTION, TEXT),
    "--prompt": ("prompt",),
    "--infill": ("prompt",),
}
# Names of classes that a message lists.
_NAMES_SHOWN = 20

# Clips of one batch -> a pytree of host arrays [B ...]; called from many threads.
Reader = Callable[[Sequence[Clip]], Any]
# Looks up the names of the data's classes, which takes the data.
ClassNames = Callable[[], Sequence[str]]


class Signal(abc.ABC):
    """What accompanies a clip: a pytree of arrays, a row for each clip of a batch."""

    @abc.abstractmethod
    def open(self) -> Reader:
        """What makes the arrays of a batch from its clips. Called once where training or evaluation begins."""

    @abc.abstractmethod
    def example(self, batch_size: int) -> Any:
        """The arrays of clips of which nothing is known: for shapes, and for samples made without a prompt.

        None where only the condition that reads the signal knows their shape.
        """

    @abc.abstractmethod
    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> Any:
        """The arrays of one clip, [1 ...], from a word of the command line.

        Args:
            class_names: looks up those of the data.
            warn: shows what happened to the word, if it was not taken as it is.

        Raises:
            ValueError: not a value of this signal; says what is.
        """

    def check_clips(self, clips: ClipTransform) -> None:
        """Raises ValueError where clips that are cut so cannot have this signal; by default all can."""
        del clips

    def check_data(self, inventory: Inventory) -> list[str]:
        """Warnings of what training clips lose as this signal; by default none.

        Raises:
            ValueError: they have none of it; says what to do.
        """
        del inventory
        return []

    def choices(self, class_names: ClassNames) -> Sequence[str]:
        """The words that "all" stands for, one row of samples each; empty where there is no end of them."""
        del class_names
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassLabel(Signal):
    """The number of a clip's class, int32 [B]; -1 where it has none."""

    def open(self) -> Reader:
        return lambda clips: np.array([clip.label for clip in clips], dtype=np.int32)

    def example(self, batch_size: int) -> Int32[np.ndarray, "B"]:
        return np.full((batch_size,), NO_LABEL, np.int32)

    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> Int32[np.ndarray, "1"]:
        del warn
        known = class_names()
        # Of several words for one class, which ImageNet has, any.
        numbers = {word.strip(): i for i, words in enumerate(known) for word in [words, *words.split(",")]}
        if word not in numbers and not word.isdigit():
            listed = ", ".join(known[:_NAMES_SHOWN]) + (", ..." if len(known) > _NAMES_SHOWN else "")
            raise ValueError(
                f"{word!r} is no class: must be one of {listed or '(this run has no names)'}, its number, all"
            )
        return np.array([numbers[word] if word in numbers else int(word)], np.int32)

    def choices(self, class_names: ClassNames) -> Sequence[str]:
        return [str(number) for number in range(len(class_names()))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionBytes(Signal):
    """Captions as UTF-8, uint8 [B L]: a token that begins them, their bytes, zeros (data/captions.py).

    Attributes:
        num_bytes: L, a multiple of config.mesh.context; what is longer is cut between two characters.
    """

    num_bytes: int

    def __post_init__(self):
        at_least(self, 2, "num_bytes", why="one byte begins a caption")

    def open(self) -> Reader:
        return lambda clips: encode_captions([clip.caption for clip in clips], self.num_bytes)

    def example(self, batch_size: int) -> UInt8[np.ndarray, "B L"]:
        return encode_captions([""] * batch_size, self.num_bytes)

    def check_data(self, inventory: Inventory) -> list[str]:
        length, room = inventory.caption_bytes, room_for(self.num_bytes)
        if length is None or not (cut := int((length > room).sum())):
            return []
        return [
            f"num_bytes={self.num_bytes} leaves room for {room}: {cut} of {len(length)} captions are longer and are "
            f"cut, the longest has {int(length.max())}; {int(length.max()) + 1} would hold them all"
        ]

    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> UInt8[np.ndarray, "1 L"]:
        del class_names
        if len(word.encode()) > room_for(self.num_bytes):
            warn(
                f"{word!r} is cut: config.data.signals.{CAPTION}.num_bytes={self.num_bytes} leaves room for "
                f"{room_for(self.num_bytes)}"
            )
        return encode_captions([word], self.num_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actions(Signal):
    """What was pressed before each frame of a clip: int32 [B T], or continuous, float32 [B T A] (video/actions.py).

    -1 stands for a frame of which none is known, which the first of an episode is; among continuous ones NaN.
    Each frame of a clip has the action that led to it, so a clip leaves no frame out.

    Attributes:
        names: of discrete actions, as the set has them.
        size: A, of continuous ones; None of discrete ones.
        num_frames: T, that of config.data.clips.
    """

    names: tuple[str, ...] = ()
    size: int | None = None
    num_frames: int

    def __post_init__(self):
        at_least(self, 1, "num_frames", "size")
        if bool(self.names) == (self.size is not None):
            raise ValueError(f"Actions.names={self.names}, size={self.size}: give one of them")

    @property
    def space(self) -> ActionSpace:
        """Of continuous actions names are of no account here."""
        names = self.names if self.size is None else tuple(map(str, range(self.size)))
        return ActionSpace(names=names, continuous=self.size is not None)

    def open(self) -> Reader:
        return lambda clips: np.stack([self._of(clip) for clip in clips])

    def _of(self, clip: Clip) -> Int32[np.ndarray, "T"] | Float32[np.ndarray, "T A"]:
        if clip.actions is None:
            raise ValueError(f"record {clip.key!r}: has no actions")
        if len(clip.actions) != self.num_frames:
            raise ValueError(
                f"record {clip.key!r}: {len(clip.actions)} actions of a clip of {self.num_frames} frames: one of each; "
                "frames that a stride leaves out had actions, too"
            )
        return self.space.checked(clip.actions)

    def example(self, batch_size: int) -> Int32[np.ndarray, "B T"] | Float32[np.ndarray, "B T A"]:
        return np.stack([self.space.unknown(self.num_frames)] * batch_size)

    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> Int32[np.ndarray, "1 T"]:
        """Names of discrete actions, comma-separated, `*N` for N frames; of those that follow none is known."""
        del class_names, warn
        if self.size is not None:
            raise ValueError(f"{word!r}: continuous actions are not typed")
        typed: list[int] = []
        for item in word.split(","):
            name, _, times = item.strip().partition("*")
            if name not in self.names or not (times or "1").isdigit():
                raise ValueError(f"{item.strip()!r} is no action: must be one of {', '.join(self.names)}, or NAME*N")
            typed += [self.names.index(name)] * int(times or 1)
        if len(typed) >= self.num_frames:
            raise ValueError(
                f"{word!r}: {len(typed)} actions, but a clip of {self.num_frames} frames has {self.num_frames - 1}: an "
                "action leads from one frame to the next"
            )
        actions = self.space.unknown(self.num_frames)
        actions[1 : 1 + len(typed)] = typed
        return actions[None]

    def check_clips(self, clips: ClipTransform) -> None:
        if clips.num_frames != self.num_frames:
            raise ValueError(f"num_frames={self.num_frames}, but clips.num_frames={clips.num_frames}: give both one")
        if clips.stride != 1 or clips.fps is not None:
            raise ValueError(
                f"clips.stride={clips.stride}, fps={clips.fps}: the actions of frames that are left out would be lost; "
                "take every frame, and record fewer a second (dit-video data record --repeat)"
            )
        if clips.flip_rate:
            raise ValueError(f"clips.flip_rate={clips.flip_rate}: a mirrored clip turns the other way; make it 0")

    def check_data(self, inventory: Inventory) -> list[str]:
        there = inventory.actions
        if there is None:
            raise ValueError(
                "the training videos have no actions; record some (dit-video data record), or ingest them with their "
                "actions (dit-video data ingest --actions)"
            )
        if self.size is not None and (not there.continuous or len(there.names) != self.size):
            raise ValueError(f"size={self.size}, but the training videos have {there}")
        if self.size is None and (there.continuous or there.names != self.names):
            raise ValueError(f"names={self.names}, but the training videos have {there}; give these")
        return []


DEFAULT_SIGNALS: Mapping[str, Signal] = {LABEL: ClassLabel()}


def open_all(signals: Mapping[str, Signal]) -> dict[str, Reader]:
    """The readers of several signals, by the same names."""
    return {name: signal.open() for name, signal in signals.items()}


def examples_of(signals: Mapping[str, Signal], batch_size: int) -> dict[str, Any]:
    """The examples of several signals, by the same names; without those whose shape only a condition knows."""
    examples = {name: signal.example(batch_size) for name, signal in signals.items()}
    return {name: example for name, example in examples.items() if example is not None}
