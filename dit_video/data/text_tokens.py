"""Tokens of text as a signal: what is learnt, what a prompt says, and what is left open."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from dit_video.config.bounds import at_least
from dit_video.data.record import TokenRow
from dit_video.data.signals import ClassNames, Reader, Signal
from dit_video.data.tokenizers import Bytes, Tokenizer

TOKENS, PROMPT = "tokens", "prompt"
OPEN = -1
"""Stands for a token that is to be written."""
# A gap of so many tokens, one up to the end of the row, or a bracket that is meant.
_GAP = re.compile(r"\[\[|\[(\d{1,6}|\*)\]")


def prompt_pattern(text: str) -> str:
    """The pattern of `TextPrompt.parse` for a text that is gone on with."""
    return text.replace("[", "[[") + "[*]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTokens(Signal):
    """Tokens of the text that is learnt and the documents that they are of, int32 [B L] each.

    Attributes:
        length: L.
    """

    length: int
    tokenizer: Tokenizer = Bytes()

    def __post_init__(self):
        at_least(self, 1, "length")

    def open(self) -> Reader:
        def read(clips) -> TokenRow:
            rows = [clip.tokens for clip in clips]
            for clip, row in zip(clips, rows):
                if row is None or row.tokens.shape != (self.length,):
                    there = "none" if row is None else len(row.tokens)
                    raise ValueError(f"TextTokens.length={self.length}: record {clip.key} has {there} tokens")
            return TokenRow(*(np.stack(part).astype(np.int32) for part in zip(*rows)))

        return read

    def example(self, batch_size: int) -> TokenRow:
        shape = (batch_size, self.length)
        return TokenRow(np.zeros(shape, np.int32), np.ones(shape, np.int32))

    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> TokenRow:
        raise ValueError(f"{word!r}: text that is learnt is not typed; give --prompt or --infill")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPrompt(Signal):
    """What is known of a text that is to be written, int32 [B L] as `TextTokens`; where it is open, -1.

    Of a batch of data all is open.

    Attributes:
        length: L, of a row of the data.
        tokenizer: reads what is typed.
    """

    length: int
    tokenizer: Tokenizer = Bytes()

    def __post_init__(self):
        at_least(self, 1, "length")

    def open(self) -> Reader:
        return lambda clips: self.example(len(clips))

    def example(self, batch_size: int) -> TokenRow:
        shape = (batch_size, self.length)
        return TokenRow(np.full(shape, OPEN, np.int32), np.ones(shape, np.int32))

    def parse(self, word: str, class_names: ClassNames, warn: Callable[[str], None]) -> TokenRow:
        """A text with gaps: "The [40] sat." leaves 40 tokens open, [*] all to the end of the row; [[ is a bracket."""
        del class_names
        parts, last = [], 0
        for match in _GAP.finditer(word):
            parts.append(self.tokenizer.encode(word[last : match.start()]))
            last = match.end()
            if match[1] is None:
                parts.append(self.tokenizer.encode("["))
            elif match[1] == "*":
                parts.append(np.full(max(self.length - sum(map(len, parts)), 0), OPEN, np.int32))
            else:
                parts.append(np.full(int(match[1]), OPEN, np.int32))
        parts.append(self.tokenizer.encode(word[last:]))
        tokens = np.concatenate(parts).astype(np.int32)
        if len(tokens) > self.length:
            warn(f"{word!r} is cut: rows of this run have {self.length} tokens, it has {len(tokens)}")
        row, documents = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        row[: len(tokens)], documents[: len(tokens)] = tokens[: self.length], 1
        return TokenRow(row[None], documents[None])
