"""Weights that others have published, opened so that tensors are read one at a time: diffusers folders and files."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from dit_video.export.names import Dialect, Source, Stored
from dit_video.json_file import read_object
from dit_video.weights_file import check_digest, read_tensors

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_TRANSFORMERS_WEIGHTS = "model.safetensors"
# In the folder of a run that was imported: where its weights came from.
PROVENANCE = "import.json"
_TORCH_WEIGHTS = "diffusion_pytorch_model.bin"
# A pipeline is a folder of folders, one for each network.
PIPELINE, _PIPELINE_PART = "model_index.json", "transformer"

# What safetensors calls the types of NumPy; others have no name there.
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
_DTYPES = _FLOATS | _INTEGERS


@dataclasses.dataclass(frozen=True)
class Published:
    """Somebody's weights.

    Attributes:
        config: the config.json beside them; None for a file of weights alone, which is in the official dialect.
        files: that were opened.
    """

    dialect: Dialect
    config: dict[str, Any] | None
    source: Source
    files: tuple[Path, ...]


@contextlib.contextmanager
def open_published(path: Path, *, sha256: str | None = None) -> Iterator[Published]:
    """Opens a folder of diffusers (of a network or of a pipeline) or of transformers, or a file of official weights.

    Args:
        sha256: the digest that a torch file was published with; it is not read without one.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no weights.
        ValueError: a file is damaged, or not what it says it is; names it.
    """
    with contextlib.ExitStack() as stack:
        if not path.is_dir():
            yield Published(Dialect.OFFICIAL, None, _averaged(_open_file(path, sha256, stack)), (path,))
            return
        if (path / PIPELINE).is_file():
            path = path / _PIPELINE_PART
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"{path / CONFIG}: not there; name the folder of a network of diffusers, or a file")
        config = read_object(path / CONFIG)
        # transformers writes its own field for the class, and other names of files.
        transformers = "model_type" in config and "_class_name" not in config
        dialect = Dialect.TRANSFORMERS if transformers else Dialect.DIFFUSERS
        files = _weights_in(path, dialect)
        if sha256 is not None and len(files) > 1:
            raise ValueError(f"--sha256={sha256}: is the digest of one file, {path} has its weights in {len(files)}")
        source: dict[str, Stored] = {}
        for file in files:
            found = _open_file(file, sha256, stack)
            if twice := source.keys() & found.keys():
                raise ValueError(f"{file}: holds {min(twice)}, which another file of {path} holds too")
            source |= found
        yield Published(dialect, config, source, (path / CONFIG, *files))


def _weights_in(folder: Path, dialect: Dialect) -> list[Path]:
    """The files of weights of a folder: shards that an index lists, or one."""
    weights = WEIGHTS if dialect is Dialect.DIFFUSERS else _TRANSFORMERS_WEIGHTS
    index = folder / f"{weights}.index.json"
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index}: has no weight_map of files by tensor")
        for name in shards.values():
            if Path(name).name != name:
                raise ValueError(f"{index}: names {name!r}, which is not in the folder")
        return [folder / name for name in sorted(set(shards.values()))]
    for name in (weights, _TORCH_WEIGHTS) if dialect is Dialect.DIFFUSERS else (weights,):
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(f"{folder}: holds no {weights} and no {index.name}")


def _open_file(path: Path, sha256: str | None, stack: contextlib.ExitStack) -> dict[str, Stored]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there")
    if path.suffix != ".safetensors":
        tensors = read_tensors(path, sha256=sha256)
        return {name: Stored(x.shape, x.dtype, functools.partial(np.asarray, x)) for name, x in tensors.items()}
    if sha256 is not None:
        with path.open("rb") as content:
            check_digest(content, path, sha256)
    try:
        file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    found = {}
    for name, part in slices.items():
        # A type that is not read is refused by who knows the names.
        dtype = np.dtype(_DTYPES.get(part.get_dtype(), np.void))
        found[name] = Stored(tuple(part.get_shape()), dtype, functools.partial(file.get_tensor, name))
    return found


def _averaged(source: dict[str, Stored]) -> dict[str, Stored]:
    """What official code takes from a checkpoint of its training, which holds an optimizer and weights twice."""
    return {re.sub(r"^ema\.", "", n): s for n, s in source.items() if n.startswith("ema.")} or source
