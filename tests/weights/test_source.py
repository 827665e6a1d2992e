"""Torch files are read where each has the digest that it was published with, and by no other way."""

import contextlib
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers import WanTransformer3DModel
from safetensors.numpy import save_file

from dit_video.weights.names import Dialect
from dit_video.weights.source import NO_DIGESTS, open_published, read_digests

SIZES = {"num_attention_heads": 2, "attention_head_dim": 6, "text_dim": 12, "ffn_dim": 16, "num_layers": 2}
BIN = "diffusion_pytorch_model.bin"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shard(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> list[Path]:
    """Saves tensors as torch files and the index that libraries read them by."""
    first, shards, where = list(tensors)[: len(tensors) // 2], {}, {}
    stem = name.removesuffix(".bin")
    for tensor, value in tensors.items():
        file = f"{stem}-0000{1 if tensor in first else 2}-of-00002.bin"
        shards.setdefault(file, {})[tensor] = value
        where[tensor] = file
    for file, part in shards.items():
        torch.save(part, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [folder / file for file in shards]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A pipeline whose network is in two torch files, which diffusers opens."""
    torch.manual_seed(0)
    network = WanTransformer3DModel(**SIZES)
    network.save_config(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    shard(tmp_path / "pipeline" / "transformer", network.state_dict(), BIN)
    return tmp_path / "pipeline"


def listed(folder: Path, out: Path) -> str:
    """What `sha256sum */*.bin` writes in a folder."""
    out.write_text("".join(f"{digest(path)}  {path.relative_to(folder)}\n" for path in sorted(folder.rglob("*.bin"))))
    return str(out)


def test_shards_with_their_digests_are_what_diffusers_reads(folder, tmp_path):
    digests = read_digests(listed(folder, tmp_path / "SHA256SUMS"), folder)
    expected = WanTransformer3DModel.from_pretrained(folder / "transformer", use_safetensors=False).state_dict()
    with open_published(folder, digests=digests) as published:
        assert published.dialect is Dialect.DIFFUSERS
        assert len(published.files) == 3
        assert published.source.keys() == expected.keys()
        for name, stored in published.source.items():
            np.testing.assert_array_equal(stored.read(), expected[name].numpy(), strict=True)


def test_shards_of_transformers_are_read_alike(tmp_path):
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=6, patch_size=3
    )
    network = transformers.CLIPVisionModel(config)
    (tmp_path / "encoder").mkdir()
    config.save_pretrained(tmp_path / "encoder")
    shard(tmp_path / "encoder", network.state_dict(), "pytorch_model.bin")
    digests = read_digests(listed(tmp_path / "encoder", tmp_path / "sums"), tmp_path / "encoder")
    with open_published(tmp_path / "encoder", digests=digests) as published:
        assert published.dialect is Dialect.TRANSFORMERS
        assert published.source.keys() == network.state_dict().keys()


def test_files_without_a_digest_are_listed_and_none_is_read(folder, tmp_path):
    one, other = sorted((folder / "transformer").glob("*.bin"))
    one.write_bytes(b"no torch file")  # which would be another error, were it read
    for digests, missing, there in ((NO_DIGESTS, (one, other), ()), ({one: digest(one)}, (other,), (one,))):
        with (
            pytest.raises(ValueError, match="give its published sha256") as error,
            contextlib.ExitStack() as s,
        ):
            s.enter_context(open_published(folder, digests=digests))
        assert all(f"\n  {path}" in str(error.value) for path in missing)
        assert not any(f"\n  {path}" in str(error.value) for path in there)


def test_a_file_that_is_not_the_published_one_is_not_read(folder, tmp_path):
    digests = read_digests(listed(folder, tmp_path / "sums"), folder)
    changed = sorted((folder / "transformer").glob("*.bin"))[1]
    torch.save({"other": torch.zeros(3)}, changed)
    with (
        pytest.raises(ValueError, match=f"{changed.name} has SHA-256 .*, expected"),
        open_published(folder, digests=digests),
    ):
        pass


def test_a_program_is_not_run_whatever_its_digest(tmp_path):
    class Program:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Program()}, tmp_path / "hostile.bin")
    digests = {tmp_path / "hostile.bin": digest(tmp_path / "hostile.bin")}
    with (
        pytest.raises(ValueError, match="which is not part of a state dict"),
        open_published(tmp_path / "hostile.bin", digests=digests),
    ):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_torch_file_takes_no_memory_before_its_tensors_are_used(tmp_path):
    path, size = tmp_path / "large.bin", 2**24
    torch.save({"weight": torch.arange(size // 4, dtype=torch.float32)}, path)
    digests = {path: digest(path)}
    tracemalloc.start()
    try:
        with open_published(path, digests=digests) as published:
            stored = published.source["weight"].read()
            assert (stored[0], stored[-1]) == (0, size // 4 - 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 4


def test_a_damaged_tensor_is_an_error_that_names_its_entry(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"weight": torch.full((99,), 1.5)}, path)
    content, number = path.read_bytes(), np.float32(1.5).tobytes()
    path.write_bytes(content.replace(number, b"\0\0\0\0", 1))
    with pytest.raises(ValueError, match="data/0 is damaged"), open_published(path, digests={path: digest(path)}):
        pass


def test_one_digest_is_of_one_file(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"is the digest of one file, .* has its weights in 2; several are given as a file"
    ):
        read_digests("0" * 64, folder)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    assert read_digests("A" * 64, tmp_path / "x.safetensors") == {tmp_path / "x.safetensors": "A" * 64}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{digest}  x.bin\nhello", ":2: 'hello': is no line of sha256sum"),
        ("", ": is an empty file"),
        ("{digest}  x.bin\n{other}  x.bin", ":2: x.bin has another digest in a line before"),
        ("\\{digest}  x\\n.bin", ":1: .*: is no line of sha256sum"),
    ],
)
def test_a_list_that_is_none_is_an_error_that_names_the_line(content, message, tmp_path):
    sums = tmp_path / "sums"
    sums.write_text(content.format(digest="0" * 64, other="1" * 64))
    with pytest.raises(ValueError, match=message):
        read_digests(str(sums), tmp_path)


def test_a_list_may_be_of_binary_files_and_in_either_case(tmp_path):
    (tmp_path / "sums").write_text(f"{'A' * 64} *x.bin\n{'a' * 64}  ./x.bin\n{'b' * 64}  a folder/y.bin\n")
    digests = read_digests(str(tmp_path / "sums"), tmp_path)
    assert digests == {tmp_path / "x.bin": "a" * 64, tmp_path / "a folder" / "y.bin": "b" * 64}


@pytest.mark.parametrize("sha256", ["00", "nowhere"])
def test_what_is_no_digest_and_no_file_is_an_error(sha256, tmp_path):
    with pytest.raises(ValueError, match=f"--sha256={sha256}: is neither 64 hexadecimal digits nor a file"):
        read_digests(sha256, tmp_path)
