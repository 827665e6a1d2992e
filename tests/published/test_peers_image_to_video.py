"""A picture is continued as in the published pipelines: those of diffusers judge, with the same weights and noise."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from toys import small_mesh
from transformers import CLIPImageProcessorPil

from dit_video.arrays import Text
from dit_video.data.batch import Batch
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.objective import rectified_flow
from dit_video.diffusion.process import noise
from dit_video.diffusion.sampler import Euler
from dit_video.diffusion.timestep_spacing import Linspace
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.known_frames import LevelZero
from dit_video.encoders import clip_image_names
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.load_image_encoder import opened
from dit_video.published.wan import WanFamily
from dit_video.published.wan_vae import WanVAEFamily
from dit_video.tasks.known_frames import FirstFrame
from dit_video.tasks.latent_diffusion import Denoise, Frozen
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.weights import names
from dit_video.weights.names import Dialect, StoredTensor

SHAPE = (9, 32, 48)
STEPS, SCALE = 3, 2.5
VAE = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | {
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [0.5, 1.5, 1.0, 0.8],
}
NETWORK = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 6, "ffn_dim": 20, "num_layers": 1}
# Of text alone; of a first frame beside x_t (2.2 I2V); and of one that is held at noise level 0 (2.2 TI2V).
TEXT, BESIDE, HELD = (NETWORK | {"in_channels": n, "out_channels": 4} for n in (4, 12, 4))
# Of a first frame beside x_t and its tokens (2.1 I2V).
ATTENDED = BESIDE | {"image_dim": 8, "added_kv_proj_dim": 24}
VISION = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 12} | {
    "image_size": 12,
    "patch_size": 4,
    "hidden_act": "gelu",
}


class Undecoded(LatentCodec):
    """Hands latents on as they are, as the bytes of a video."""

    def decode(self, latents, **parts):
        assert not parts
        return jax.lax.bitcast_convert_type(latents, jnp.uint8).reshape(*latents.shape[:-1], -1)


def of_theirs(network: Any, family: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Our definition and parameters of a network of diffusers, whose weights are made random."""
    rng = np.random.default_rng(0)
    weights = {n: 0.2 * rng.standard_normal(tuple(x.shape), np.float32) for n, x in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()})
    recognised = family.of_diffusers({"_class_name": type(network).__name__, **network.config})
    source = {name: StoredTensor(x.shape, x.dtype, lambda x=x: x) for name, x in weights.items()}
    names.check(recognised.table(), Dialect.DIFFUSERS, source)
    return recognised, dict(names.read(recognised.table(), Dialect.DIFFUSERS, source))


@pytest.fixture(scope="module")
def autoencoder() -> tuple[Any, LatentCodec]:
    theirs = AutoencoderKLWan(**VAE).eval()
    family, params = of_theirs(theirs, WanVAEFamily)
    mean, std = np.array(VAE["latents_mean"]), np.array(VAE["latents_std"])
    return theirs, Undecoded(family.define().bind({n: jnp.asarray(x) for n, x in params.items()}), mean, std)


@pytest.fixture(scope="module")
def prompt() -> Batch:
    """A picture and a caption, of fewer tokens than are attended to."""
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((1, 5, 6), np.float32)
    text = Text(tokens, np.array([4], np.int32), np.zeros((1, 6), np.float32))
    return Batch(video=rng.integers(0, 256, (1, 1, *SHAPE[1:], 3), np.uint8), signals={"text": text})


def filled(text: Text) -> torch.Tensor:
    (num,) = text.num_tokens
    return torch.from_numpy(np.pad(text.tokens[:, :num], ((0, 0), (0, 512 - num), (0, 0))))


NULL = Text(np.full((1, 5, 6), 0.3, np.float32), np.array([1], np.int32), np.zeros((1, 6), np.float32))


def attended(parts: dict[str, Any], folder: Path) -> tuple[PretrainedImage, CLIPVisionModel]:
    """An image encoder of random weights, put into the parts of a pipeline, and ours of the same."""
    encoder = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.normal_(0, 0.3, generator=generator)
    encoder.save_pretrained(folder)
    crop = {"height": VISION["image_size"], "width": VISION["image_size"]}
    processor = CLIPImageProcessorPil(size={"shortest_edge": VISION["image_size"]}, crop_size=crop)
    parts |= {"image_encoder": encoder, "image_processor": processor}
    config = clip_image_names.of_transformers(encoder.config.to_dict() | {"architectures": ["CLIPVisionModel"]})
    image = PretrainedImage(encoder=config, model=str(folder))
    return image, opened(image, small_mesh())


def both(
    config: dict[str, Any], autoencoder, prompt: Batch, folder: Path, *, known: bool
) -> tuple[np.ndarray, Callable[[Batch], np.ndarray]]:
    """Whitened latents of the pipeline, channels last, and what makes ours of what it is prompt."""
    vae, codec = autoencoder
    transformer = WanTransformer3DModel(**config).eval()
    family, params = of_theirs(transformer, WanFamily)
    parts: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": vae, "transformer": transformer}
    image, encoder = attended(parts, folder) if config is ATTENDED else (None, None)
    short = EmbeddedText(hidden_size=6, pooled_size=6, num_tokens=5)
    shown = family.known or (LevelZero() if known else None)
    task = Denoise(
        network=family.config,
        codec=TrainedCodec(vae=codec.vae.config, run="none"),
        condition=short,
        image=image,
        objective=dataclasses.replace(rectified_flow(), shift=None),
        sampler=Euler(num_steps=STEPS, spacing=Linspace()),
        guidance=Guidance(scale=SCALE),
        known=None if shown is None else FirstFrame(shown=shown),
    )
    keys = jax.random.split(jax.random.key(2), 1)
    x_1 = np.array(noise(keys, (*codec.vae.config.latent_shape(SHAPE), 4)))

    parts["scheduler"] = FlowMatchEulerDiscreteScheduler()
    sampled = {"num_frames": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2], "output_type": "latent"} | {
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "latents": torch.from_numpy(np.moveaxis(x_1, -1, 1).copy()),
        "prompt_embeds": filled(prompt.signals["text"]),
        "negative_prompt_embeds": filled(NULL),
    }
    if config is TEXT:
        pipeline = WanPipeline(**parts)
    else:
        pipeline = WanImageToVideoPipeline(**parts, expand_timesteps=known)
        sampled["image"] = Image.fromarray(prompt.video[0, 0])
    pipeline.set_progress_bar_config(disable=True)
    expected = np.moveaxis(pipeline(**sampled).frames.numpy(), 1, -1)

    definition = family.define()
    frozen = Frozen(codec, jax.tree.map(jnp.asarray, NULL), encoder)

    def generate(params, frozen, batch):
        return task.generate(definition.bind(params), frozen, batch, keys, SHAPE)

    call = jax.jit(generate)
    return expected, lambda prompt: np.asarray(call(params, frozen, prompt)).view(np.float32)


@pytest.mark.parametrize(
    ("config", "known"),
    [(TEXT, False), (BESIDE, False), (HELD, True), (ATTENDED, False)],
    ids=["T2V", "I2V", "TI2V", "I2V with tokens"],
)
def test_as_in_the_pipeline_of_wan(config, known, autoencoder, prompt, tmp_path):
    expected, ours = both(config, autoencoder, prompt, tmp_path, known=known)
    actual = ours(prompt)
    assert actual.shape == expected.shape == (1, 3, 4, 6, 4)
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()
    if config is not TEXT:
        other = ours(prompt._replace(video=255 - prompt.video))
        assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()
