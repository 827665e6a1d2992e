"""What a file is, by its first bytes: pointers, web pages and other formats are named, each with what to do."""

import re
from pathlib import Path

_HEAD = 512
_WORDS = 60
_SAFETENSORS = ".safetensors"
# What a program that fetches files calls one that it has not fetched whole.
_UNFINISHED = (".part", ".partial", ".crdownload", ".incomplete", ".download", ".aria2", ".tmp")
_UNPACK = "unpack it and name the weights that are in it"
# How files of a format begin, what they are, and what to do.
_BEGINNINGS = (
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer and not the file: run `git lfs pull` in its folder"),
    (rb"/annex/objects/", "a git-annex pointer and not the file: run `git annex get` on it"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|body|\?xml|error|!--)", "a web page and not the file: its address "
     "was that of a page about it, or of one that asks for a login; download the file itself"),
    (rb"GGUF|ggjt|ggml", "GGUF, quantised weights, which are not read: take the safetensors that they were made of"),
    (rb"\x89HDF\r\n", "HDF5, as Keras and TensorFlow save: take the safetensors or torch file of the same weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", f"a compressed archive: {_UNPACK}"),
    (rb".{257}ustar", f"a tar archive: {_UNPACK}"),
)  # fmt: skip


def check_weights(path: Path) -> None:
    """Checks that a file may be weights in a format that is read here, by its first bytes.

    Raises:
        ValueError: it is something else; says what, and what to do.
    """
    size, head = path.stat().st_size, _head(path)
    if path.suffix.lower() in _UNFINISHED:
        raise ValueError(f"{path}: a download that was not finished ({path.suffix}): let it go on, or download again")
    if size == 0:
        raise ValueError(f"{path}: is empty; download it again")
    _check_content(path, head, size)
    if path.suffix.lower() == _SAFETENSORS and not is_safetensors(path):
        if head.startswith(b"PK\3\4"):
            raise ValueError(
                f"{path}: a zip archive by its content, as torch.save writes: name it {path.stem}.pt and give the "
                "sha256 that it was published with, or download the safetensors of the same weights"
            )
        if text := _text(head):
            raise ValueError(f"{path}: text and not safetensors, it begins with {text!r}; download the file itself")


def check_text(path: Path) -> None:
    """Checks that a file that should be JSON is no pointer and no web page, by its first bytes; ValueError."""
    _check_content(path, _head(path), path.stat().st_size)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever it is called: the length of a JSON object, and the object."""
    head = _head(path)
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 2**32


def _check_content(path: Path, head: bytes, size: int) -> None:
    for beginning, kind in _BEGINNINGS:
        if re.match(beginning, head, re.DOTALL):
            raise ValueError(f"{path}: {kind} ({size} bytes)" if size < 2**12 else f"{path}: {kind}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _text(head: bytes) -> str:
    """The first words of what is all text, else nothing."""
    words = head.decode("latin-1")[:_WORDS].strip()
    return words if words.isprintable() and words.isascii() else ""
