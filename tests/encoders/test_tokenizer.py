"""Captions become the ids that the published pipelines make of them."""

import json

import numpy as np
import pytest
import transformers
from published_text import CORPUS, save_clip_tokenizer, save_t5_tokenizer

from dit_video.encoders.tokenizer import Cleaning, Tokenizer

TEXTS = [
    *CORPUS,
    "",
    " ",
    "  a\tfox \n jumps ",
    "A SEVEN moving up" * 9,
    "日本語 and 🦊",
    "it's",
    "<|endoftext|> a",
    "</s>",
]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    save_t5_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def clip(request, tmp_path_factory):
    """Padded as CLIP-L is, and as CLIP-G is."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip_tokenizer(folder, padding=request.param)
    return folder


def assert_as_in_transformers(folder, theirs, num_tokens: int) -> None:
    expected = theirs(TEXTS, padding="max_length", max_length=num_tokens, truncation=True, return_tensors="np")
    ids, in_caption = Tokenizer(folder, num_tokens)(TEXTS)
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(in_caption, expected.attention_mask.sum(1))


@pytest.mark.parametrize("num_tokens", [3, 20, 77])
def test_ids_of_t5_are_those_of_transformers(t5, num_tokens):
    assert_as_in_transformers(t5, transformers.T5Tokenizer.from_pretrained(t5), num_tokens)


@pytest.mark.parametrize("num_tokens", [3, 20, 77])
def test_ids_of_clip_are_those_of_transformers(clip, num_tokens):
    assert_as_in_transformers(clip, transformers.CLIPTokenizer.from_pretrained(clip), num_tokens)


def test_vocabulary_and_merges_are_the_same_tokenizer_as_the_whole(clip, tmp_path):
    model = json.loads((clip / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tmp_path / "special_tokens_map.json").write_bytes((clip / "tokenizer_config.json").read_bytes())
    for actual, expected in zip(Tokenizer(tmp_path, 30)(TEXTS), Tokenizer(clip, 30)(TEXTS)):
        np.testing.assert_array_equal(actual, expected)


def test_halves_of_characters_are_no_obstacle(t5):
    broken, mark = Tokenizer(t5, 9)(["a \ud83e fox", "a ? fox"]).ids
    np.testing.assert_array_equal(broken, mark)


def test_another_length_or_vocabulary_is_another_digest(t5, clip):
    assert len({Tokenizer(t5, 9).digest, Tokenizer(t5, 10).digest, Tokenizer(clip, 9).digest}) == 3
    assert Tokenizer(t5, 9).digest == Tokenizer(t5, 9).digest


@pytest.mark.parametrize(
    ("cleaning", "text", "expected"),
    [
        (Cleaning.NOTHING, "  A &amp; B ", "  A &amp; B "),
        (Cleaning.LOWERCASE, "  A &amp; B ", "a &amp; b"),
        (Cleaning.REPAIRED, " A  &amp;amp;\n B ", "A & B"),
        (Cleaning.REPAIRED, "the fox’s cafÃ©", "the fox's café"),
    ],
)
def test_captions_are_cleaned_as_the_published_pipelines_do(cleaning, text, expected):
    assert cleaning(text) == expected


def test_wans_pipeline_cleans_alike():
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for text in [*TEXTS, " A  &amp;amp;\n B ", "the fox’s cafÃ©"]:
        assert Cleaning.REPAIRED(text) == prompt_clean(text)


def test_a_folder_without_a_tokenizer_says_what_it_lacks(t5, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.json, and no vocab.json with merges.txt"):
        Tokenizer(tmp_path, 9)
    (tmp_path / "tokenizer.json").write_bytes((t5 / "tokenizer.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="names a pad_token"):
        Tokenizer(tmp_path, 9)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<none>"}')
    with pytest.raises(ValueError, match="pads with '<none>', which is not in the vocabulary"):
        Tokenizer(tmp_path, 9)
    (tmp_path / "tokenizer.json").write_bytes((t5 / "tokenizer.json").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"tokenizer\.json: not JSON"):
        Tokenizer(tmp_path, 9)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="so it is no vocabulary of CLIP"):
        Tokenizer(tmp_path, 9)
