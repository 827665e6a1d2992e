"""A file says what it is: what is no weights is named in one line with what to do, and no library's error is shown."""

import json
import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from published_dit import SAVED, assert_same, expected, publish, read, save, tensors

from dit_video.cli.main import main
from dit_video.weights.files import read_tensors
from dit_video.weights.folder import CONFIG, WEIGHTS
from dit_video.weights.names import Dialect
from dit_video.weights.source import open_published

OTHERS = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git LFS .*`git lfs pull`"),
    "git-annex": (b"/annex/objects/SHA256E-s1--0.bin\n", "git-annex pointer.*`git annex get`"),
    "page": (b"<!doctype html><html><body>Access denied</body></html>", "a web page.*download the file itself"),
    "page in capitals": (b"\xef\xbb\xbf\n <HTML>", "a web page.*download the file itself"),
    "answer of a bucket": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "GGUF": (b"GGUF" + bytes(600), "GGUF, quantised weights.*take the safetensors"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5.*take the safetensors"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "a compressed archive: unpack it"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(600), "a tar archive: unpack it"),
    "nothing": (b"", "is empty; download it again"),
}


def refused(path: Path) -> str:
    """The one line that a file or a folder is refused with, which names it."""
    with pytest.raises((ValueError, OSError)) as caught, open_published(path):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert type(caught.value) in (ValueError, FileNotFoundError)
    assert not re.search(r"Error|errno|deserializ", message), message
    return message


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x.ckpt", "x.npz", "x.gguf", "x"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_weights_is_called_what_it_is_whatever_its_name(kind, name, tmp_path):
    content, message = OTHERS[kind]
    (tmp_path / name).write_bytes(content)
    assert re.search(message, refused(tmp_path / name))
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / name, sha256="0" * 64)


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "nothing"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, f"{WEIGHTS}.index.json"])
def test_so_it_is_in_every_file_of_a_folder(kind, name, tmp_path):
    content, message = OTHERS[kind]
    publish(Dialect.DIFFUSERS, {"x": np.zeros(1, np.float32)}, tmp_path)
    (tmp_path / name).write_bytes(content)
    assert re.search(message, refused(tmp_path))


def test_text_in_place_of_safetensors_is_shown(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"Entry not found")
    assert "it begins with 'Entry not found'" in refused(tmp_path / "x.safetensors")


def test_a_download_that_was_not_finished_is_named_with_how_much_there_is(tmp_path):
    whole = save(tensors(Dialect.OFFICIAL), tmp_path / "x.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for size in (header, header + 1, len(whole) - 1):
        (tmp_path / "x.safetensors").write_bytes(whole[:size])
        assert f"it has {size} of {len(whole)} bytes" in refused(tmp_path / "x.safetensors")
    for size in range(1, header, 97):
        (tmp_path / "x.safetensors").write_bytes(whole[:size])
        assert "download it again" in refused(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors.part").write_bytes(whole)
    assert "was not finished (.part)" in refused(tmp_path / "x.safetensors.part")


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.ckpt", "x.sft"])
def test_safetensors_are_read_under_another_name_without_a_digest(name, tmp_path):
    weights = tensors(Dialect.OFFICIAL)
    path = save(weights, tmp_path / "x.safetensors").rename(tmp_path / name)
    assert_same(read(path)[0], expected(Dialect.OFFICIAL, weights))


def test_a_torch_file_that_is_called_safetensors_is_to_be_renamed(tmp_path):
    torch.save({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert "name it x.pt and give the sha256" in refused(tmp_path / "x.safetensors")


ADAPTERS = (
    "transformer_blocks.0.attn1.to_q.lora_A.weight",
    "base_model.model.blocks.0.attn.qkv.lora_B.default.weight",
    "lora_unet_blocks_0_attn_qkv.lora_down.weight",
    "blocks.0.attn.processor.to_q_lora.up.weight",
    "lycoris_blocks_0_attn.hada_w1_a",
    "blocks.0.lokr_w1",
)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_alone_is_named_with_how_it_becomes_a_network(name, tmp_path, capsys):
    alone = {name: np.zeros((2, 3), np.float32), "alpha": np.zeros(1, np.float32)}
    beside = tensors(Dialect.DIFFUSERS) | {name: np.zeros((2, 3), np.float32)}
    sources = (save(alone, tmp_path / "x.safetensors"), publish(Dialect.DIFFUSERS, alone, tmp_path / "alone"))
    for source in (*sources, publish(Dialect.DIFFUSERS, beside, tmp_path / "beside")):
        assert main(["import", str(source), f"--out={tmp_path / 'run'}"]) == 1
        error = capsys.readouterr().err
        assert str(source) in error
        assert "a LoRA or another adapter, which changes the weights of another network: in diffusers load" in error
        assert f"(1 tensors such as {name})" in error


def test_the_folder_of_an_adapter_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "a LoRA or another adapter" in refused(tmp_path)


SCALES = (
    *("scaled_fp8", "blocks.0.attn.qkv.scale_weight", "blocks.0.attn.qkv.weight_scale", "blocks.0.mlp.fc1.input_scale"),
    *("blocks.0.mlp.fc1.weight.absmax", "blocks.0.mlp.fc1.weight.quant_state.bitsandbytes__nf4"),
    *("blocks.0.mlp.fc1.qweight", "blocks.0.mlp.fc1.weight._scale", "blocks.0.mlp.fc1.SCB"),
)


@pytest.mark.parametrize("name", SCALES)
def test_weights_with_scales_beside_them_are_named(name, tmp_path, capsys):
    float8 = {n: x.astype(ml_dtypes.float8_e4m3fn) for n, x in tensors(Dialect.OFFICIAL).items()}
    source = publish(Dialect.OFFICIAL, float8 | {name: np.ones(1, np.float32)}, tmp_path / "x")
    assert main(["import", str(source), f"--out={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert (
        f"quantised weights (1 tensors such as {name} are scales of others), which are not read: take the file" in error
    )


def test_a_file_without_the_config_that_belongs_to_it_says_so(tmp_path, capsys):
    folder = publish(Dialect.DIFFUSERS, tensors(Dialect.DIFFUSERS), tmp_path / "x")
    (folder / CONFIG).unlink()
    assert f"{folder / CONFIG}: not there beside {WEIGHTS}" in refused(folder)
    renamed = (folder / WEIGHTS).rename(tmp_path / "any.safetensors")
    for source in (renamed, save({"any": np.zeros(1, np.float32)}, tmp_path / WEIGHTS)):
        assert main(["import", str(source), f"--out={tmp_path / 'run'}"]) == 1
        assert "a file of a folder of diffusers without the config.json" in capsys.readouterr().err


def test_a_path_that_is_not_there_says_what_to_type(tmp_path, capsys):
    said = {
        "facebook/DiT-XL-2-256": "`hf download facebook/DiT-XL-2-256 --local-dir DiT-XL-2-256`, then",
        "https://huggingface.co/a/b/tree/main": "`hf download a/b --local-dir b`",
        str(tmp_path / "x.pt"): "`hf download OWNER/NAME --local-dir NAME`",
        "runs/x.safetensors": "`hf download OWNER/NAME",
    }
    for source, message in said.items():
        for more in ([], ["--sha256=" + "0" * 64]):
            assert main(["import", source, f"--out={tmp_path / 'run'}", *more]) == 1
            error = capsys.readouterr().err
            assert f"{Path(source)}: is not there. To take it from the Hub: {message}" in error
            assert "torch" not in error
            assert error.count("\n") == 1
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    assert "is a link to" in refused(tmp_path / "x")


def test_a_folder_of_folders_names_those_that_have_a_network(tmp_path):
    publish(Dialect.DIFFUSERS, tensors(Dialect.DIFFUSERS), tmp_path / "snapshots" / "0a1b")
    assert f"name the folder of a network or a pipeline, such as {tmp_path}/snapshots/0a1b" in refused(tmp_path)


def outcome(folder: Path) -> str | None:
    """What a folder is refused with; None where it is read."""
    try:
        read(folder)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    """Bytes of which one is changed, some are put in, or all after a place are lost."""
    spoiled, place = bytearray(good), rng.integers(min(len(good), 6000))
    match rng.integers(3):
        case 0:
            spoiled[place] = rng.integers(256)
        case 1:
            del spoiled[place:]
        case 2:
            spoiled[place:place] = rng.bytes(3)
    return bytes(spoiled)


def test_damage_anywhere_is_an_error_in_our_words_or_other_numbers(tmp_path):
    folder = publish(Dialect.DIFFUSERS, tensors(Dialect.DIFFUSERS), tmp_path / "x")
    index = {"weight_map": dict.fromkeys(tensors(Dialect.DIFFUSERS), WEIGHTS)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    rng, outcomes = np.random.default_rng(0), []
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for _ in range(15):
            path.write_bytes(damaged(good, rng))
            outcomes.append(outcome(folder))
        path.write_bytes(good)
    refusals = [one for one in outcomes if one is not None]
    assert 15 < len(refusals) < 45
    assert not any(re.search(r"SafetensorError|JSONDecodeError|KeyError", one) for one in refusals)


VALUES = (None, True, -1, 0, 10**30, 1.5, float("nan"), "x", [1], {"a": 1})


def test_any_value_of_any_field_of_a_config_is_read_or_is_an_error(tmp_path):
    folder = publish(Dialect.DIFFUSERS, tensors(Dialect.DIFFUSERS), tmp_path / "x")
    for field in SAVED:
        for value in VALUES:
            (folder / CONFIG).write_text(json.dumps(SAVED | {field: value}))
            refusal = outcome(folder) or field
            assert any(said in refusal for said in (field, "of no family", "tensors of this network")), refusal
