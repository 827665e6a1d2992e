"""Failures in words, for whoever typed a command: what the system and libraries raise, by kind, in one place.

Errors of this package say themselves what is wrong. What a library raises has no words for a user: it gets the file,
what kind of thing could not be read, and a remedy. What is neither is a fault of the program and keeps its traceback.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

_REMEDIES = {
    errno.ENOENT: "look whether it is spelt right and there",
    errno.EACCES: "let this user read and write it (ls -l shows who may)",
    errno.EPERM: "let this user change it (ls -l shows who may)",
    errno.EROFS: "give a folder that can be written to",
    errno.EISDIR: "name a file in it",
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EEXIST: "name another, or remove it",
    errno.ENOTEMPTY: "name another folder, or empty it",
    errno.ELOOP: "a link that leads to itself: mend it",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: this machine has too many files open",
    errno.ENOMEM: "free memory, or take less at a time",
    errno.EIO: "look whether the disk or the file system answers",
    errno.ESTALE: "look whether the file system is still mounted",
}
# What a library reads, by the module of its exceptions.
_READS = {
    "av": "video",
    "PIL": "picture",
    "safetensors": "safetensors file",
    "safetensors_rust": "safetensors file",
    "zipfile": "zip archive",
    "tarfile": "tar archive",
    "zlib": "compressed file",
    "lzma": "compressed file",
    "_lzma": "compressed file",
    "gzip": "compressed file",
    "struct": "file",
    "pickle": "pickle",
    "_pickle": "pickle",
    "csv": "table",
    "_csv": "table",
    "json": "JSON file",
    "pyarrow": "table",
    "orbax": "checkpoint",
    "tensorflow_datasets": "data set",
}
_DAMAGED = "it is damaged or of another kind: fetch or make it again"
# Names by which functions of this package know what they read; pathlib's own know it as themselves.
_FILES = ("path", "file", "folder", "directory", "workdir", "source")
_OWN_FILES = {"dit_video": _FILES, "pathlib": ("self",)}


def in_words(error: BaseException) -> str | None:
    """What to tell a user of an error; None of a fault of the program."""
    root = type(error).__module__.partition(".")[0]
    if root in _READS:
        (why, *_) = str(getattr(error, "strerror", None) or error).splitlines() or ["it says no more"]
        return f"{_file_of(error, _READS[root])}: a {_READS[root]} that cannot be read ({why}); {_DAMAGED}"
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"{_file_of(error, 'a file')}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8"
    if isinstance(error, OSError) and error.errno is not None:
        why = os.strerror(error.errno) if error.errno in errno.errorcode else error.strerror
        return f"{_file_of(error, 'a file')}: {why}; {_REMEDIES.get(error.errno, 'look whether it can be read')}"
    if isinstance(error, EOFError):
        return f"{_file_of(error, 'a file')}: ends too early; {_DAMAGED}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'no more is to be had'}): take less at a time, or free some"
    if isinstance(error, RecursionError):
        return f"{_file_of(error, 'a file')}: nested too deep"
    if isinstance(error, ValueError | OSError):
        return str(error)
    return None


def _file_of(error: BaseException, otherwise: str) -> str:
    """The file that an error names, or else that the innermost function of this package was at."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    for frame, names in _frames(error):
        for name in names:
            if isinstance(value := frame.f_locals.get(name), str | Path):
                return str(value)
    return otherwise


def _frames(error: BaseException) -> Iterator[tuple[FrameType, Sequence[str]]]:
    """Frames of this package and of pathlib in which an error arose, the innermost first, each with names of files."""
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(found):
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if root in _OWN_FILES:
            yield frame, _OWN_FILES[root]
