"""Captions are embedded as the published pipelines do it: those of diffusers judge, with encoders saved for them."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from diffusers import LattePipeline, StableDiffusion3Pipeline, WanPipeline
from published_text import CORPUS, END, save_clip, save_t5
from toys import small_mesh

from dit_video.encoders.load_text_encoders import TextEncoders
from dit_video.encoders.text import FrozenCLIP, HiddenState, PretrainedText, latte_text, sd3_text, wan_text
from dit_video.nn.module import Precision

# More than go through the encoders at once, some of them longer than any encoder reads.
CAPTIONS = ["", "A seven  moving up &amp; down!", "the fox’s café", *CORPUS, "a long tail " * 60, *CORPUS[::-1]]
ABSENT = {"vae": None, "transformer": None, "scheduler": None}


def embedded(text: PretrainedText):
    return TextEncoders(dataclasses.replace(text, precision=Precision.FLOAT32), small_mesh())(CAPTIONS)


def relative_error(actual: np.ndarray, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected.numpy()).max() / np.abs(expected.numpy()).max())


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    save_clip(folder, hidden_size=8, projection_size=6, activation="quick_gelu", padding=END)
    save_clip(folder, hidden_size=12, projection_size=10, activation="gelu", padding="!", number="_2")
    save_t5(folder, hidden_size=28, kind="t5", number="_3")
    return folder


@torch.no_grad()
def test_as_in_the_pipeline_of_sd3(sd3):
    load = {name: getattr(transformers, name).from_pretrained for name in ("T5EncoderModel", "T5Tokenizer")}
    clip = transformers.CLIPTextModelWithProjection.from_pretrained
    pipeline = StableDiffusion3Pipeline(
        **ABSENT,
        text_encoder=clip(sd3 / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(sd3 / "tokenizer"),
        text_encoder_2=clip(sd3 / "text_encoder_2"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(sd3 / "tokenizer_2"),
        text_encoder_3=load["T5EncoderModel"](sd3 / "text_encoder_3"),
        tokenizer_3=load["T5Tokenizer"](sd3 / "tokenizer_3"),
    )
    options = {"do_classifier_free_guidance": False, "max_sequence_length": 40, "device": "cpu"}
    tokens, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, None, None, **options)
    actual = embedded(sd3_text(str(sd3), num_t5_tokens=40))
    assert relative_error(actual.tokens, tokens) < 1e-4
    assert relative_error(actual.pooled, pooled) < 1e-4
    np.testing.assert_array_equal(actual.num_tokens, 77 + 40)


@pytest.fixture(scope="module", params=["t5", "umt5"])
def t5(request, tmp_path_factory):
    """A folder, and what the pipelines with one encoder have of it."""
    folder = tmp_path_factory.mktemp("t5")
    save_t5(folder, kind=request.param)
    make = {"t5": transformers.T5EncoderModel, "umt5": transformers.UMT5EncoderModel}[request.param]
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder / "tokenizer")
    return folder, ABSENT | {"text_encoder": make.from_pretrained(folder / "text_encoder"), "tokenizer": tokenizer}


@torch.no_grad()
def test_as_in_the_pipeline_of_wan(t5):
    folder, parts = t5
    options = {"do_classifier_free_guidance": False, "max_sequence_length": 512, "device": "cpu"}
    tokens, _ = WanPipeline(**parts).encode_prompt(CAPTIONS, **options)
    actual = embedded(wan_text(str(folder)))
    assert relative_error(actual.tokens, tokens) < 1e-4
    meant = (tokens != 0).any(-1).sum(1)
    np.testing.assert_array_equal(actual.num_tokens, meant.numpy())
    means = tokens.sum(1) / meant[:, None]
    assert relative_error(actual.pooled, means) < 1e-4


@torch.no_grad()
def test_as_in_the_pipeline_of_latte(t5):
    folder, parts = t5
    pipeline = LattePipeline(**parts)
    tokens, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, device="cpu")
    assert relative_error(embedded(latte_text(str(folder))).tokens, tokens) < 1e-4


@torch.no_grad()
def test_one_clip_alone_as_in_stable_diffusion(sd3):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(sd3 / "tokenizer")
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(sd3 / "text_encoder")(ids)
    clip = FrozenCLIP(
        model=str(sd3 / "text_encoder"), tokenizer=str(sd3 / "tokenizer"), state=HiddenState.LAST, num_tokens=77
    )
    actual = embedded(PretrainedText(clip_l=clip))
    assert relative_error(actual.tokens, theirs.last_hidden_state) < 1e-4
    assert relative_error(actual.pooled, theirs.text_embeds) < 1e-4


@pytest.fixture(scope="module")
def exact(sd3) -> TextEncoders:
    """On one device in float32."""
    return TextEncoders(dataclasses.replace(few_tokens(sd3), precision=Precision.FLOAT32), small_mesh())


def few_tokens(folder) -> PretrainedText:
    return sd3_text(str(folder), num_t5_tokens=9)


def test_in_bfloat16_it_is_the_same_but_for_rounding(sd3, exact):
    rounded = TextEncoders(few_tokens(sd3), small_mesh())(CAPTIONS)
    for actual, expected in zip(rounded[::2], exact(CAPTIONS)[::2]):
        assert actual.dtype == np.float32
        assert 0 < np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_a_caption_is_the_same_on_one_device_and_on_eight(sd3, exact):
    text = dataclasses.replace(few_tokens(sd3), precision=Precision.FLOAT32)
    eight = TextEncoders(text, small_mesh(8, data=2, fsdp=2, tensor=2))
    assert eight.provenance == exact.provenance
    for a, b in zip(eight(CAPTIONS), exact(CAPTIONS)):
        np.testing.assert_allclose(a, b, atol=1e-5)
