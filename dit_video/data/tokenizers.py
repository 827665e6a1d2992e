"""Tokenizers of text that is learnt: bytes, characters, and byte pairs of the tokenizers library.

A tokenizer is a value of an experiment. It gives back any text that it was given, byte for byte where it is of bytes.
"""

import abc
import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from dit_video.config.bounds import at_least
from dit_video.config.extras import install
from dit_video.config.json_file import read_object
from dit_video.config.paths import expand

_INSTALL = f"the tokenizers library is not installed; byte pairs need it: {install('text')}"
Numbers = Int[np.ndarray, "n"]


class Tokenizer(abc.ABC):
    """Text to numbers 0 ... num_tokens - 1 and back."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of tokens in the vocabulary."""

    @abc.abstractmethod
    def encode(self, text: str) -> Numbers:
        """The tokens of a text.

        Raises:
            ValueError: it has characters that are none of the vocabulary; names one.
        """

    @abc.abstractmethod
    def decode(self, tokens: Numbers) -> str:
        """The text of tokens; what is no UTF-8 is replaced."""

    @abc.abstractmethod
    def num_bytes(self) -> Int[np.ndarray, "V"]:
        """Bytes of UTF-8 that each token spells, by which nats per token become bits per byte."""


@dataclasses.dataclass(frozen=True)
class Bytes(Tokenizer):
    """Bytes of UTF-8 as tokens."""

    @property
    def size(self) -> int:
        return 256

    def encode(self, text: str) -> Numbers:
        return np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int32)

    def decode(self, tokens: Numbers) -> str:
        return bytes(np.asarray(tokens).astype(np.uint8)).decode(errors="replace")

    def num_bytes(self) -> Int[np.ndarray, "V"]:
        return np.ones(256, np.int32)


@dataclasses.dataclass(frozen=True)
class Characters(Tokenizer):
    """Characters as tokens.

    Attributes:
        characters: the vocabulary in order, each once.
    """

    characters: str

    def __post_init__(self):
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise ValueError(f"Characters.characters={self.characters!r}: must have each character once, at least one")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Characters":
        """Those that occur in texts, sorted."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Numbers:
        numbers = {character: number for number, character in enumerate(self.characters)}
        try:
            return np.fromiter((numbers[character] for character in text), np.int32, len(text))
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} is none of the {self.size} characters of the vocabulary") from None

    def decode(self, tokens: Numbers) -> str:
        return "".join(self.characters[token] for token in np.asarray(tokens).tolist())

    def num_bytes(self) -> Int[np.ndarray, "V"]:
        return np.array([len(character.encode(errors="replace")) for character in self.characters], np.int32)


@dataclasses.dataclass(frozen=True)
class BytePairs(Tokenizer):
    """Byte pairs (Sennrich et al., 1508.07909) over bytes, as the tokenizers library keeps them.

    Attributes:
        file: tokenizer.json, which `dit-video data text --tokenizer bpe:N` writes.
        num_tokens: in it.
    """

    file: str
    num_tokens: int

    PATHS: ClassVar[tuple[str, ...]] = ("file",)

    def __post_init__(self):
        expand(self)
        at_least(self, 1, "num_tokens")

    @property
    def size(self) -> int:
        return self.num_tokens

    def encode(self, text: str) -> Numbers:
        return np.array(self._library().encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Numbers) -> str:
        return self._library().decode(np.asarray(tokens).tolist(), skip_special_tokens=False)

    def num_bytes(self) -> Int[np.ndarray, "V"]:
        # The library writes a byte of a token as one printable character.
        pieces = [self._library().id_to_token(number) for number in range(self.num_tokens)]
        return np.array([len(piece) for piece in pieces], np.int32)

    def _library(self) -> Any:
        made = _opened(self.file, Path(self.file).stat().st_mtime_ns)
        if made.get_vocab_size() != self.num_tokens:
            raise ValueError(
                f"BytePairs.num_tokens={self.num_tokens}: {self.file} has {made.get_vocab_size()}; make them the same"
            )
        return made


@functools.lru_cache(maxsize=4)
def _opened(file: str, changed: int) -> Any:
    del changed
    return _import().Tokenizer.from_file(file)


def train_byte_pairs(texts: Iterable[str], num_tokens: int, file: Path) -> None:
    """Learns a vocabulary of byte pairs from texts and writes it.

    Raises:
        ValueError: fewer tokens than there are bytes, or the library is not installed.
    """
    library = _import()
    if num_tokens < 256:
        raise ValueError(f"--tokenizer=bpe:{num_tokens}: there are 256 bytes, so there must be as many tokens")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.save(str(file))


def file_size(file: Path) -> int:
    """Tokens in the vocabulary of a tokenizer.json.

    Raises:
        ValueError: the library is not installed, or the file is of another kind.
    """
    library = _import()
    content = read_object(file)
    if "model" not in content:
        raise ValueError(f"{file}: is no tokenizer.json of the tokenizers library: it has no model")
    return library.Tokenizer.from_str(json.dumps(content)).get_vocab_size()


def _import() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ValueError(_INSTALL) from error
    return tokenizers
