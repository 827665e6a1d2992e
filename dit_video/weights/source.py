"""Lazy opening of published weights: diffusers and transformers folders (sharded or not) and single files."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.weights.config_json import BoundedConfig
from dit_video.weights.file_formats import check_weights, is_safetensors
from dit_video.weights.files import check_digest, holds_program, read_tensors
from dit_video.weights.folder import locate
from dit_video.weights.names import Dialect, Source, StoredTensor
from dit_video.weights.safetensors_file import open_safetensors

# In the folder of a run that was imported: where its weights came from.
PROVENANCE = "import.json"

# The SHA-256 that files were published with, in hexadecimal.
Digests = Mapping[Path, str]
NO_DIGESTS: Digests = {}
_LISTED = "several are given as a file, --sha256=FILE, with lines such as sha256sum writes: a digest, and a name"


@dataclasses.dataclass(frozen=True)
class Published:
    """Opened published weights.

    Attributes:
        config: the config.json beside them; None for a file of weights alone, which is in the official dialect.
        files: that were opened.
        notes: what a user should know of what was read and what was not.
    """

    dialect: Dialect
    config: dict[str, Any] | None
    source: Source
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def open_published(path: Path, *, digests: Digests = NO_DIGESTS) -> Iterator[Published]:
    """Opens a folder of diffusers (of a network or of a pipeline) or of transformers, or a file of official weights.

    Tensors are read from their files while they are asked for.

    Args:
        digests: that files were published with (`read_digests`); a torch file is not read without one.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no weights.
        ValueError: a file is damaged, or not what it says it is, or torch files have no digest; names them.
    """
    located = locate(path)
    source = _open_files(located.files, digests)
    beside = () if located.config_file is None else (located.config_file,)
    config = located.config
    if config is not None:
        config = BoundedConfig.beside(config, (stored.shape for stored in source.values()))
    yield Published(located.dialect, config, source, (*beside, *located.files), located.notes)


def read_digests(sha256: str, source: Path) -> dict[Path, str]:
    """Parses the SHA-256 digests of weight files at `source`, a file or folder, as given on the command line.

    Args:
        sha256: that of the one file that `source` has; or a file with a line for each as sha256sum writes it, with
            names from where `source` is a folder, or beside `source`.

    Raises:
        ValueError: it is neither, or `source` has several files; names what is wrong.
    """
    if re.fullmatch("[0-9a-fA-F]{64}", sha256):
        files = locate(source).files
        if len(files) > 1:
            raise ValueError(
                f"--sha256={sha256}: is the digest of one file, {source} has its weights in {len(files)}; {_LISTED}"
            )
        return {files[0]: sha256}
    if not Path(sha256).is_file():
        raise ValueError(f"--sha256={sha256}: is neither 64 hexadecimal digits nor a file; {_LISTED}")
    digests: dict[Path, str] = {}
    for number, line in enumerate(Path(sha256).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = re.fullmatch("([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise ValueError(f"{sha256}:{number}: {line[:80]!r}: is no line of sha256sum, a digest and a name")
        file = (source if source.is_dir() else source.parent) / match[2]
        if digests.setdefault(file, match[1].lower()) != match[1].lower():
            raise ValueError(f"{sha256}:{number}: {match[2]} has another digest in a line before")
    if not digests:
        raise ValueError(f"--sha256={sha256}: is an empty file; {_LISTED}")
    return digests


def digests_in(folder: Path, digests: Digests) -> tuple[tuple[str, str], ...]:
    """Names and digests of the files in a folder, independent of the folder's path."""
    folder = folder.resolve()
    return tuple((path.name, sha256) for path, sha256 in digests.items() if path.parent.resolve() == folder)


def _open_files(paths: Sequence[Path], digests: Digests) -> dict[str, StoredTensor]:
    """Opens all files; their tensors together.

    Raises:
        ValueError: torch files have no digest, all of which are listed before any is read; or a file is damaged.
    """
    for path in paths:
        if not path.is_file():
            beside = "" if len(paths) == 1 else f", one of {len(paths)} that the index lists"
            raise FileNotFoundError(f"{path}: not there{beside}; download it too")
        check_weights(path)
    if unknown := [path for path in paths if holds_program(path) and path not in digests]:
        lines = "\n".join(f"  {path}" for path in unknown)
        raise ValueError(
            "a torch file holds a program and is read only if it is the published one: give its published sha256 "
            f"when it is imported, with --sha256; {_LISTED}. There is none of\n{lines}"
        )
    source: dict[str, StoredTensor] = {}
    for path in paths:
        opened = _open_file(path, digests.get(path))
        if twice := source.keys() & opened.keys():
            raise ValueError(f"{path}: holds {min(twice)}, which another file of {path.parent} holds too")
        source |= opened
    return source


def _open_file(path: Path, sha256: str | None) -> dict[str, StoredTensor]:
    if not is_safetensors(path) and path.suffix.lower() != ".safetensors":
        tensors = read_tensors(path, sha256=sha256)
        return {name: StoredTensor(x.shape, x.dtype, functools.partial(np.asarray, x)) for name, x in tensors.items()}
    if sha256 is not None:
        with path.open("rb") as content:
            check_digest(content, path, sha256)
    return open_safetensors(path)
