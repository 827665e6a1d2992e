"""Torch files with their digests and files of official code become runs by what a user types."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from published_text import save_t5
from safetensors.numpy import load_file, save_file

from dit_video.cli.main import main
from dit_video.published.wan import WanFamily
from dit_video.run.folder import read_experiment
from dit_video.weights.names import Dialect

SAMPLE = ["--num_clips=1", "--num_steps=1", "--num_frames=1", "--size=16,16", "--text=a seven moving up"]


def as_torch_files(weights: Path) -> None:
    """A file of safetensors becomes two of torch, with their index."""
    tensors = {name: torch.from_numpy(x) for name, x in load_file(weights).items()}
    stem = {"model": "pytorch_model"}.get(weights.stem, weights.stem)
    halves = {f"{stem}-0000{i + 1}-of-00002.bin": sorted(tensors)[i::2] for i in range(2)}
    for file, names in halves.items():
        torch.save({name: tensors[name] for name in names}, weights.parent / file)
    where = {name: file for file, names in halves.items() for name in names}
    (weights.parent / f"{stem}.bin.index.json").write_text(json.dumps({"weight_map": where}))
    weights.unlink()


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    """A small Wan with its VAE, text encoder and scheduler, all of it in torch files."""
    folder = tmp_path_factory.mktemp("published") / "wan"
    save_t5(folder, hidden_size=12)
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 12, "ffn_dim": 32, "num_layers": 1}
    WanTransformer3DModel(**sizes).save_pretrained(folder / "transformer")
    AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(folder / "vae")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).save_pretrained(
        folder / "scheduler"
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    for weights in folder.rglob("*.safetensors"):
        as_torch_files(weights)
    return folder


def sums(folder: Path) -> str:
    """What `sha256sum */*.bin` writes in a folder."""
    files = sorted(folder.glob("*/*.bin"))
    return "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder)}\n" for f in files)


@pytest.fixture(scope="module")
def imported(wan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    (folder / "SHA256SUMS").write_text(sums(wan))
    assert main(["import", str(wan), f"--sha256={folder / 'SHA256SUMS'}", f"--out={folder / 'wan'}"]) == 0
    return folder / "wan"


@pytest.mark.slow
def test_a_pipeline_of_torch_files_is_imported_and_sampled(wan, imported, tmp_path):
    found = read_experiment(imported).task.text.t5.torch_files
    assert [name for name, _ in found] == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    assert main(["sample", f"--workdir={imported}", *SAMPLE, f"--out={tmp_path / 'x.gif'}"]) == 0


def test_what_has_no_digest_is_listed_and_nothing_is_written(wan, tmp_path, capsys):
    (tmp_path / "sums").write_text(re.sub(r".*vae/diffusion_pytorch_model-00002.*\n", "", sums(wan)))
    for words in ([], [f"--sha256={tmp_path / 'sums'}"]):
        assert main(["import", str(wan), *words, f"--out={tmp_path / 'run'}"]) == 1
        error = capsys.readouterr().err
        assert "give its published sha256" in error
        assert ("vae/diffusion_pytorch_model-00001-of-00002.bin" in error) == (words == [])
        assert "vae/diffusion_pytorch_model-00002-of-00002.bin" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_text_encoder_that_was_changed_later_is_not_read(wan, imported, tmp_path, capsys):
    path = next((wan / "text_encoder").glob("*.bin"))
    kept = shutil.copy(path, tmp_path)
    try:
        torch.save({"other": torch.zeros(3)}, path)
        assert main(["sample", f"--workdir={imported}", *SAMPLE, f"--out={tmp_path / 'x.gif'}"]) == 1
        assert f"{path.name} has SHA-256" in capsys.readouterr().err
    finally:
        shutil.copy(kept, path)


@pytest.mark.slow
def test_an_official_file_becomes_a_run_with_the_codec_of_another(imported, tmp_path, capsys):
    said = {"_class_name": "WanTransformer3DModel", "num_attention_heads": 1, "num_layers": 1, "text_dim": 12}
    network, rng = WanFamily.of_diffusers(said | {"ffn_dim": 32}), np.random.default_rng(0)
    shapes = network.table().expected(Dialect.OFFICIAL)
    tensors = {f"model.diffusion_model.{n}": 0.1 * rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    foreign = {"first_stage_model.conv1.bias": np.zeros(3, np.float32)}
    save_file(tensors | foreign, tmp_path / "wan.safetensors")
    words = ["import", str(tmp_path / "wan.safetensors"), f"--codec={imported / 'vae'}", f"--out={tmp_path / 'run'}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{len(tensors)} tensors of float32, each mapped once" in said
    assert "not read: 1 other tensors, such as first_stage_model.conv1.bias" in said
    assert read_experiment(tmp_path / "run").task.network == network.config
    assert main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'back'}", "--format=diffusers"]) == 0
    back = WanTransformer3DModel.from_pretrained(tmp_path / "back").state_dict()
    np.testing.assert_array_equal(back["proj_out.weight"], tensors["model.diffusion_model.head.head.weight"])
