"""Weights are the same numbers under a prefix, as a variant, in shards, and in any types that lose nothing."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from published_dit import SAVED, as_torch, assert_same, expected, publish, read, save, tensors

from dit_video.weights import names
from dit_video.weights.files import read_tensors
from dit_video.weights.folder import WEIGHTS
from dit_video.weights.names import Dialect

DIALECTS = pytest.mark.parametrize("dialect", [Dialect.OFFICIAL, Dialect.DIFFUSERS])
PREFIXES = (
    *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "transformer.", "model.", "net.", "ema."),
    *("model.diffusion_model.", "state_dict.model.", "ema_model.", "any.words.of.others."),
)


@DIALECTS
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_that_all_names_have_is_left_out(prefix, dialect, tmp_path):
    weights = tensors(dialect)
    path = publish(dialect, {f"{prefix}{name}": value for name, value in weights.items()}, tmp_path / "x")
    params, notes = read(path)
    assert_same(params, expected(dialect, weights))
    compiled = {"_orig_mod."}
    assert len(notes) == (prefix not in compiled)


@DIALECTS
@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_so_is_what_wraps_single_blocks(part, dialect, tmp_path):
    weights = tensors(dialect)
    within = {name.replace("blocks.1.", f"blocks.1.{part}."): value for name, value in weights.items()}
    assert within.keys() != weights.keys()
    params, notes = read(publish(dialect, within, tmp_path / "x"))
    assert_same(params, expected(dialect, weights))
    assert notes == ()


@DIALECTS
def test_what_stands_beside_a_wrapped_network_is_left_out_and_noted(dialect, tmp_path):
    weights = tensors(dialect)
    beside = {"n_averaged": np.zeros((), np.int64), "optimizer.state.0.exp_avg": np.zeros(3, np.float32)}
    path = publish(dialect, {f"module.{n}": x for n, x in weights.items()} | beside, tmp_path / "x")
    params, (note,) = read(path)
    assert_same(params, expected(dialect, weights))
    assert note.startswith("read what is under the prefix module. of its names; not read: 2 other tensors, such as ")


@DIALECTS
def test_of_weights_and_their_average_it_is_the_average(dialect, tmp_path):
    weights = tensors(dialect)
    raw = {f"model.{name}": np.zeros_like(value) for name, value in weights.items()}
    average = {f"ema.module.{name}": value for name, value in weights.items()}
    params, (note,) = read(publish(dialect, raw | average, tmp_path / "x"))
    assert_same(params, expected(dialect, weights))
    assert note.startswith("read what is under the prefix ema.module. ")


def test_an_average_of_some_weights_is_not_taken_for_the_network(tmp_path):
    weights = tensors(Dialect.OFFICIAL)
    average = {"ema.final_layer.linear.weight": np.zeros_like(weights["final_layer.linear.weight"])}
    path = publish(Dialect.OFFICIAL, {f"model.{n}": x for n, x in weights.items()} | average, tmp_path / "x")
    assert_same(read(path)[0], expected(Dialect.OFFICIAL, weights))


@DIALECTS
def test_two_networks_are_not_chosen_from(dialect, tmp_path):
    weights = tensors(dialect)
    both = {f"{prefix}.{name}": value for prefix in ("net", "model") for name, value in weights.items()}
    with pytest.raises(ValueError, match=r"under net\., model\.: save one of them"):
        read(publish(dialect, both, tmp_path / "x"))


@DIALECTS
def test_what_fits_nowhere_is_named_by_the_names_that_fit_best(dialect, tmp_path):
    wrapped = {f"module.{name}": value for name, value in tensors(dialect).items()}
    lost = sorted(wrapped)[3]
    del wrapped[lost]
    with pytest.raises(names.NamesMismatch, match=rf"^not the .*:\n  missing {lost.removeprefix('module.')} [^\n]*$"):
        read(publish(dialect, wrapped, tmp_path / "x"))


@DIALECTS
@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_types_is_read_exactly(seed, dialect, tmp_path):
    rng = np.random.default_rng(seed)
    mixed = {name: value.astype(rng.choice(names.FLOATS)) for name, value in tensors(dialect).items()}
    if dialect is Dialect.DIFFUSERS:
        # All blocks have these, and each the same.
        for name in mixed:
            if ".norm1.emb." in name:
                mixed[name] = mixed["transformer_blocks.0." + name.split(".", 2)[2]].copy()
    assert len({value.dtype for value in mixed.values()}) == len(names.FLOATS)
    assert_same(read(publish(dialect, mixed, tmp_path / "x"))[0], expected(dialect, mixed))


@pytest.mark.parametrize("dtype", [d for d in names.FLOATS if d.itemsize == 1], ids=str)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_every_value_of_eight_bits_is_that_of_torch(kind, dtype, tmp_path):
    bits = np.arange(256, dtype=np.uint8).view(dtype).reshape(2, 128)
    value = as_torch(bits)
    path = tmp_path / f"x.{kind}"
    if kind == "pt":
        torch.save({"x": value, "part": value[1:, ::3]}, path)
        found = read_tensors(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        np.testing.assert_array_equal(found["part"].astype(np.float32), value[1:, ::3].float().numpy())
    else:
        found = read_tensors(save({"x": bits}, path))
    np.testing.assert_array_equal(found["x"].astype(np.float32), value.float().numpy(), strict=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network in half precision that diffusers has saved: whole, in shards, and as variants of both."""
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(**{name: value for name, value in SAVED.items() if name != "_class_name"})
    theirs.load_state_dict({n: torch.from_numpy(x) for n, x in tensors(Dialect.DIFFUSERS).items()})
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder / "whole")
    theirs.half()
    theirs.save_pretrained(folder / "fp16", variant="fp16")
    theirs.save_pretrained(folder / "shards", variant="fp16", max_shard_size="20KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("name", ["fp16", "shards"])
def test_a_variant_that_is_alone_is_read_whole_or_in_shards(name, saved):
    half = {n: x.astype(np.float16) for n, x in tensors(Dialect.DIFFUSERS).items()}
    params, (note,) = read(saved / name)
    assert_same(params, expected(Dialect.DIFFUSERS, half))
    assert "the variant diffusion_pytorch_model." in note
    assert "fp16" in note


@pytest.mark.parametrize("variant", ["fp16", "shards"])
def test_of_variants_that_without_a_suffix_is_read_and_the_other_when_it_is_named(variant, saved, tmp_path):
    both = shutil.copytree(saved / "whole", tmp_path / "both")
    shutil.copytree(saved / variant, both, dirs_exist_ok=True)
    whole, (note,) = read(both)
    assert_same(whole, expected(Dialect.DIFFUSERS, tensors(Dialect.DIFFUSERS)))
    other = note.rpartition(": ")[2]
    assert note == f"read of both: {WEIGHTS}; name another file to read that instead: {other}"
    assert_same(read(both / other)[0], read(saved / variant)[0])
    assert_same(read(both / WEIGHTS)[0], whole)
    (both / WEIGHTS).rename(both / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(ValueError, match=r"holds variants alone, .*bf16.*fp16.*: name the file of one"):
        read(both)


def test_a_shard_that_is_not_there_and_shards_without_their_index_are_named(saved, tmp_path):
    folder = shutil.copytree(saved / "shards", tmp_path / "x")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name}: not there, one of \d that the index lists"):
        read(folder)
    next(folder.glob("*.index.*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"and no index \(\.index\.json\) that lists the shards"):
        read(folder)
