"""Tensors of a safetensors file: names, types and shapes from its header, numbers when they are read.

The library checks the header against the bytes that there are. The numbers are read here, for it has no NumPy types for
8-bit floats.
"""

import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from dit_video.weights.adapters import IN_FLOATS
from dit_video.weights.names import StoredTensor

_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "C64": np.complex64},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu},
    **{"F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}  # fmt: skip


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Opens a safetensors file; its tensors by name, in the order in which they lie there.

    Raises:
        ValueError: it is damaged or cut short, or has numbers of a type that NumPy does not have; says so.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        why = _damage(path) or str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(f"{path}: not a whole safetensors file ({why}); download it again") from None
    start, header = _header(path)
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} is of type {entry['dtype']}, which is not read; take {IN_FLOATS}")
    return {name: _stored(path, start, entry) for name, entry in header.items()}


def _header(path: Path) -> tuple[int, dict]:
    """Where the numbers begin, and what the header says of each tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path}: its header would have {length} bytes, more than there are")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))


def _stored(path: Path, start: int, entry: dict) -> StoredTensor:
    shape, dtype = tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
    first, end = entry["data_offsets"]
    return StoredTensor(shape, dtype, functools.partial(_read, path, dtype, shape, start + first, end - first))


def _read(path: Path, dtype: np.dtype, shape: tuple[int, ...], start: int, size: int) -> np.ndarray:
    numbers = np.fromfile(path, np.uint8, count=size, offset=start)
    if numbers.size != size:
        raise ValueError(f"{path}: was cut short while it was read; let its download end, and import it again")
    return numbers.view(dtype).reshape(shape)


def _damage(path: Path) -> str | None:
    """Of how many bytes a file that was cut short has how many; None where its header does not say."""
    size = path.stat().st_size
    try:
        start, header = _header(path)
        whole = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError):
        return None
    return f"it has {size} of {whole} bytes" if isinstance(whole, int) and size < whole else None
