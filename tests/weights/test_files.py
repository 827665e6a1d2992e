import hashlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from dit_video.weights.files import convert, read_tensors

GOLDEN = Path(__file__).parent / "golden/torch_state.pt"
GOLDEN_SHA256 = "e0f52f74c7aef5c31112a5c0033be6f0ca21b7efd343c6caa888e1414bcb1359"
DTYPES = {
    **{"float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "complex64": np.complex64},
    **{"int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_},
}


def expected() -> dict[str, np.ndarray]:
    """The tensors of GOLDEN, which torch 2.13.0 wrote by:

    weight = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.Linear(2, 3)
    module.weight.data = torch.arange(6.0).reshape(3, 2) / 4
    module.bias.data = torch.arange(3.0)
    state = {
        "model": module.state_dict(),
        "ema": {"weight": weight, "tied": weight, "transposed": weight.T, "part": weight[1:3, ::2], "row": weight[3]},
        "dtypes": {name: torch.arange(4).to(getattr(torch, name)) for name in DTYPES},
        "parameter": module.bias,
        "shapes": [torch.tensor(3.5), torch.zeros(0, 5), torch.arange(3).expand(2, 3)],
        "opt": {
            "state": {0: {"step": torch.tensor(7.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}],
        },
        "args": argparse.Namespace(model="DiT", lr=None), "epoch": 3, "best": 0.5, "note": "x", "size": weight.shape,
    }
    torch.save(state, "torch_state.pt")
    """
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "model.weight": np.arange(6, dtype=np.float32).reshape(3, 2) / 4,
        "model.bias": np.arange(3, dtype=np.float32),
        "ema.weight": weight,
        "ema.tied": weight,
        "ema.transposed": weight.T,
        "ema.part": weight[1:3, ::2],
        "ema.row": weight[3],
        **{f"dtypes.{name}": np.arange(4).astype(dtype) for name, dtype in DTYPES.items()},
        "parameter": np.arange(3, dtype=np.float32),
        "shapes.0": np.array(3.5, np.float32),
        "shapes.1": np.zeros((0, 5), np.float32),
        "shapes.2": np.broadcast_to(np.arange(3), (2, 3)),
        "opt.state.0.step": np.array(7, np.float32),
    }


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (tensor.shape, tensor.dtype), name
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a file as if its publisher had vouched for it."""
    return read_tensors(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_file_of_torch_is_read_without_torch():
    assert_same(read_tensors(GOLDEN, sha256=GOLDEN_SHA256.upper()), expected())


def test_converted_tensors_are_those_of_the_published_file(tmp_path):
    out = tmp_path / "new/torch_state.safetensors"
    convert(GOLDEN, out, sha256=GOLDEN_SHA256)
    assert_same(read_tensors(out), expected())
    with safetensors.safe_open(out, framework="numpy") as file:
        assert file.metadata() == {"source": "torch_state.pt", "sha256": GOLDEN_SHA256}
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    assert out.stat().st_mode == GOLDEN.stat().st_mode


def test_another_file_is_refused_with_both_digests_and_nothing_is_written(tmp_path):
    published = tmp_path / "x.pt"
    published.write_bytes(GOLDEN.read_bytes()[:-1] + b"x")
    actual = hashlib.sha256(published.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{actual}, expected {GOLDEN_SHA256}; download the published file"):
        convert(published, tmp_path / "x.safetensors", sha256=GOLDEN_SHA256)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    with pytest.raises(ValueError, match=r"name it x\.safetensors"):
        convert(published, tmp_path / "x.npz", sha256=actual)


def test_a_torch_file_needs_a_digest():
    with pytest.raises(ValueError, match="holds a program: give its published sha256"):
        read_tensors(GOLDEN)


@pytest.mark.parametrize(("name", "message"), [("x.h5", "suffix is none of"), ("x.pth.tar", "not of torch 1.6")])
def test_other_formats_are_named_with_the_way_out(tmp_path, name, message):
    # What torch wrote before its version 1.6: pickles one after another, the first a magic number.
    (tmp_path / name).write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    with pytest.raises(ValueError, match=rf"{message}.*torch\.load.*safetensors\.torch\.save_file"):
        read(tmp_path / name)


# Files as torch.save writes them, and as it would not.


def pickled(value: object) -> bytes:
    """A plain value as a part of a larger pickle."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(offset=0, shape=(2, 3), stride=(3, 1), count=6, storage="FloatStorage", key="0") -> bytes:
    """What pushes a tensor, as torch pickles it, on the stack of an unpickler."""
    reference = pickled("storage") + f"ctorch\n{storage}\n".encode() + pickled(key) + pickled("cpu") + pickled(count)
    arguments = b"((" + reference + b"tQ" + b"".join(map(pickled, (offset, shape, stride, False)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"ccollections\nOrderedDict\n)RtR"


def state(entry: bytes, key: object = "w") -> bytes:
    return b"\x80\x02}" + pickled(key) + entry + b"s."


def torch_file(path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    contents = {"x/data.pkl": data, "x/byteorder": b"little", "x/data/0": np.arange(6, dtype=np.float32).tobytes()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**contents, **entries}.items():
            archive.writestr(name, content)
    return path


def test_what_these_tests_build_is_a_torch_file(tmp_path):
    path = torch_file(tmp_path / "x.bin", state(tensor()))
    assert_same(read(path), {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})


HOSTILE = {
    "size of storage": (state(tensor(count=2**60)), "claims 1152921504606846976 elements of float32, it has 24 bytes"),
    "shape": (state(tensor(shape=(2**60, 3))), "not within its storage of 6 elements"),
    "stride": (state(tensor(stride=(4, 1))), "not within its storage of 6 elements"),
    "offset": (state(tensor(offset=1)), "not within its storage of 6 elements"),
    "negative": (state(tensor(offset=3, stride=(-3, 1))), r"strides \(-3, 1\)"),
    "dimensions": (state(tensor(shape=(6,))), r"of shape \(6,\) with strides \(3, 1\)"),
    "fraction": (state(tensor(offset=0.5)), "a tensor of shape"),
    "expanded": (state(tensor(shape=(2**40,), stride=(0,))), "claims 4398046511104 bytes, more than 16 times"),
    "dimension of nothing": (state(tensor(shape=(0, 2**62), stride=(1, 1))), "not read: "),
    "no such storage": (state(tensor(key="../0")), "'../0'.* no storage in the file"),
    "no such type": (state(tensor(storage="ComplexDoubleStorage")), r"names torch\.ComplexDoubleStorage, which is not"),
    "key": (state(tensor(), key=(1, 2)), r"the key \(1, 2\), neither str nor int"),
    "names": (state(tensor(), key="../w"), r"'\.\./w' is no name"),
    "two of one name": (b"\x80\x02}(" + b"K\x01" + tensor() + pickled("1") + tensor() + b"u.", "two tensors are named"),
    "within itself": (b"\x80\x02}q\xff" + pickled("w") + b"h\xffs.", "10000000 characters together"),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
    "nested tuples": (state(pickled(1) + b"\x85" * 100_000), "100000 tuples, more than 60000"),
    "long string": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"w.", "not read: "),
    "cut short": (state(tensor())[:-20], "not read: "),
    "attributes": (b"\x80\x02ccollections\nOrderedDict\nN}" + pickled("items") + b"K\x01s\x86b.", "'state'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_pickle_claims_is_checked_before_memory_is_taken(tmp_path, case):
    data, message = HOSTILE[case]
    path = torch_file(tmp_path / "x.pt", data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


class Intruder:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_global_that_is_no_tensor_is_named_and_not_called(tmp_path, protocol):
    data = pickle.dumps({"w": Intruder(tmp_path / "was_here")}, protocol)
    with pytest.raises(ValueError, match=rf"names {os.system.__module__}\.system, which is not part of a state dict"):
        read(torch_file(tmp_path / "x.pt", data))
    assert not (tmp_path / "was_here").exists()
    assert pickle.loads(data) == {"w": 0}  # The file is as harmful as it should be.
    assert (tmp_path / "was_here").exists()


def test_a_torch_file_that_was_cut_short_says_so_and_what_to_do(tmp_path):
    whole = GOLDEN.read_bytes()
    for size in (len(whole) // 3, len(whole) - 1, len(whole) - 100):
        (tmp_path / "x.pt").write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=rf"cut short \(it has {size} bytes and lacks its end\); download it again"
        ):
            read(tmp_path / "x.pt")


ARCHIVES = {
    "storage cut short": ({"x/data/0": bytes(20)}, "claims 6 elements of float32, it has 20 bytes"),
    "name outside": ({"x/../../y": b""}, r"'x/\.\./\.\./y' is no name"),
    "absolute name": ({"/y": b""}, "'/y' is no name"),
    "second folder": ({"y/data.pkl": b""}, "not one folder with one data.pkl"),
    "entry beside the folder": ({"y": b""}, "not one folder with one data.pkl"),
    "big-endian": ({"x/byteorder": b"big"}, "not little-endian"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_is_one_folder_of_whole_storages(tmp_path, case):
    entries, message = ARCHIVES[case]
    with pytest.raises(ValueError, match=message):
        read(torch_file(tmp_path / "x.pt", state(tensor()), **entries))


def test_bombs_are_refused(tmp_path):
    data = state(tensor())
    with pytest.raises(ValueError, match=r"entry x/data\.pkl is compressed"):
        read(torch_file(tmp_path / "x.pt", data, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("w.npy", bytes(100))
    with pytest.raises(ValueError, match=r"entry w\.npy is compressed"):
        read_tensors(tmp_path / "y.npz")
    np.savez_compressed(tmp_path / "z.npz", w=np.zeros(10**6))
    with pytest.raises(ValueError, match=r"claims .* bytes, more than 16 times"):
        read_tensors(tmp_path / "z.npz")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # Of pickletools, at damaged names.
def test_a_damaged_file_ends_in_a_clear_error_or_in_other_numbers(tmp_path):
    """Checksums guard the entries, so the pickle is damaged within an archive that is sound."""
    with zipfile.ZipFile(GOLDEN) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(entries["torch_state/data.pkl"])
        data[rng.integers(len(data))] = rng.integers(256)
        buffer = tmp_path / "x.pt"
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in {**entries, "torch_state/data.pkl": bytes(data)}.items():
                archive.writestr(name, content)
        try:
            read(buffer)
        except ValueError:
            refused += 1
    assert 50 < refused < 150


def test_npz_holds_numbers_only(tmp_path):
    path = tmp_path / "x.npz"
    arrays = {"a/kernel": np.arange(6.0).reshape(2, 3).T, "b": np.arange(3, dtype=">i4"), "c": np.array(True)}
    np.savez(path, **arrays)
    tensors = read_tensors(path)
    assert_same(tensors, {**arrays, "b": np.arange(3, dtype=np.int32)})
    for value, dtype in ((np.array([Intruder(tmp_path)]), "object"), (np.array("text"), "<U4")):
        np.savez(path, a=value)
        with pytest.raises(ValueError, match=rf"entry a\.npy holds {dtype}, not numbers"):
            read_tensors(path)


def test_an_npz_header_claims_what_the_entry_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(16))
    with pytest.raises(ValueError, match=r"claims float32 \(1099511627776,\), it has 16 bytes"):
        read_tensors(tmp_path / "x.npz")


HEADERS = {
    "size of header": (b"{}", 2**60, "header too large"),
    "shape": (b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}', None, "overflow"),
    "offsets": (b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1099511627776]}}', None, "it has 90 of 109"),
    "rank": (b'{"w":{"dtype":"F32","shape":[' + b"1," * 99 + b'4],"data_offsets":[0,16]}}', None, "dimension"),
    "type": (b'{"w":{"dtype":"F4","shape":[32],"data_offsets":[0,16]}}', None, "F4|float4"),
    "name": (b'{"../w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', None, r"'\.\./w' is no name"),
    "control": (b'{"w\\u001b[2J":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', None, "is no name"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers_are_checked(tmp_path, case):
    header, length, message = HEADERS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=message):
        read_tensors(path)


def test_safetensors_need_no_digest_but_keep_to_one_that_is_given(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"w": np.arange(3, dtype=ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(tensors, path)
    assert_same(read_tensors(path), tensors)
    assert_same(read(path), tensors)
    with pytest.raises(ValueError, match="has SHA-256"):
        read_tensors(path, sha256="0" * 64)
