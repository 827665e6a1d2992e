"""NumPy arrays in files, .npy alone and in the zip archive of an .npz: what a header claims is compared before it is
believed.

NumPy's own readers take memory for what a header claims, and raise whatever its parser does.
"""

import math
import os
import reprlib
import struct
import tokenize
import zipfile
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import numpy as np

# What NumPy raises of a header, which it hands to Python's parser.
_OF_HEADERS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, struct.error),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
)


def map_npy(path: Path) -> np.ndarray:
    """Memory-maps the array of a .npy file.

    Raises:
        ValueError: it holds no array, or one of objects, or not as many bytes as its header claims.
    """
    with path.open("rb") as file:
        shape, fortran_order, dtype = _header(file, "it")
        begin = file.tell()
        num_bytes = os.fstat(file.fileno()).st_size - begin
        _check_size(shape, dtype, num_bytes, "it")
    order = "F" if fortran_order else "C"
    if not num_bytes:
        return np.empty(shape, dtype, order)  # nothing can be mapped
    return np.memmap(path, dtype, "r", offset=begin, shape=shape, order=order)


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array of numbers in an .npz, in this machine's order of bytes; raises as `map_npy`."""
    what = f"entry {info.filename}"
    with archive.open(info) as entry:
        shape, fortran_order, dtype = _header(entry, what)
        if dtype.kind not in "biufc":
            raise ValueError(f"{what} holds {str(dtype)[:100]}, not numbers; save numbers, without pickle")
        begin = entry.tell()
        _check_size(shape, dtype, info.file_size - begin, what)
        content = entry.read()
    _check_size(shape, dtype, len(content), what)
    array = np.ndarray(shape, dtype, content, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: IO[bytes] | BufferedIOBase, what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        # NumPy writes other versions for what the header of 1.0 cannot say: records with many or foreign names.
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except _OF_HEADERS as error:
        raise ValueError(f"{what} is not an array of numbers ({str(error)[:100]})") from error
    if version != (1, 0):
        raise ValueError(f"{what} is not an array of numbers")
    if dtype.hasobject:
        raise ValueError(f"{what} holds {str(dtype)[:100]}, not numbers; save numbers, without pickle")
    return shape, fortran_order, dtype


def _check_size(shape: tuple[int, ...], dtype: np.dtype, num_bytes: int, what: str) -> None:
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != num_bytes:
        raise ValueError(f"{what} claims {dtype} {reprlib.repr(shape)}, it has {num_bytes} bytes")
