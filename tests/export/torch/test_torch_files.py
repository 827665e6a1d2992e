"""A folder of torch modules computes what the run does, without JAX and without this package."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from toys import SMALL_VAE, TWO_LEVEL_VAE

from dit_video.data.captions import encode_captions
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import ddpm, rectified_flow
from dit_video.diffusion.path import ConstantShift
from dit_video.diffusion.sampler import Euler
from dit_video.dit.condition import ClassCondition, EmbeddedText, TextCondition
from dit_video.dit.dit import AnyDiTConfig, DiTConfig, published
from dit_video.dit.latte import LatteConfig
from dit_video.export.diffusers_folder import TOLERANCE
from dit_video.export.torch.folder import compare_with, parts_of, write_files, write_torch
from dit_video.export.weights import Content, Denoiser, ExportMismatch, Origin
from dit_video.nn.attention import QKNorm
from dit_video.nn.module import define
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig
from dit_video.vae.wan_vae import WanVAEConfig

SMALL = DiTConfig(hidden_size=24, depth=2, num_heads=2)
# Networks, and (T, H, W) of clips of a VAE that compresses 2x2x2: odd sizes, lengths, patches and heads.
NETWORKS = {
    "a class": (SMALL, ClassCondition(num_classes=5), (5, 12, 4)),
    "nothing, a wide patch": (dataclasses.replace(SMALL, patch_size=(1, 1, 3), mlp_ratio=2.0), None, (3, 6, 18)),
    "captions, patches of two frames": (
        dataclasses.replace(SMALL, patch_size=(2, 1, 1), shared_modulation=True, num_heads=3),
        TextCondition(hidden_size=20, depth=2, num_heads=5),
        (7, 2, 6),
    ),
    "embedded text, norms across heads": (
        dataclasses.replace(SMALL, patch_size=(1, 1, 1), qk_norm=QKNorm.ACROSS_HEADS, depth=3),
        EmbeddedText(hidden_size=10, pooled_size=6, num_tokens=7),
        (1, 6, 10),
    ),
    "as published": (published(SMALL), ClassCondition(num_classes=1), (1, 8, 12)),
    "as in diffusers": (
        dataclasses.replace(
            published(SMALL, patch_size=1), position_grid=3, time_frequency_shift=1, mlp_norm_epsilon=1e-5
        ),
        None,
        (3, 6, 10),
    ),
}
WAN = WanVAEConfig(channels=4, decoder_channels=4, multipliers=(1, 1), num_blocks=1, halve_frames=(True,))
VAES = {
    "one level": (SMALL_VAE, (5, 16, 24)),
    "two levels": (TWO_LEVEL_VAE, (9, 8, 16)),
    "odd strides": (
        VideoVAEConfig(
            channels=6,
            multipliers=(1, 2, 3),
            strides=((1, 3, 1), (3, 1, 2), (2, 2, 3)),
            num_blocks=1,
            num_decoder_blocks=2,
            latent_channels=5,
        ),
        (13, 12, 6),
    ),
}


def content_of(
    network: AnyDiTConfig, condition, clip=(5, 32, 32), vae=SMALL_VAE, scale: float = 0.2, **fields
) -> Content:
    """A run whose parameters are all random: an untrained DiT predicts zeros, whatever its weights are."""
    rng = np.random.default_rng(0)

    def trained(build) -> nnx.Module:
        definition = define(build)
        shapes = definition.shapes.items()
        return definition.bind({n: jnp.asarray(scale * rng.standard_normal(s.shape, np.float32)) for n, s in shapes})

    task = Denoise(network=network, codec=TrainedCodec(vae=vae, run="runs/vae"), condition=condition, **fields)
    channels = np.arange(vae.latent_channels)
    codec = LatentCodec(trained(lambda key: vae.build(rngs=nnx.Rngs(key))), mean=channels / 4, std=0.5 + channels)
    origin = Origin(run="dit", step=7, ema=True, fingerprint="0123456789abcdef", task={"seed": 1})
    return Content(
        Denoiser(task, trained(task.init)),
        codec,
        clip,
        origin,
        {"label": np.zeros(1, np.int32), "caption": encode_captions([""], 16)},
    )


def write(content: Content, folder) -> None:
    """The folder, not compared with the run."""
    write_files(content, parts_of(content), folder)


def only_codec(content: Content) -> Content:
    return dataclasses.replace(content, denoiser=None)


@pytest.mark.parametrize(("network", "condition", "clip"), NETWORKS.values(), ids=NETWORKS)
def test_a_module_computes_what_the_network_does(network, condition, clip, tmp_path):
    content = content_of(network, condition, clip, vae=WAN)
    parity = write_torch(content, tmp_path)
    assert parity.error < TOLERANCE
    assert parity.num_tensors == len(define(content.denoiser.task.init).shapes)
    num_levels = 2 if content.latent_shape[0] > network.patch_size[0] else 1
    assert parity.num_compared == (network.depth + 1) * num_levels
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.py", "model.safetensors"}


@pytest.mark.parametrize(("vae", "clip"), VAES.values(), ids=VAES)
def test_an_autoencoder_computes_what_the_codec_does(vae, clip, tmp_path):
    parity = write_torch(only_codec(content_of(SMALL, None, clip, vae)), tmp_path)
    assert parity.error < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "vae.py", "vae.safetensors"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder; tests that spoil files put them back."""
    folder = tmp_path_factory.mktemp("torch")
    content = content_of(SMALL, ClassCondition(num_classes=3))
    write(content, folder)
    return content, folder


@pytest.mark.parametrize(
    ("name", "right", "wrong", "where"),
    [
        ("model.py", "x * (1 + scale) + shift", "x * scale + shift", "block 0, with 1 noise level"),
        (
            "model.py",
            "permute(0, 7, 1, 4, 2, 5, 3, 6)",
            "permute(0, 7, 1, 4, 2, 6, 3, 5)",
            "output, with 1 noise level",
        ),
        ("model.py", "// num_frames, dim=1)", "// num_frames, dim=1).roll(1, dims=1)", "block 0, with 2 noise levels"),
        ("vae.py", "past = x[:, :, :1]", "past = 0 * x[:, :, :1]", "encoder.1"),
        ("vae.py", "(z - per_channel(self.mean))", "z", "latents"),
    ],
)
def test_a_planted_error_is_found_where_it_is(name, right, wrong, where, exported):
    content, folder = exported
    part = next(part for part in parts_of(content) if part.network.module == name)
    text = (folder / name).read_text()
    assert text.count(right) == 1
    (folder / name).write_text(text.replace(right, wrong))
    try:
        with pytest.raises(ExportMismatch, match=f"{name} computes something else at {re.escape(where)}: "):
            compare_with(part, folder)
    finally:
        (folder / name).write_text(text)
    assert not (folder / "__pycache__").exists()


def program_of(folder) -> str:
    """The program in a model card."""
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return program


PROGRAMS = {
    "a class, guided": (
        SMALL,
        ClassCondition(num_classes=3),
        {"guidance": Guidance(scale=2.5, interval=(0.1, 0.9)), "sampler": Euler(num_steps=6)},
    ),
    "captions": (
        SMALL,
        TextCondition(hidden_size=12, depth=1, num_heads=2),
        {
            "guidance": Guidance(scale=3.0),
            "sampler": Euler(num_steps=3),
            "objective": dataclasses.replace(rectified_flow(), shift=ConstantShift(shift=3.0)),
        },
    ),
    "nothing": (SMALL, None, {"sampler": Euler(num_steps=4)}),
}


@pytest.mark.parametrize(("network", "condition", "fields"), PROGRAMS.values(), ids=PROGRAMS)
def test_the_program_of_the_model_card_samples_what_the_run_does(network, condition, fields, tmp_path, monkeypatch):
    content = content_of(network, condition, scale=0.1, **fields)
    write(content, tmp_path)
    actual = run_here(tmp_path, monkeypatch)

    torch.manual_seed(0)
    t, h, w, c = content.latent_shape
    x_1 = jnp.asarray(torch.randn(2, c, t, h, w).numpy().transpose(0, 2, 3, 4, 1))
    task = content.denoiser.task
    cond = None
    if isinstance(condition, ClassCondition):
        cond = jnp.asarray([0, 2])
    elif condition is not None:
        cond = jnp.asarray(encode_captions(["what is seen", "and heard"], content.caption_bytes))

    def call(cond):
        return lambda x_t, t: content.denoiser.network.output(x_t, t, cond)

    def pair(x_t, t):
        return call(cond)(x_t, t), call(condition.null(cond))(x_t, t)

    denoise = call(cond) if condition is None else task.guidance.classifier_free(call(cond), pair)
    sample = jax.jit(lambda x_1: task.sampler(denoise, task.objective, x_1, jax.random.split(jax.random.key(0), 2)))
    expected = np.asarray(sample(x_1)).transpose(0, 4, 1, 2, 3)
    assert np.abs(actual["latents"].numpy() - expected).max() < 1e-4 * np.abs(expected).max()
    video = np.asarray(content.codec.decode(jnp.asarray(expected.transpose(0, 2, 3, 4, 1)))).transpose(0, 4, 1, 2, 3)
    assert np.abs(actual["video"].numpy().astype(int) - video).max() <= 1


def run_here(folder, monkeypatch) -> dict:
    """What the program of a model card leaves behind."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    variables: dict = {}
    torch.manual_seed(0)
    try:
        exec(program_of(folder), variables)
    finally:
        for name in ("model", "vae"):
            sys.modules.pop(name, None)
    return variables


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dit_video", "jax", "jaxlib", "flax", "diffusers", "jaxtyping"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, "video torch.uint8 [2, 3, 5, 32, 32]"),
        ({"objective": ddpm()}, "prediction torch.float32 [2, 4, 2, 4, 4]"),
    ],
    ids=["rectified flow", "ddpm"],
)
def test_the_folder_is_enough(fields, shape, tmp_path):
    condition = EmbeddedText(hidden_size=10, pooled_size=6, num_tokens=7)
    write(content_of(SMALL, condition, sampler=Euler(num_steps=2), **fields), tmp_path)
    name = shape.split()[0]
    code = f"{ALONE}\n{program_of(tmp_path)}\nprint('{name}', {name}.dtype, list({name}.shape))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert result.stdout.strip() == shape, result.stderr


def test_a_codec_goes_there_and_back_by_its_program(tmp_path, monkeypatch):
    content = only_codec(content_of(SMALL, None))
    write(content, tmp_path)
    actual = run_here(tmp_path, monkeypatch)
    moments = content.codec.moments(jnp.asarray(actual["video"].numpy().transpose(0, 2, 3, 4, 1)))
    latents = np.asarray(content.codec.whiten(moments)).transpose(0, 4, 1, 2, 3)
    assert np.abs(actual["latents"].numpy() - latents).max() < 1e-4 * np.abs(latents).max()
    # A sample of the posterior is its mean and as much noise as it says.
    codec, generator = actual["codec"], torch.Generator().manual_seed(0)
    ours = torch.from_numpy(np.asarray(moments).transpose(0, 4, 1, 2, 3).copy())
    with torch.no_grad():
        more = codec.whiten(ours, generator) - codec.whiten(ours)
    eps = torch.randn(more.shape, generator=generator.manual_seed(0))
    expected = eps * torch.exp(ours.chunk(2, dim=1)[1] / 2) / codec.std[:, None, None, None]
    torch.testing.assert_close(more, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def module(exported):
    """model.py of the folder."""
    module = types.ModuleType("model")
    exec((exported[1] / "model.py").read_text(), module.__dict__)
    return module


def test_weights_may_be_bfloat16(exported, module):
    network = module.load(exported[1])
    inputs = (torch.randn(2, 4, 2, 4, 4), torch.tensor([0.3, 0.8]))
    with torch.no_grad():
        expected = network(*inputs, label=torch.tensor([0, 1]))
        actual = network.bfloat16()(*inputs, label=torch.tensor([0, 1]))
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "cond", "message"),
    [
        ((1, 4, 2, 4, 4), {}, r"called with \[\]: beside x_t and t this network takes \['label'\]"),
        ((1, 4, 2, 4, 4), {"caption": torch.zeros(1, 8)}, r"called with \['caption'\]"),
        ((1, 4, 2, 5, 4), {"label": torch.tensor([0])}, r"latents of \(t, h, w\) = \(2, 5, 4\): patches are of"),
    ],
)
def test_what_the_network_does_not_take_is_an_error(shape, cond, message, exported, module):
    with pytest.raises(ValueError, match=message):
        module.load(exported[1])(torch.zeros(shape), torch.zeros(1), **cond)


@pytest.mark.parametrize("length", [1, 2, 6, 40])
def test_captions_are_the_bytes_that_training_saw(length, module):
    captions = ["", "a red ball", "ein fröhlicher Ball", "球が跳ねる", "a\0b", "half \ud800 a character"]
    np.testing.assert_array_equal(module.encode_captions(captions, length), encode_captions(captions, length))


def test_config_says_where_weights_come_from(exported):
    config = json.loads((exported[1] / "config.json").read_text())
    assert config["origin"] == {"run": "dit", "step": 7, "ema": True, "fingerprint": "0123456789abcdef"}
    card = (exported[1] / "README.md").read_text()
    assert "ema weights of step 7 of\nthe run `dit`, whose experiment has the fingerprint 0123456789abcdef" in card
    assert f"Objective: `{exported[0].denoiser.task.objective}`" in card


def test_a_denoiser_leaves_without_an_autoencoder_that_is_not_ours(tmp_path):
    content = content_of(SMALL, None, (5, 16, 16), vae=WAN)
    write(content, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "The latents are those of a WanVAE: export the run that holds it with `--format diffusers`" in card
    with pytest.raises(ValueError, match="WanVAE: there is a torch module of a VideoVAE alone; use --format diffusers"):
        parts_of(only_codec(content))


@pytest.mark.parametrize(
    ("network", "condition", "message"),
    [
        (LatteConfig(hidden_size=24, depth=2, num_heads=2), None, "network=LatteConfig: there is a torch module of a"),
    ],
)
def test_another_network_is_an_error_that_says_what_can_be_done(network, condition, message):
    content = content_of(SMALL, None)
    task = dataclasses.replace(content.denoiser.task, network=network, condition=condition)
    with pytest.raises(ValueError, match=f"config.task.{message}.*; --format diffusers or safetensors exports others"):
        parts_of(dataclasses.replace(content, denoiser=Denoiser(task, content.denoiser.network)))
