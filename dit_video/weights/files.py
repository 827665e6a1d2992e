"""Safe reading of published weight files: safetensors, npz, and PyTorch checkpoints without executing their pickle.

safetensors and npz hold data only. What `torch.save` writes is a zip archive of storages and of a pickle, a program
that may call whatever is installed. It is read here without torch, only if its SHA-256 is the published one, by an
unpickler that knows the handful of names a state dict needs. Whatever a file claims, sizes, offsets, names, is
compared with the bytes it has before memory is taken for it.
"""

import hashlib
import io
import mmap
import os
import pickle
import pickletools
import reprlib
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from dit_video.config.atomic import new_file
from dit_video.weights.file_formats import check_weights, is_safetensors
from dit_video.weights.npy import read_entry
from dit_video.weights.safetensors_file import open_safetensors

Tensors = dict[str, np.ndarray]

# All after the second are what files of torch.save are called.
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
_ELSEWHERE = "where its code may run, load it with torch.load and save its tensors with safetensors.torch.save_file"
# The tensors of a file may be this many times as large together. Tied weights, or a model saved beside an EMA that is
# the same, are a few times; a bomb is thousands.
_MAX_GROWTH = 16
# Characters in all names of a file together. Dicts that hold one another would never end.
_MAX_NAMES = 10_000_000
# Tuples in a pickle; a tensor takes four. The hash of tuples nested 150,000 deep overflows the C stack.
_MAX_TUPLES = 60_000
# What stands before an entry of a zip archive; of it the lengths of a name and of more, which come next.
_ENTRY = struct.Struct("<26xHH")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
# What reading a damaged or hostile file may raise, ours included.
_REFUSALS = (
    *(struct.error, pickle.UnpicklingError, ArithmeticError, AttributeError),
    *(EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
)


def convert(published: Path, out: Path, *, sha256: str) -> None:
    """Converts a published file to safetensors; the metadata name the file and its SHA-256.

    `out` appears whole or not at all, and is as readable as `published` is.

    Raises:
        ValueError: another digest than `sha256`, or whatever `read_tensors` refuses.
    """
    if out.suffix.lower() != ".safetensors":
        raise ValueError(f"{out}: what is written is safetensors; name it {out.stem}.safetensors")
    tensors = read_tensors(published, sha256=sha256)
    write_safetensors(tensors, out, metadata={"source": published.name, "sha256": sha256.lower()})
    shutil.copymode(published, out)


def check_digest(file: BufferedReader, path: Path, sha256: str) -> None:
    """Checks the SHA-256 of an open file, in hexadecimal; ValueError where it differs."""
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256.lower():
        raise ValueError(f"{path} has SHA-256 {actual}, expected {sha256}; download the published file")


def read_tensors(path: Path, *, sha256: str | None = None) -> Tensors:
    """Reads the tensors of a file by name, as native NumPy arrays; bfloat16 is that of ml_dtypes.

    The arrays of a torch file are views of its storages, as they were in torch: read-only, not always contiguous. They
    are read from the file when they are used, and take no memory before.
    Nested dicts and lists come out with dotted names (`ema.blocks.0.attn.qkv.weight`); what is no tensor is dropped.

    Args:
        path: .safetensors, .npz, or what `torch.save` wrote: .pt, .pth, .pth.tar, .ckpt, .bin.
        sha256: the digest the file was published with, in hexadecimal. A torch file is not read without one.

    Raises:
        ValueError: another digest or none where one is needed, a format not read here, a damaged or hostile file.
    """
    check_weights(path)
    if not path.name.lower().endswith(_SUFFIXES):
        raise ValueError(f"{path}: its suffix is none of {', '.join(_SUFFIXES)}; rename it, or {_ELSEWHERE}")
    with path.open("rb") as file:
        if sha256 is not None:
            check_digest(file, path, sha256)
        elif holds_program(path):
            raise ValueError(f"{path}: a torch file holds a program: give its published sha256, or {_ELSEWHERE}")
        try:
            size = file.seek(0, os.SEEK_END)
            if not holds_program(path) and path.suffix.lower() != ".npz":
                # The library checks that shapes, types and offsets cover the data once, without gaps.
                tensors = {name: stored.read() for name, stored in open_safetensors(path).items()}
            elif path.suffix.lower() == ".npz":
                tensors = _read_npz(file, size)
            else:
                tensors = _read_torch(file, size)
            for name in tensors:
                _check_name(name)
            _check_growth(sum(tensor.nbytes for tensor in tensors.values()), size)
        except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not read: damaged or cut short ({error}); download it again") from error
        except _REFUSALS as error:
            named = str(error).startswith(f"{path}: ")
            raise ValueError(str(error) if named else f"{path}: not read: {error}") from error
    return tensors


def holds_program(path: Path) -> bool:
    """Whether a file is read as one of torch, whose pickle is a program; others hold data alone."""
    return path.suffix.lower() not in (".safetensors", ".npz") and not is_safetensors(path)


def write_safetensors(tensors: Mapping[str, np.ndarray], path: Path, *, metadata: Mapping[str, str]) -> None:
    """Writes safetensors atomically: the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors writes memory as it lies.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with new_file(path) as temporary:
        safetensors.numpy.save_file(contiguous, temporary, metadata=dict(metadata))


def unpickle(
    data: bytes, allowed: Mapping[str, Any], *, kind: str, persistent_load: Callable[[Any], Any] | None = None
) -> Any:
    """Restricted unpickler: only the globals in `allowed` may be named, `module.name` -> its replacement.

    Nothing is imported. The error calls those globals `kind`; `persistent_load` makes an object of a persistent id.

    Raises:
        pickle.UnpicklingError: another global, which is named and was not called, or numbers that claim memory.
    """
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        # The memo is an array as long as its largest index: ten bytes could claim all memory.
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError(f"the pickle numbers an object {argument} and has {len(data)} bytes")
        tuples += opcode.name.startswith("TUPLE")
    if tuples > _MAX_TUPLES:
        raise pickle.UnpicklingError(f"the pickle holds {tuples} tuples, more than {_MAX_TUPLES}")

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in allowed:
                raise pickle.UnpicklingError(f"the pickle names {module}.{name}, which is not {kind}")
            return allowed[f"{module}.{name}"]

        def persistent_load(self, pid: Any) -> Any:
            if persistent_load is None:
                raise pickle.UnpicklingError("the pickle refers to an object outside it")
            return persistent_load(pid)

    return Unpickler(io.BytesIO(data)).load()


def _read_npz(file: IO[bytes], size: int) -> Tensors:
    with zipfile.ZipFile(file) as archive:
        entries = _entries(archive, size, compression=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return {name.removesuffix(".npy"): read_entry(archive, info) for name, info in entries.items()}


class _Inert:
    """What stands for a global of torch: a pickle may set attributes on anything that has no `__setstate__`."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _StateDict(_Inert, dict[Any, Any]):
    """Stands for OrderedDict: starts empty, keeps its entries, drops its attributes (a module's `_metadata`)."""

    __slots__ = ()

    def __init__(self):
        super().__init__()


class _Dropped(_Inert):
    """Placeholder for harmless objects that are no tensors: torch.Size and the arguments of a training script."""

    def __new__(cls, *_: Any):
        return super().__new__(cls)


class _Parameter(_Inert):
    """torch._utils._rebuild_parameter(data, requires_grad, hooks)."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        return data


class _Tensor(_Inert):
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, bits): a view."""

    def __new__(cls, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"a tensor of shape {reprlib.repr(shape)} with strides {reprlib.repr(strides)}")
        if len(rest) > 2 and rest[2]:
            raise ValueError(f"a tensor with a pending operation, {reprlib.repr(rest[2])}; {_ELSEWHERE}")
        if not isinstance(storage, np.ndarray) or storage.ndim != 1:
            raise ValueError(f"a tensor on {reprlib.repr(storage)}, which is no storage")
        if 0 in shape:
            return np.ndarray(shape, storage.dtype)
        needed = offset + sum((length - 1) * stride for length, stride in zip(shape, strides)) + 1
        if needed > storage.size:
            layout = f"shape {reprlib.repr(shape)}, strides {reprlib.repr(strides)}, offset {reprlib.repr(offset)}"
            raise ValueError(f"a tensor of {layout} is not within its storage of {storage.size} elements")
        size = storage.itemsize
        return np.ndarray(shape, storage.dtype, storage, offset * size, tuple(stride * size for stride in strides))


_STORAGES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
}
# Types that have no storage of their own: a tensor of bytes names them.
_TYPES = {f"torch.{name}": np.dtype(getattr(ml_dtypes, name)) for name in _FLOAT8}


class _TypedTensor(_Inert):
    """torch._utils._rebuild_tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, ...): a view."""

    def __new__(
        cls, storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *___: Any
    ) -> Any:
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or dtype not in _TYPES:
            raise ValueError(f"a tensor of {reprlib.repr(dtype)} on {reprlib.repr(storage)}, which are not read")
        return _Tensor(storage.view(_TYPES[dtype]), offset, shape, strides)


_TORCH_GLOBALS: Mapping[str, Any] = {
    "collections.OrderedDict": _StateDict,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_tensor_v3": _TypedTensor,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch.Size": _Dropped,
    "argparse.Namespace": _Dropped,
    **{name: name for name in (*_STORAGES, *_TYPES)},
}


def _read_torch(file: IO[bytes], size: int) -> Tensors:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        if file.read(4) == b"PK\3\4":
            raise zipfile.BadZipFile(f"it has {size} bytes and lacks its end")
        raise ValueError(f"no zip archive, so not of torch 1.6 or later; {_ELSEWHERE}")
    with zipfile.ZipFile(file) as archive:
        entries = _entries(archive, size, compression=(zipfile.ZIP_STORED,))
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or not all(name.startswith(roots[0]) for name in entries):
            raise ValueError("the archive is not one folder with one data.pkl, as torch.save writes it")
        root, folder = roots[0], f"{roots[0]}data/"
        # Files older than torch 2.1 do not say.
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError(f"its numbers are not little-endian; {_ELSEWHERE}")
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        contents: dict[str, memoryview] = {}

        def storage(reference: Any) -> np.ndarray:
            match reference:
                case ("storage", str(kind), str(key), _, int(count)) if kind in _STORAGES and folder + key in entries:
                    dtype, info = _STORAGES[kind], entries[folder + key]
                case _:
                    raise ValueError(f"the pickle refers to {reprlib.repr(reference)}, which is no storage in the file")
            if count * dtype.itemsize != info.file_size:
                raise ValueError(f"storage {key} claims {count} elements of {dtype}, it has {info.file_size} bytes")
            if key not in contents:
                contents[key] = _in_place(mapped, info)
            return np.ndarray((count,), dtype, contents[key])

        kind = f"part of a state dict. If you trust the file: {_ELSEWHERE}"
        return _flatten(unpickle(archive.read(f"{root}data.pkl"), _TORCH_GLOBALS, kind=kind, persistent_load=storage))


def _in_place(mapped: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
    """Memory-mapped content of an uncompressed zip entry."""
    header = mapped[info.header_offset : info.header_offset + _ENTRY.size]
    if len(header) < _ENTRY.size or not header.startswith(b"PK\3\4"):
        raise ValueError(f"entry {info.filename} is not where the archive says")
    name_length, extra_length = _ENTRY.unpack(header)
    start = info.header_offset + _ENTRY.size + name_length + extra_length
    content = memoryview(mapped)[start : start + info.file_size]
    if len(content) < info.file_size or zlib.crc32(content) != info.CRC:
        raise ValueError(f"entry {info.filename} is damaged: it has not the checksum that the archive says")
    return content


def _flatten(tree: Any) -> Tensors:
    tensors: Tensors = {}
    characters = 0
    waiting = [("", tree)]
    while waiting:
        name, value = waiting.pop()
        match value:
            case np.ndarray():
                if name in tensors:
                    raise ValueError(f"two tensors are named {reprlib.repr(name)}")
                tensors[name] = value
                continue
            case dict() | list() | tuple():
                items = value.items() if isinstance(value, dict) else enumerate(value)
            case _:  # Numbers, strings, None, what was dropped.
                continue
        for key, entry in items:
            if type(key) not in (str, int):
                raise ValueError(f"{reprlib.repr(name)} has the key {reprlib.repr(key)}, neither str nor int")
            inner = f"{name}.{key}" if name else str(key)
            characters += len(inner) + 1
            if characters > _MAX_NAMES:
                raise ValueError(f"its names have more than {_MAX_NAMES} characters together: dicts within themselves?")
            waiting.append((inner, entry))
    return tensors


def _entries(archive: zipfile.ZipFile, size: int, compression: tuple[int, ...]) -> dict[str, zipfile.ZipInfo]:
    """Validated entries of a zip archive of `size` bytes by name: no duplicate, none out of bounds, no zip bomb."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check_name(info.filename)
        if info.filename in entries:
            raise ValueError(f"two entries are named {reprlib.repr(info.filename)}")
        if info.compress_type not in compression:
            raise ValueError(f"entry {info.filename} is compressed, as none is in a file of its kind")
        entries[info.filename] = info
    _check_growth(sum(info.file_size for info in entries.values()), size)
    return entries


def _check_name(name: str) -> None:
    """Checks a tensor name, which may become the name of a file, a line of a log or a key of a safetensors header."""
    parts = name.replace("\\", "/").split("/")
    if not name.isprintable() or name in ("", "__metadata__") or parts[0] == "" or ".." in parts:
        raise ValueError(f"{reprlib.repr(name)} is no name of a tensor or entry")


def _check_growth(total: int, size: int) -> None:
    if total > _MAX_GROWTH * size:
        raise ValueError(f"it claims {total} bytes, more than {_MAX_GROWTH} times the {size} of the file")
