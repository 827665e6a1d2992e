"""Lazy opening of published weights: diffusers and transformers folders (sharded or not) and single files."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from dit_video.config.json_file import read_object
from dit_video.weights.files import check_digest, read_tensors
from dit_video.weights.names import Dialect, Source, StoredTensor

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_TORCH_WEIGHTS = "diffusion_pytorch_model.bin"
# What they are called in folders of diffusers and of transformers, the first that is there.
_NAMES = {
    Dialect.DIFFUSERS: (WEIGHTS, _TORCH_WEIGHTS),
    Dialect.OFFICIAL: (WEIGHTS, _TORCH_WEIGHTS),
    Dialect.TRANSFORMERS: ("model.safetensors", "pytorch_model.bin"),
}
# In the folder of a run that was imported: where its weights came from.
PROVENANCE = "import.json"
# Classes of official code that save a config.json as those of diffusers do.
_OFFICIAL_CLASSES = ("WanModel",)
# What tensors of the network are called in a file of a whole system; others are of its VAE and its text encoders.
_IN_SYSTEM = "model.diffusion_model."
# A pipeline is a folder of folders, one for each network.
PIPELINE, _PIPELINE_PART = "model_index.json", "transformer"

# The SHA-256 that files were published with, in hexadecimal.
Digests = Mapping[Path, str]
NO_DIGESTS: Digests = {}
# Of files that hold data alone, and no program.
_DATA = (".safetensors", ".npz")
_LISTED = "several are given as a file, --sha256=FILE, with lines such as sha256sum writes: a digest, and a name"

# What safetensors calls the types of NumPy; others have no name there.
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
_DTYPES = _FLOATS | _INTEGERS


@dataclasses.dataclass(frozen=True)
class Published:
    """Opened published weights.

    Attributes:
        config: the config.json beside them; None for a file of weights alone, which is in the official dialect.
        files: that were opened.
        num_beside: tensors of a file that belong to its VAE or text encoders.
    """

    dialect: Dialect
    config: dict[str, Any] | None
    source: Source
    files: tuple[Path, ...]
    num_beside: int = 0


class _Mapped:
    """Memory-mapped safetensors files, one at a time: pages once read stay in memory until the file is closed."""

    def __init__(self):
        self._path: Path | None = None
        self._opened = contextlib.ExitStack()
        self._file: Any = None

    def open(self, path: Path) -> Any:
        if path != self._path:
            self.close()
            self._file = self._opened.enter_context(safetensors.safe_open(path, framework="numpy"))
            self._path = path
        return self._file

    def read(self, path: Path, name: str) -> np.ndarray:
        return self.open(path).get_tensor(name)

    def close(self) -> None:
        self._path = self._file = None
        self._opened.close()


@contextlib.contextmanager
def open_published(path: Path, *, digests: Digests = NO_DIGESTS) -> Iterator[Published]:
    """Opens a folder of diffusers (of a network or of a pipeline) or of transformers, or a file of official weights.

    Args:
        digests: that files were published with (`read_digests`); a torch file is not read without one.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no weights.
        ValueError: a file is damaged, or not what it says it is, or torch files have no digest; names them.
    """
    with contextlib.closing(_Mapped()) as mapped:
        if not path.is_dir():
            source = _open_files([path], digests, mapped)
            network = {n.removeprefix(_IN_SYSTEM): s for n, s in source.items() if n.startswith(_IN_SYSTEM)}
            if network:
                yield Published(Dialect.OFFICIAL, None, network, (path,), len(source) - len(network))
            else:
                yield Published(Dialect.OFFICIAL, None, _averaged(source), (path,))
            return
        folder = _network_in(path)
        config = read_object(folder / CONFIG)
        dialect = _dialect_of(config)
        files = _weights_in(folder, dialect)
        yield Published(dialect, config, _open_files(files, digests, mapped), (folder / CONFIG, *files))


def read_digests(sha256: str, source: Path) -> dict[Path, str]:
    """Parses the SHA-256 digests of weight files at `source`, a file or folder, as given on the command line.

    Args:
        sha256: that of the one file that `source` has; or a file with a line for each as sha256sum writes it, with
            names from where `source` is a folder, or beside `source`.

    Raises:
        ValueError: it is neither, or `source` has several files; names what is wrong.
    """
    if re.fullmatch("[0-9a-fA-F]{64}", sha256):
        files = [source]
        if source.is_dir():
            folder = _network_in(source)
            files = _weights_in(folder, _dialect_of(read_object(folder / CONFIG)))
        if len(files) > 1:
            raise ValueError(
                f"--sha256={sha256}: is the digest of one file, {source} has its weights in {len(files)}; {_LISTED}"
            )
        return {files[0]: sha256}
    if not Path(sha256).is_file():
        raise ValueError(f"--sha256={sha256}: is neither 64 hexadecimal digits nor a file; {_LISTED}")
    digests: dict[Path, str] = {}
    for number, line in enumerate(Path(sha256).read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch("([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None:
            raise ValueError(f"{sha256}:{number}: {line[:80]!r}: is no line of sha256sum, a digest and a name")
        file = (source if source.is_dir() else source.parent) / match[2]
        if digests.setdefault(file, match[1].lower()) != match[1].lower():
            raise ValueError(f"{sha256}:{number}: {match[2]} has another digest in a line before")
    return digests


def digests_in(folder: Path, digests: Digests) -> tuple[tuple[str, str], ...]:
    """Names and digests of the files in a folder, independent of the folder's path."""
    folder = folder.resolve()
    return tuple((path.name, sha256) for path, sha256 in digests.items() if path.parent.resolve() == folder)


def _network_in(path: Path) -> Path:
    """The folder of a network: `path`, or its sub-folder where `path` is a pipeline."""
    folder = path / _PIPELINE_PART if (path / PIPELINE).is_file() else path
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder / CONFIG}: not there; name the folder of a network of diffusers, or a file")
    return folder


def _dialect_of(config: Mapping[str, Any]) -> Dialect:
    if config.get("_class_name") in _OFFICIAL_CLASSES:
        return Dialect.OFFICIAL
    # transformers writes its own field for the class, and other names of files.
    transformers = "model_type" in config and "_class_name" not in config
    return Dialect.TRANSFORMERS if transformers else Dialect.DIFFUSERS


def _weights_in(folder: Path, dialect: Dialect) -> list[Path]:
    """Weight files of a folder: the shards that an index lists, or one file."""
    for name in _NAMES[dialect]:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_object(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise ValueError(f"{index}: has no weight_map of files by tensor")
            for shard in shards.values():
                if Path(shard).name != shard:
                    raise ValueError(f"{index}: names {shard!r}, which is not in the folder")
            return [folder / shard for shard in sorted(set(shards.values()))]
        if (folder / name).is_file():
            return [folder / name]
    known = " and no ".join(_NAMES[dialect])
    raise FileNotFoundError(f"{folder}: holds no {known}, and no index of several (.index.json)")


def _open_files(paths: Sequence[Path], digests: Digests, mapped: _Mapped) -> dict[str, StoredTensor]:
    """Opens all files; their tensors together.

    Raises:
        ValueError: torch files have no digest, all of which are listed before any is read; or a file is damaged.
    """
    if unknown := [path for path in paths if path.suffix not in _DATA and path not in digests]:
        lines = "\n".join(f"  {path}" for path in unknown)
        raise ValueError(
            "a torch file holds a program and is read only if it is the published one: give its published sha256 "
            f"when it is imported, with --sha256; {_LISTED}. There is none of\n{lines}"
        )
    source: dict[str, StoredTensor] = {}
    for path in paths:
        opened = _open_file(path, digests.get(path), mapped)
        if twice := source.keys() & opened.keys():
            raise ValueError(f"{path}: holds {min(twice)}, which another file of {path.parent} holds too")
        source |= opened
    return source


def _open_file(path: Path, sha256: str | None, mapped: _Mapped) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there")
    if path.suffix != ".safetensors":
        tensors = read_tensors(path, sha256=sha256)
        return {name: StoredTensor(x.shape, x.dtype, functools.partial(np.asarray, x)) for name, x in tensors.items()}
    if sha256 is not None:
        with path.open("rb") as content:
            check_digest(content, path, sha256)
    try:
        file = mapped.open(path)
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    stored = {}
    for name, part in slices.items():
        # A type that is not read is refused by who knows the names.
        dtype = np.dtype(_DTYPES.get(part.get_dtype(), np.void))
        stored[name] = StoredTensor(tuple(part.get_shape()), dtype, functools.partial(mapped.read, path, name))
    return stored


def _averaged(source: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The EMA weights of an official training checkpoint, which holds raw weights and an optimizer too."""
    return {re.sub(r"^ema\.", "", n): s for n, s in source.items() if n.startswith("ema.")} or source
