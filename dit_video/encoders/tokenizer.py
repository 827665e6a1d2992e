"""Tokenizers of CLIP and T5: captions are cleaned, tokenized, truncated and padded as in the published pipelines."""

import contextlib
import enum
import hashlib
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int32

from dit_video.config.extras import install
from dit_video.config.json_file import read_object
from dit_video.weights.config_json import shortened

if TYPE_CHECKING:
    import tokenizers

_WHOLE, _VOCABULARY, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
# Where the token that pads is named.
_ABOUT = ("tokenizer_config.json", "special_tokens_map.json")
_INSTALL = f"is not installed; tokenizers of published text encoders need it: {install('text')}"

# CLIP's own: where a text is cut before pairs are merged, and the tokens around each caption.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_BEGIN, _CLIP_END = "<|startoftext|>", "<|endoftext|>"


class Cleaning(enum.Enum):
    """Text cleaning of a caption before tokenization."""

    NOTHING = "nothing"  # as SD3's pipeline leaves it
    REPAIRED = "repaired"  # wrongly decoded letters and HTML entities resolved, white space as single spaces: Wan
    LOWERCASE = "lowercase"  # and no space at its ends: PixArt, Latte

    def __call__(self, caption: str) -> str:
        match self:
            case Cleaning.NOTHING:
                return caption
            case Cleaning.LOWERCASE:
                return caption.lower().strip()
            case Cleaning.REPAIRED:
                try:
                    import ftfy
                except ModuleNotFoundError as error:
                    raise ValueError(f"ftfy {_INSTALL}") from error
                # Twice, since captions from the web are often escaped twice.
                resolved = html.unescape(html.unescape(ftfy.fix_text(caption)))
                return re.sub(r"\s+", " ", resolved).strip()


class Tokens(NamedTuple):
    """Token ids of captions: the first `num_tokens` of `ids`, end token included; then padding."""

    ids: Int32[Array | np.ndarray, "B L"]
    num_tokens: Int32[Array | np.ndarray, "B"]


class Tokenizer:
    """Tokenizer of Hugging Face transformers, read from its files.

    It is read from tokenizer.json, or for CLIP from vocab.json and merges.txt, with which it was published first.

    Attributes:
        digest: SHA-256 of all that decides the ids of a caption.
    """

    def __init__(self, folder: Path, num_tokens: int):
        """Opens the tokenizer in `folder`.

        Args:
            num_tokens: ids of every caption: longer ones are cut, so that their end stays, and shorter ones padded.

        Raises:
            FileNotFoundError: it has no file of a tokenizer, or none that names the token that pads.
            ValueError: a file is not what it should be; names it. Or the package that reads them is not installed.
        """
        files = _files(folder)
        token = _padding(folder)
        with _named(files):
            self._tokenizer = _opened(files)
            padding = self._tokenizer.token_to_id(token)
            if padding is None:
                raise ValueError(f"{folder}: pads with {shortened(token)}, which is not in the vocabulary")
            # A caption that holds it is cut there, as in transformers: CLIP-G pads with "!".
            self._tokenizer.add_special_tokens([token])
            self._tokenizer.enable_truncation(num_tokens)
            self._tokenizer.enable_padding(length=num_tokens, pad_id=padding, pad_token=token)
            sha256 = hashlib.sha256(f"{num_tokens} {token}\n".encode())
        for file in files:
            sha256.update(file.read_bytes())
        self.digest = sha256.hexdigest()
        self._files = files

    def __call__(self, captions: Sequence[str]) -> Tokens:
        # What was read from a damaged table may hold halves of characters.
        whole = [caption.encode(errors="replace").decode() for caption in captions]
        with _named(self._files):
            encodings = self._tokenizer.encode_batch(whole)
        ids = np.array([encoding.ids for encoding in encodings], np.int32)
        return Tokens(ids, np.array([sum(encoding.attention_mask) for encoding in encodings], np.int32))


@contextlib.contextmanager
def _named(files: tuple[Path, ...]) -> Iterator[None]:
    """Turns what the package raises of a tokenizer into a ValueError that names its files."""
    try:
        yield
    except BaseException as error:
        # The package has bare Exceptions, and panics of Rust, which are none; and takes no halves of characters, nor
        # numbers that it has no room for. All else is not its own.
        of_package = type(error) is Exception or isinstance(error, UnicodeError | TypeError | OverflowError)
        if not of_package and type(error).__module__ != "pyo3_runtime":
            raise
        names = " or ".join(map(str, files))
        raise ValueError(f"{names}: no tokenizer that can be read ({str(error)[:200]}); fetch it again") from error


def _files(folder: Path) -> tuple[Path, ...]:
    """Files of the tokenizer: tokenizer.json, or vocabulary and merges."""
    for names in ((_WHOLE,), (_VOCABULARY, _MERGES)):
        files = tuple(folder / name for name in names)
        if all(file.is_file() for file in files):
            return files
    raise FileNotFoundError(
        f"{folder}: holds no {_WHOLE}, and no {_VOCABULARY} with {_MERGES}; in a folder with a spiece.model alone, "
        "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
    )


def _opened(files: tuple[Path, ...]) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ValueError(f"tokenizers {_INSTALL}") from error
    # What it does not find, or is no JSON, is said with the name of the file; the package does not.
    content = read_object(files[0])
    return tokenizers.Tokenizer.from_file(str(files[0])) if len(files) == 1 else _clip(content, *files)


def _clip(ids: dict[str, Any], vocabulary: Path, merges: Path) -> "tokenizers.Tokenizer":
    """Byte-pair encoding of lower-case words (2103.00020, section 2.4)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    for token in (_CLIP_BEGIN, _CLIP_END):
        if type(ids.get(token)) is not int:
            raise ValueError(f"{vocabulary}: has no {token}, so it is no vocabulary of CLIP")
    tokenizer = Tokenizer(
        models.BPE.from_file(str(vocabulary), str(merges), unk_token=_CLIP_END, end_of_word_suffix="</w>")
    )
    tokenizer.add_special_tokens([_CLIP_BEGIN, _CLIP_END])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (_CLIP_END, ids[_CLIP_END]), (_CLIP_BEGIN, ids[_CLIP_BEGIN]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def _padding(folder: Path) -> str:
    """The padding token, which the tokenizer's own file need not name."""
    for name in _ABOUT:
        padding = read_object(folder / name).get("pad_token") if (folder / name).is_file() else None
        # Either the token or all about it.
        token = padding.get("content") if isinstance(padding, dict) else padding
        if isinstance(token, str):
            return token
    raise FileNotFoundError(f"{folder}: neither of {' and '.join(_ABOUT)} names a pad_token; copy them beside it")
