"""Signals: what accompanies a clip in a batch beside its pixels, such as its class, its caption, an action, a number.

A signal is a value of an experiment, `Data.signals`, under the name by which conditions find it in `Batch.signals`. One
of your own is a frozen dataclass of this type in the experiment's file.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from dit_video.config.bounds import at_least
from dit_video.data.captions import encode_captions, room_for
from dit_video.data.inventory import Inventory
from dit_video.data.record import NO_LABEL, Clip

# Names under which the conditions of this package look for signals.
LABEL, CAPTION, TEXT = "label", "caption", "text"
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

    def check_data(self, inventory: Inventory) -> list[str]:
        """Warnings of what training clips lose as this signal; by default none."""
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


DEFAULT_SIGNALS: Mapping[str, Signal] = {LABEL: ClassLabel()}


def open_all(signals: Mapping[str, Signal]) -> dict[str, Reader]:
    """The readers of several signals, by the same names."""
    return {name: signal.open() for name, signal in signals.items()}


def examples_of(signals: Mapping[str, Signal], batch_size: int) -> dict[str, Any]:
    """The examples of several signals, by the same names; without those whose shape only a condition knows."""
    examples = {name: signal.example(batch_size) for name, signal in signals.items()}
    return {name: example for name, example in examples.items() if example is not None}
