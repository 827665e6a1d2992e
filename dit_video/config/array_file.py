"""Arrays of a .npz that may be a stranger's: of bounded size once unpacked, and without pickles."""

import zipfile
import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np


def read_arrays(path: Path, names: Container[str], *, max_bytes: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of these names, as far as they are there, and the names of all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .npz, a damaged one, one with Python objects, or more than `max_bytes` in all.
    """
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            if (size := sum(entry.file_size for entry in archive.infolist())) > max_bytes:
                raise ValueError(f"its arrays have {size} bytes, more than {max_bytes}; split it")
            there = [name.removesuffix(".npy") for name in archive.namelist()]
            return {name: file[name] for name in there if name in names}, there
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no readable .npz ({error})") from error
