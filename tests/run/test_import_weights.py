"""A pipeline of diffusers becomes a run that makes the same pictures of the same noise, and goes back."""

import dataclasses
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from published_text import save_t5
from safetensors.numpy import save_file
from sample_videos import waves

from dit_video.cli.main import main
from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.multistep import UniPC
from dit_video.diffusion.path import ConstantShift
from dit_video.diffusion.process import noise
from dit_video.diffusion.timestep_spacing import Leading, Linspace
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import PublishedDiTConfig
from dit_video.encoders.text import wan_text
from dit_video.published.dit import ClassDiT
from dit_video.published.scheduler import PIPELINES
from dit_video.run.folder import read_experiment
from dit_video.run.open_run import open_run
from dit_video.tasks.keys import clip_keys
from dit_video.video.encode import encode_mp4
from dit_video.weights.names import Dialect

NUM_STEPS = 4
NAMES = {"0": "cat", "1": "dog", "2": "bird"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A small DiT with its VAE and scheduler, as diffusers saves them."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=3,
    )
    weights = transformer.state_dict()
    for name in weights:
        if ".norm1.emb." in name:  # the same in all blocks, as in published weights
            weights[name] = weights["transformer_blocks.0." + name.split(".", 2)[2]]
    transformer.load_state_dict(weights)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    folder = tmp_path_factory.mktemp("published") / "pipeline"
    DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": NAMES}))
    return folder


@pytest.fixture(scope="module")
def imported(pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dit"
    assert main(["import", str(pipeline), f"--out={out}"]) == 0
    return out


@torch.no_grad()
def their_pictures(pipeline: DiTPipeline, x_1: np.ndarray, label: list[int]) -> np.ndarray:
    """What diffusers makes of given noise, uint8."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(NUM_STEPS)
    x_t = torch.from_numpy(x_1)
    for timestep in scheduler.timesteps:
        output = pipeline.transformer(x_t, timestep.expand(len(x_t)), torch.tensor(label)).sample
        x_t = scheduler.step(output[:, :4], timestep, x_t).prev_sample
    pixels = pipeline.vae.decode(x_t / pipeline.vae.config.scaling_factor).sample
    return np.clip(np.round((pixels.numpy() + 1) * 127.5), 0, 255).transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_a_pipeline_makes_the_same_pictures_here_and_there(pipeline, imported):
    opened = open_run(imported)
    task = opened.experiment.task
    assert task.sampler.spacing == Leading()
    assert (task.sampler.num_steps, task.guidance.scale) == (50, 4.0), "as the pipeline itself"
    sampler = dataclasses.replace(task.sampler, num_steps=NUM_STEPS)
    task = dataclasses.replace(task, sampler=sampler, guidance=Guidance())
    keys, label = clip_keys(0, range(3)), [0, 2, 1]
    with jax.default_matmul_precision("highest"):
        video = task.generate(
            opened.definition.bind(opened.params),
            opened.frozen,
            Batch(signals={"label": np.array(label, np.int32)}),
            keys,
            (1, 16, 16),
        )
    x_1 = np.array(noise(keys, (1, 8, 8, 4)))[:, 0].transpose(0, 3, 1, 2)
    expected = their_pictures(DiTPipeline.from_pretrained(pipeline), x_1, label)
    assert expected.std() > 10
    # Half way between two grey levels the last bit of a float decides.
    assert np.max(np.abs(np.asarray(video)[:, 0].astype(float) - expected)) <= 1


# What makes a step of the docs small enough for a test.
SMALLER = {
    "train": ["--config.schedule.num_steps=2", "--config.data.batch_size=8"],
    "sample": ["--num_steps=2"],
}


@pytest.mark.slow
def test_the_road_of_the_docs_leads_from_a_pipeline_to_a_tuned_one(pipeline, tmp_path, monkeypatch):
    """Every command of docs/finetune.md, in order, and then its Python."""
    page = (Path(__file__).parents[2] / "docs" / "finetune.md").read_text()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pipeline, "DiT-XL-2-256")
    for number, name in enumerate(NAMES.values()):
        for clip in range(4):
            Path("videos", name).mkdir(parents=True, exist_ok=True)
            video = encode_mp4(waves(4 * number + clip, 2, 16, 16), 10.0)
            Path("videos", name, f"{clip}.mp4").write_bytes(video)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    for words in map(shlex.split, lines):
        assert main([*words[1:], *SMALLER.get(words[1], [])]) == 0, words
    names = {}
    exec(next(text for language, text in blocks if language == "python"), names)
    there = dict(DiTTransformer2DModel.from_pretrained(pipeline / "transformer").named_parameters())
    tuned = dict(names["pipeline"].transformer.named_parameters())
    assert isinstance(names["pipeline"], DiTPipeline)
    assert names["pipeline"].labels == {name: number for number, name in enumerate(sorted(NAMES.values()))}
    assert there.keys() == tuned.keys()
    assert any(not torch.equal(there[name].bfloat16().float(), tuned[name]) for name in there)


@pytest.mark.slow
def test_a_run_goes_back_and_is_sampled_there(pipeline, imported, tmp_path):
    folder = tmp_path / "back"
    assert main(["export", f"--workdir={imported}", f"--out={folder}", "--format=diffusers"]) == 0
    back = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(back, DiTPipeline)
    assert back.vae.config.scaling_factor == 0.5
    assert back.scheduler.config.clip_sample is False
    assert back.labels == {name: int(label) for label, name in NAMES.items()}
    x_1 = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    pictures = (their_pictures(one, x_1, [1, 2]) for one in (DiTPipeline.from_pretrained(pipeline), back))
    np.testing.assert_array_equal(*pictures)


@pytest.mark.slow
def test_a_run_that_was_moved_has_its_codec_with_it_or_is_told_another(pipeline, tmp_path, capsys):
    made, moved, codec = (tmp_path / name for name in ("made", "moved", "codec"))
    assert main(["import", str(pipeline), f"--out={made}"]) == 0
    words = ["--label=bird", "--num_clips=1", "--num_steps=1", f"--out={tmp_path / 'bird.gif'}"]
    assert main(["sample", f"--workdir={made}", *words]) == 0
    picture = (tmp_path / "bird.gif").read_bytes()
    made.rename(moved)
    assert main(["sample", f"--workdir={moved}", *words]) == 0
    assert (tmp_path / "bird.gif").read_bytes() == picture
    (moved / "vae").rename(codec)
    assert main(["sample", f"--workdir={moved}", *words]) == 1
    assert "there is no run in this folder" in capsys.readouterr().err
    assert main(["sample", f"--workdir={moved}", f"--config.task.codec.run={codec}", *words]) == 0
    assert (tmp_path / "bird.gif").read_bytes() == picture


@pytest.mark.slow
def test_a_pipeline_is_sampled_by_the_names_of_its_classes(imported, tmp_path, capsys):
    words = ["--num_clips=2", "--num_steps=2", "--guidance=2", f"--out={tmp_path / 'birds.gif'}"]
    assert main(["sample", f"--workdir={imported}", "--label=bird", *words]) == 0
    assert "2 clips of (1, 16, 16)" in capsys.readouterr().out
    assert main(["sample", f"--workdir={imported}", "--label=fish", *words]) == 1
    assert "must be one of cat, dog, bird" in capsys.readouterr().err


def test_what_has_no_data_says_so(imported, tmp_path, capsys):
    assert main(["evaluate", f"--workdir={imported}"]) == 1
    assert "config.data.source=NoData: there are no held_out clips" in capsys.readouterr().err


def test_what_is_not_sampled_as_the_pipeline_does_is_said(pipeline, tmp_path, capsys):
    changed = Path(shutil.copytree(pipeline, tmp_path / "changed"))
    DDIMScheduler(clip_sample=True).save_pretrained(changed / "scheduler")
    assert main(["import", str(changed), f"--out={tmp_path / 'run'}"]) == 0
    assert "not followed of its scheduler, so that samples differ: clip_sample=True" in capsys.readouterr().out


def test_a_network_alone_needs_to_be_told_its_codec(pipeline, imported, tmp_path, capsys):
    alone = shutil.copytree(pipeline / "transformer", tmp_path / "alone")
    words = ["import", str(alone), f"--out={tmp_path / 'run'}"]
    assert main(words) == 1
    assert "give the run of their VAE with --codec" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, f"--codec={imported / 'vae'}"]) == 0
    assert main(["sample", f"--workdir={tmp_path / 'run'}", "--num_steps=1", f"--out={tmp_path / 'x.gif'}"]) == 0


def test_a_part_of_a_pipeline_is_sampled_as_the_whole(pipeline, imported, tmp_path, capsys):
    words = [f"--codec={imported / 'vae'}", f"--out={tmp_path / 'run'}"]
    assert main(["import", str(pipeline / "transformer"), *words]) == 0
    one, other = (read_experiment(workdir) for workdir in (imported, tmp_path / "run"))
    assert other.data == one.data
    assert dataclasses.replace(other.task, codec=one.task.codec) == one.task


def test_a_codec_of_other_latents_is_refused(pipeline, wan, tmp_path, capsys):
    assert main(["import", str(wan / "vae"), f"--out={tmp_path / 'vae'}"]) == 0
    words = [f"--codec={tmp_path / 'vae'}", f"--out={tmp_path / 'run'}"]
    assert main(["import", str(pipeline / "transformer"), *words]) == 1
    assert "is for latents of 4 channels, the VAE of --codec has 16" in capsys.readouterr().err


def test_an_official_file_is_sampled_at_its_own_size(imported, tmp_path):
    family = ClassDiT(
        config=PublishedDiTConfig(hidden_size=16, depth=1, num_heads=2),
        channels=4,
        condition=ClassCondition(num_classes=3),
    )
    family = dataclasses.replace(family, config=dataclasses.replace(family.config, position_grid=3))
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s, np.float32) for n, s in family.table().expected(Dialect.OFFICIAL).items()}
    weights |= family.table().constants[Dialect.OFFICIAL]
    save_file(weights, tmp_path / "official.safetensors")
    words = [f"--codec={imported / 'vae'}", f"--out={tmp_path / 'run'}"]
    assert main(["import", str(tmp_path / "official.safetensors"), *words]) == 0
    assert read_experiment(tmp_path / "run").data.clips.size == (12, 12)
    assert main(["import", str(tmp_path / "official.safetensors"), "--sha256=00", *words[:1], "--out=x"]) == 1


def test_a_damaged_part_leaves_nothing(pipeline, tmp_path, capsys):
    broken = Path(shutil.copytree(pipeline, tmp_path / "broken"))
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["import", str(broken), f"--out={tmp_path / 'run'}"]) == 1
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert not any(path.name.startswith((".run", "run")) for path in tmp_path.iterdir())


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    """A small Wan with its VAE, text encoder, tokenizer and scheduler, as diffusers saves them."""
    folder = tmp_path_factory.mktemp("published") / "wan"
    save_t5(folder, hidden_size=12)
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 12, "ffn_dim": 32, "num_layers": 2}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    WanPipeline(
        transformer=WanTransformer3DModel(in_channels=16, out_channels=16, **sizes),
        vae=AutoencoderKLWan(base_dim=8, num_res_blocks=1),
        scheduler=UniPCMultistepScheduler(**flow),
        text_encoder=transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=transformers.T5Tokenizer.from_pretrained(folder / "tokenizer"),
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_video_pipeline_comes_with_its_text_encoder_and_goes_back(wan, tmp_path, capsys):
    out = tmp_path / "wan"
    assert main(["import", str(wan), f"--out={out}"]) == 0
    task = read_experiment(out).task
    assert task.objective.shift == ConstantShift(shift=3.0)
    assert task.text == wan_text(str(wan.resolve()))
    assert task.sampler == UniPC(num_steps=50, spacing=Linspace(drop_last=True))
    words = ["--num_clips=1", "--num_steps=2", "--sampler=unipc", "--num_frames=5", "--size=16,32", "--guidance=3"]
    sample = ["sample", f"--workdir={out}", "--text=a seven moving up", *words]
    for name, more in (("plain", []), ("otherwise", ["--negative_prompt=blurry"])):
        assert main([*sample, *more, f"--out={tmp_path / name}.gif", f"--npy={tmp_path / name}.npy"]) == 0
    plain, otherwise = (np.load(tmp_path / f"{name}.npy") for name in ("plain", "otherwise"))
    assert plain.shape == (1, 5, 16, 32, 3)
    assert np.any(plain != otherwise)
    export = ["export", f"--workdir={out}", "--format=diffusers"]
    assert main([*export, f"--out={tmp_path / 'back'}"]) == 0
    assert re.search(r"^vae: \d+ layers and outputs of diffusers", capsys.readouterr().out, re.MULTILINE)
    back, there = (WanPipeline.from_pretrained(folder).components for folder in (tmp_path / "back", wan))
    for part in ("transformer", "vae", "text_encoder"):
        found = back[part].state_dict()
        for name, value in there[part].state_dict().items():
            assert torch.equal(found[name], value), (part, name)
    assert back["scheduler"].config == there["scheduler"].config
    assert back["tokenizer"]("a seven") == there["tokenizer"]("a seven")
    assert main([*export, f"--out={tmp_path / 'alone'}", "--pipeline=none"]) == 0
    assert WanTransformer3DModel.from_pretrained(tmp_path / "alone").config.num_layers == 2


def test_a_pipeline_of_two_networks_says_how_each_is_imported(wan, tmp_path, capsys):
    both = Path(shutil.copytree(wan, tmp_path / "both"))
    (both / "model_index.json").write_text(json.dumps({"transformer_2": ["diffusers", "WanTransformer3DModel"]}))
    assert main(["import", str(both), f"--out={tmp_path / 'run'}"]) == 1
    assert "each is a run of its own" in capsys.readouterr().err


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_and_guidance_are_those_of_the_call_of_the_pipeline(name):
    call = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert (call["num_inference_steps"].default, call["guidance_scale"].default) == PIPELINES[name]
