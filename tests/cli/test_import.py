"""Published weights become a run and a run a folder of diffusers, by what a user types; or nothing is written."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.numpy import load_file, save_file
from toys import SMALL_VAE, Weights, small_mesh

from dit_video import experiment as experiments
from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.cli.main import main
from dit_video.config.components import to_json
from dit_video.config.json_file import write_json
from dit_video.export.diffusers_folder import compare_layers, write_tensors
from dit_video.export.weights import ExportMismatch
from dit_video.nn.module import define, params_of
from dit_video.published.dit import ClassDiT
from dit_video.run.folder import record
from dit_video.run.open_run import open_run
from dit_video.weights import names
from dit_video.weights.digest import weights_digest
from dit_video.weights.folder import WEIGHTS
from dit_video.weights.names import Dialect, Table
from dit_video.weights.source import open_published

EXPERIMENT = """
import dataclasses
from dit_video.data.dataset import Data
from dit_video.data.sources import MovingDigits
from dit_video.data.transforms import ClipTransform
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_S, DiTConfig, published
from dit_video.experiment import Experiment
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from toys import SMALL_VAE

def get_config(arg="diffusers"):
    source = MovingDigits(directory="FOLDER/digits", num_train=4, num_held_out=2, size=48, digit_size=10)
    data = Data(source=source, clips=ClipTransform(num_frames=1, size=(48, 48)), batch_size=2)
    network = published(dataclasses.replace(DIT_S, hidden_size=12, num_heads=2, depth=2))
    if arg == "diffusers":
        network = dataclasses.replace(network, mlp_norm_epsilon=1e-5, time_frequency_shift=1)
    if arg == "modern":
        network = DiTConfig(hidden_size=12, num_heads=2, depth=2)
    task = Denoise(
        network=network, codec=TrainedCodec(vae=SMALL_VAE, run="FOLDER/vae"), condition=ClassCondition(num_classes=10)
    )
    if arg == "vae":
        task = Autoencode(vae=SMALL_VAE)
    return Experiment(task=task, data=data, optimizer=AdamW(), schedule=Schedule(num_steps=1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with an experiment, a run of its codec, and published weights of both dialects."""
    folder = tmp_path_factory.mktemp("import")
    (folder / "mine.py").write_text(EXPERIMENT.replace("FOLDER", str(folder)))
    _save_codec(folder)
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=6, out_channels=8, num_layers=2, sample_size=6, num_embeds_ada_norm=10
    )
    weights = theirs.state_dict()
    for name in weights:
        if ".norm1.emb." in name:
            weights[name] = weights["transformer_blocks.0." + name.split(".", 2)[2]]
    theirs.load_state_dict(weights)
    theirs.save_pretrained(folder / "published" / "transformer")
    (folder / "published" / "model_index.json").write_text("{}")
    return folder


def _as_a_run(folder: Path, out: Path, config: str) -> Path:
    """A run with random weights."""
    experiment = experiments.load(f"{folder}/mine.py:{config}")
    rng = np.random.default_rng(0)
    shapes = define(experiment.task.init).shapes
    params = {n: jnp.asarray(0.1 * rng.standard_normal(s.shape, np.float32)) for n, s in shapes.items()}
    record(experiment, out, (), allow_change=False)
    with Checkpoints(out, experiment=to_json(experiment)) as checkpoints:
        checkpoints.finish(1, Weights(1, params, params), next_batch=1)
    return out


def _save_codec(folder: Path) -> None:
    """A codec, with latent statistics that were measured."""
    out = _as_a_run(folder, folder / "vae", "vae")
    definition = define(experiments.load(f"{folder}/mine.py:vae").task.init)
    with Checkpoints(out) as checkpoints:
        params = checkpoints.restore_params(definition.shapes, small_mesh(), ema=True)
    digest = weights_digest(params_of(definition.bind(params).vae))
    channels = SMALL_VAE.latent_channels
    write_json(
        folder / "vae" / "latent_statistics.json", {"codec": digest, "mean": [0.0] * channels, "std": [1.0] * channels}
    )


def official(folder: Path) -> list[tuple[str, np.ndarray]]:
    """The tensors of the diffusers folder as the official code stores them."""
    tensors = load_file(folder / "published" / "transformer" / WEIGHTS)
    source = {n: names.StoredTensor(x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()}
    network = ClassDiT.of_diffusers(json.loads((folder / "published" / "transformer" / "config.json").read_text()))
    table = network.table()
    params = dict(names.read(table, Dialect.DIFFUSERS, source))
    return [(n, np.ascontiguousarray(x)) for n, x in names.write(table, Dialect.OFFICIAL, params)]


def bring(folder: Path, source: Path, out: Path, config: str, *words: str) -> int:
    return main(["import", str(source), f"--config={folder}/mine.py:{config}", f"--out={out}", *words])


def test_a_folder_of_diffusers_becomes_a_run_and_leaves_as_it_came(folder, tmp_path, capsys):
    out, back = tmp_path / "run", tmp_path / "back"
    assert bring(folder, folder / "published", out, "diffusers") == 0
    assert "writes the whole pipeline" not in capsys.readouterr().out
    assert json.loads((out / "import.json").read_text())["config"]["num_layers"] == 2
    assert main(["export", f"--workdir={out}", f"--out={back}", "--format=diffusers"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "layers and outputs of diffusers: largest difference over largest value" in said
    assert "the network alone, for the VAE of the run is none of diffusers'" in said
    there, back_there = load_file(folder / "published" / "transformer" / WEIGHTS), load_file(back / WEIGHTS)
    assert there.keys() == back_there.keys()
    for name, value in there.items():
        np.testing.assert_array_equal(back_there[name], value, strict=True)
    card = (back / "README.md").read_text()
    assert "`timestep`, int64 `[b]`: 1000 t - 1" in card
    digest = hashlib.sha256((folder / "published" / "transformer" / WEIGHTS).read_bytes()).hexdigest()
    assert f"- `{WEIGHTS}`, SHA-256 {digest}" in card


def test_a_dit_trained_in_diffusers_becomes_a_run_and_leaves_as_it_came(folder, tmp_path, capsys):
    """Its blocks have embedders that were trained apart."""
    trained = Path(shutil.copytree(folder / "published", tmp_path / "published"))
    path = trained / "transformer" / WEIGHTS
    rng = np.random.default_rng(0)
    there = {n: x + 0.1 * rng.standard_normal(x.shape, np.float32) for n, x in load_file(path).items()}
    save_file(there, path)
    assert bring(folder, trained, tmp_path / "run", "diffusers") == 1
    assert "--config.task.network.block_embedders=True (it is False)" in capsys.readouterr().err
    words = ["--config.task.network.block_embedders=True"]
    assert bring(folder, trained, tmp_path / "run", "diffusers", *words) == 0
    export = ["export", f"--workdir={tmp_path / 'run'}"]
    assert main([*export, f"--out={tmp_path / 'back'}", "--format=diffusers"]) == 0
    assert "layers and outputs of diffusers: largest difference" in capsys.readouterr().out
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert there.keys() == back.keys()
    for name, value in there.items():
        np.testing.assert_array_equal(back[name], value, strict=True)
    assert main([*export, f"--out={tmp_path / 'torch'}", "--format=torch"]) == 1
    assert "block_embedders=True: the torch module has one embedder" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", "0.08"), ("float16", "0.01")])
def test_weights_leave_in_half_the_bytes_and_come_back_rounded(dtype, tolerance, folder, tmp_path, capsys):
    assert bring(folder, folder / "published", tmp_path / "run", "diffusers") == 0
    words = ["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'back'}", f"--dtype={dtype}"]
    assert main(words) == 1
    assert f"--dtype {dtype}: of --format diffusers alone" in capsys.readouterr().err
    assert main([*words, "--format=diffusers"]) == 0
    said = capsys.readouterr().out
    assert f"after rounding it to {dtype}: " in said
    assert f"(allowed {tolerance})" in said
    there = load_file(folder / "published" / "transformer" / WEIGHTS)
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert there.keys() == back.keys()
    for name, value in there.items():
        np.testing.assert_array_equal(back[name], value.astype(jnp.dtype(dtype)), strict=True)


def test_a_number_too_large_for_float16_is_named(tmp_path):
    with pytest.raises(ValueError, match="bias has numbers too large for float16: use --dtype bfloat16"):
        write_tensors(Table(rows=()), Dialect.DIFFUSERS, {"bias": np.float32([1e5])}, tmp_path / WEIGHTS, "float16")


def test_numbers_that_are_not_finite_are_counted_and_taken_only_when_that_is_allowed(folder, tmp_path, capsys):
    spoiled = Path(shutil.copytree(folder / "published", tmp_path / "published"))
    path = spoiled / "transformer" / WEIGHTS
    tensors = load_file(path)
    tensors["proj_out_2.bias"][:3] = np.nan, np.inf, -np.inf
    tensors["transformer_blocks.1.attn1.to_k.weight"][0, 0] = np.nan
    for name in tensors:
        if name.endswith("class_embedder.embedding_table.weight"):
            tensors[name][0, :2] = np.nan  # copies of one another, still
    save_file(tensors, path)
    counts = r"proj_out_2\.bias \(3\)", r"1\.attn1\.to_k\.weight \(1\)", r"\.0\..*embedding_table\.weight \(2\)"
    assert bring(folder, spoiled, tmp_path / "run", "diffusers") == 1
    error = capsys.readouterr().err
    for said in ("numbers that are not finite", "--allow_not_finite takes them as they are", *counts):
        assert re.search(said, error), error
    assert not (tmp_path / "run").exists()
    assert bring(folder, spoiled, tmp_path / "run", "diffusers", "--allow_not_finite") == 0
    said = capsys.readouterr().out
    assert all(re.search(count, said) for count in ("taken though not finite", *counts))
    bias = open_run(tmp_path / "run").params["final_layer.bias"]
    np.testing.assert_array_equal(bias, tensors["proj_out_2.bias"])


def test_a_file_in_a_pipeline_is_imported_as_its_folder(folder, tmp_path, capsys):
    transformer = folder / "published" / "transformer"
    for source in (transformer / WEIGHTS, transformer / "config.json", folder / "published" / "model_index.json"):
        out = tmp_path / source.stem
        assert bring(folder, source, out, "diffusers") == 0
        assert json.loads((out / "import.json").read_text())["config"]["num_layers"] == 2


def test_a_folder_that_diffusers_computes_otherwise_is_not_called_done(folder, tmp_path):
    path = Path(shutil.copytree(folder / "published" / "transformer", tmp_path / "changed"))
    config = json.loads((path / "config.json").read_text())
    network = ClassDiT.of_diffusers(config)
    with open_published(path) as published:
        params = dict(names.read(network.table(), published.dialect, published.source))
    parity = compare_layers(network, params, path, (1, 6, 6), num_tensors=0)
    assert parity.error < 1e-4
    assert parity.num_compared == network.config.depth + 1
    (path / "config.json").write_text(json.dumps(config | {"norm_eps": 0.1}))
    with pytest.raises(ExportMismatch, match="diffusers computes something else at block 0: largest difference"):
        compare_layers(network, params, path, (1, 6, 6), num_tensors=0)


def test_a_network_that_diffusers_has_no_class_for_is_an_error_that_says_what_can_be_done(folder, tmp_path, capsys):
    out = _as_a_run(folder, tmp_path / "run", "modern")
    assert main(["export", f"--workdir={out}", f"--out={tmp_path / 'back'}", "--format=diffusers"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "config.task.network=DiTConfig: of DiTs, PublishedDiTConfig alone was published" in error
    assert "--format safetensors and stablehlo export any" in error
    words = ["--format", "diffusers", "safetensors"]
    assert main(["export", f"--workdir={out}", f"--out={tmp_path / 'back'}", *words]) == 1
    assert "diffusers is a folder of its own" in capsys.readouterr().err


def test_an_official_checkpoint_becomes_a_run_that_diffusers_would_compute_otherwise(folder, tmp_path, capsys):
    path, out = tmp_path / "0000001.pt", tmp_path / "run"
    tensors = {name: torch.from_numpy(x) for name, x in official(folder)}
    # As the official training program saves: the average is what is wanted.
    raw = {name: torch.zeros_like(x) for name, x in tensors.items()}
    torch.save({"model": raw, "ema": tensors, "opt": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, path)
    assert bring(folder, path, out, "official") == 1
    assert "give its published sha256" in capsys.readouterr().err
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert bring(folder, path, out, "official", f"--sha256={digest}") == 0
    opened = open_run(out)
    np.testing.assert_array_equal(opened.params["final_layer.kernel"], tensors["final_layer.linear.weight"].numpy().T)
    assert main(["export", f"--workdir={out}", f"--out={tmp_path / 'back'}", "--format=diffusers"]) == 1
    assert "time_frequency_shift=0: diffusers computes DiT with 1" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("official", r"--config\.task\.network\.time_frequency_shift=1 \(it is 0\)"),
        ("modern", r"  config\.task\.network=PublishedDiTConfig\(.*\) \(it is a DiTConfig\)"),
        ("vae", r"config\.task=Denoise\(\.\.\.\) \(it is Autoencode\)"),
    ],
)
def test_another_network_than_the_experiments_is_an_error_that_names_the_fields(
    folder, tmp_path, capsys, config, message
):
    assert bring(folder, folder / "published", tmp_path / "run", config) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_official_weights_are_for_the_official_arithmetic_alone(folder, tmp_path, capsys):
    save_file(dict(official(folder)), tmp_path / "official.safetensors")
    change = "--config.task.network."
    for word in ("time_frequency_shift=1", "mlp_norm_epsilon=0.001"):
        words = ("official", change + word)
        assert bring(folder, tmp_path / "official.safetensors", tmp_path / "run", *words) == 1
        assert change + word.partition("=")[0] in capsys.readouterr().err
    # How many heads there are only sizes with a name tell.
    words = ("official", f"{change}num_heads=3")
    assert bring(folder, tmp_path / "official.safetensors", tmp_path / "run", *words) == 0


def renamed(tensors, name):
    tensors["surplus.bias"] = tensors.pop(name)


def missing(tensors, name):
    del tensors[name]


def wrong_shape(tensors, name):
    tensors[name] = tensors[name][..., None].copy()


def wrong_type(tensors, name):
    tensors[name] = tensors[name].astype(np.float64)


def no_number(tensors, name):
    tensors[name] = tensors[name].astype(np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"missing NAME \[.*\]\n  surplus surplus\.bias"),
        (missing, r"missing NAME \["),
        (wrong_shape, r"NAME is \[.*, 1\], the network has \["),
        (wrong_type, r"NAME is float64; float32 has not all of its digits"),
        (no_number, r"NAME is int32; read are float32, float16, bfloat16 and float8"),
    ],
)
@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        ("diffusers", "transformer_blocks.1.attn1.to_k.bias"),
        ("official", "blocks.1.mlp.fc1.weight"),
        ("official", "x_embedder.proj.weight"),
        ("official", "pos_embed"),
    ],
)
def test_a_file_that_was_changed_is_an_error_that_names_the_tensor(
    folder, tmp_path, capsys, change, message, dialect, name
):
    source = tmp_path / "official.safetensors"
    if dialect == "diffusers":
        source = Path(shutil.copytree(folder / "published", tmp_path / "published"))
        path = source / "transformer" / WEIGHTS
        tensors = load_file(path)
    else:
        path, tensors = source, dict(official(folder))
    change(tensors, name)
    save_file(tensors, path)
    assert bring(folder, source, tmp_path / "out" / "run", dialect) == 1
    error = capsys.readouterr().err
    assert re.search(message.replace("NAME", re.escape(name)), error), error
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_positions_that_were_learnt_are_not_those_of_the_network(folder, tmp_path, capsys):
    tensors = dict(official(folder))
    tensors["pos_embed"] = tensors["pos_embed"] + 0.1
    save_file(tensors, tmp_path / "official.safetensors")
    assert bring(folder, tmp_path / "official.safetensors", tmp_path / "run", "official") == 1
    assert "pos_embed: has other values than the official network computes" in capsys.readouterr().err


def test_what_is_no_weights_of_a_known_family_is_an_error(folder, tmp_path, capsys):
    save_file({"some.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    shutil.copy(tmp_path / "other.safetensors", tmp_path / "unet" / WEIGHTS)
    for name, said in (("other.safetensors", "tensors such as some.weight"), ("unet", "_class_name='UNet2DModel'")):
        assert bring(folder, tmp_path / name, tmp_path / "run", "diffusers") == 1
        assert f"{said}: of no family that is known here" in " ".join(capsys.readouterr().err.split())
