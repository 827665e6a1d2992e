"""A pipeline of SD3 that comes without its T5: captions and pictures are those that diffusers makes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from published_text import END, save_clip
from toys import small_mesh

from dit_video.cli.main import main
from dit_video.data.batch import Batch
from dit_video.diffusion.process import noise
from dit_video.encoders.load_text_encoders import TextEncoders
from dit_video.encoders.text import PretrainedText, ZeroTokens
from dit_video.nn.module import Precision
from dit_video.run.folder import read_experiment
from dit_video.run.open_run import open_run
from dit_video.tasks.keys import clip_keys

WIDTH, NUM_STEPS = 28, 3
CAPTIONS = ["a seven moving up", "", "the fox's café"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small SD3 with `text_encoder_3=None`, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("published") / "sd3"
    save_clip(folder, hidden_size=8, projection_size=6, activation="quick_gelu", padding=END)
    save_clip(folder, hidden_size=12, projection_size=10, activation="gelu", padding="!", number="_2")
    clip = transformers.CLIPTextModelWithProjection.from_pretrained
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "sample_size": 8}
    text = {"joint_attention_dim": WIDTH, "caption_projection_dim": 24, "pooled_projection_dim": 16}
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5,
        shift_factor=0.1,
    )
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**sizes, **text, pos_embed_max_size=12),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip(folder / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder_2=clip(folder / "text_encoder_2"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder) -> StableDiffusion3Pipeline:
    without = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
    return StableDiffusion3Pipeline.from_pretrained(folder, **without)


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "sd3"
    assert main(["import", str(folder), f"--out={out}"]) == 0
    return out


def close(actual: np.ndarray, expected: torch.Tensor) -> bool:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected.numpy()).max()) < 1e-4 * float(expected.abs().max())


@torch.no_grad()
def test_zeros_stand_for_the_tokens_of_the_t5(imported, theirs):
    text = read_experiment(imported).task.text
    assert text.t5 == ZeroTokens(num_tokens=256, hidden_size=WIDTH)
    embedded = TextEncoders(dataclasses.replace(text, precision=Precision.FLOAT32), small_mesh())(CAPTIONS)
    tokens, _, pooled, _ = theirs.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
    assert close(embedded.tokens, tokens)
    assert close(embedded.pooled, pooled)
    np.testing.assert_array_equal(embedded.num_tokens, 77 + 256)


@torch.no_grad()
@pytest.mark.slow
def test_latents_are_those_of_the_pipeline(imported, theirs):
    opened = open_run(imported)
    task = opened.experiment.task
    task = dataclasses.replace(task, sampler=dataclasses.replace(task.sampler, num_steps=NUM_STEPS))
    encode = TextEncoders(dataclasses.replace(task.text, precision=Precision.FLOAT32), small_mesh())
    text, frozen = encode(CAPTIONS), opened.frozen._replace(null=encode([""]))
    keys = clip_keys(0, range(len(CAPTIONS)))
    with jax.default_matmul_precision("highest"):
        video = task.generate(
            opened.definition.bind(opened.params), frozen, Batch(signals={"text": text}), keys, (1, 16, 16)
        )
    x_1 = np.array(noise(keys, (1, 8, 8, 16)))[:, 0].transpose(0, 3, 1, 2)
    # Guidance is what each takes by itself: the pipeline its default, the run what its import read there.
    options = {"num_inference_steps": NUM_STEPS, "height": 16, "width": 16}
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(CAPTIONS, latents=torch.from_numpy(x_1), output_type="np", **options).images * 255
    assert expected.std() > 10
    # Half way between two grey levels the last bit of a float decides.
    assert np.abs(np.asarray(video)[:, 0].astype(float) - expected).max() < 1


@pytest.mark.slow
def test_it_is_sampled_from_words(imported, tmp_path):
    words = ["--num_clips=1", "--num_steps=1", "--text=a seven", f"--out={tmp_path / 'seven.gif'}"]
    assert main(["sample", f"--workdir={imported}", *words]) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroTokens(num_tokens=2, hidden_size=4), "ZeroTokens.num_tokens=2: must be at least 3"),
        (lambda: ZeroTokens(num_tokens=3, hidden_size=0), "ZeroTokens.hidden_size=0: must be at least 1"),
        (lambda: PretrainedText(t5=ZeroTokens(num_tokens=3, hidden_size=4)), "names no encoder"),
    ],
)
def test_zeros_alone_are_no_text(make, message):
    with pytest.raises(ValueError, match=message):
        make()
