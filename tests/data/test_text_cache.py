"""Text-embedding cache: what was written is read back, from many threads, or an error names the damage."""

import concurrent.futures
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from dit_video.arrays import Text
from dit_video.data import text_cache
from dit_video.data.batch import collate
from dit_video.data.record import Clip
from dit_video.data.signals import open_all
from dit_video.data.text_cache import TextCache, TextDtype, add_texts

L, E, P = 5, 3, 2
# One with a half of a character, as damaged tables have them.
CAPTIONS = ["", "a fox", "ein Fuchs läuft", "日本語", "broken \ud83e", "a fox "]
MADE = {"encoders": "toys"}


def texts(captions: Sequence[str], seed: int = 0) -> Text:
    rng = np.random.default_rng(seed)
    num_tokens = np.array([1 + i % L for i in range(len(captions))], np.int32)
    tokens = rng.normal(size=(len(captions), L, E)).astype(np.float32)
    return Text(tokens, num_tokens, rng.normal(size=(len(captions), P)).astype(np.float32))


def padded(text: Text, dtype: TextDtype) -> Text:
    """With zeros in the place of what means nothing, and rounded."""
    meant = np.arange(L) < text.num_tokens[:, None]
    tokens = np.where(meant[..., None], text.tokens, 0)
    return Text(tokens.astype(dtype.dtype), text.num_tokens, text.pooled.astype(dtype.dtype))


def write(folder, captions=CAPTIONS, dtype=TextDtype.BFLOAT16, **changes) -> TextCache:
    add_texts(folder, [(captions, texts(captions))], provenance=MADE, dtype=dtype, **changes)
    return TextCache(directory=str(folder), dtype=dtype)


def assert_equal(actual: Text, expected: Text) -> None:
    for a, b in zip(actual, expected):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("dtype", TextDtype)
def test_what_was_written_is_read_in_any_order(dtype, tmp_path):
    expected, opened = padded(texts(CAPTIONS), dtype), write(tmp_path, dtype=dtype).embeddings()
    assert_equal(opened(CAPTIONS), expected)
    order = [3, 0, 0, 4, 1]
    assert_equal(opened([CAPTIONS[i] for i in order]), Text(*(field[order] for field in expected)))
    assert len(opened) == len(CAPTIONS)
    assert all(caption in opened for caption in CAPTIONS)
    assert "A fox" not in opened


def test_many_threads_read_at_once(tmp_path):
    expected, opened = padded(texts(CAPTIONS), TextDtype.BFLOAT16), write(tmp_path).embeddings()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = pool.map(lambda i: opened([CAPTIONS[i % len(CAPTIONS)]]), range(200))
    for i, row in enumerate(rows):
        place = i % len(CAPTIONS)
        assert_equal(row, Text(*(field[place : place + 1] for field in expected)))


def test_captions_are_added_in_shards_without_touching_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "_SHARD_SIZE", 1)  # a shard for every group
    cache = write(tmp_path, CAPTIONS[:2])
    digest = cache.manifest().digest
    before = {path.name: path.read_bytes() for path in tmp_path.glob("text-*")}
    add_texts(tmp_path, [([c], texts([c], i)) for i, c in enumerate(CAPTIONS[2:])], provenance=MADE, dtype=cache.dtype)
    opened = cache.embeddings()
    assert len(opened.manifest.shards) == 5
    assert_equal(opened(CAPTIONS[:2]), padded(texts(CAPTIONS[:2]), cache.dtype))
    for i, caption in enumerate(CAPTIONS[2:]):
        assert_equal(opened([caption]), padded(texts([caption], i), cache.dtype))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert cache.manifest().digest == digest, "a run on the captions that were there goes on"


def test_what_was_embedded_before_an_interrupt_stays(tmp_path):
    def some() -> Iterator[tuple[Sequence[str], Text]]:
        yield CAPTIONS[:2], texts(CAPTIONS[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_texts(tmp_path, some(), provenance=MADE, dtype=TextDtype.BFLOAT16)
    opened = TextCache(directory=str(tmp_path)).embeddings()
    assert len(opened) == 2
    # As where the machine went down: files that no manifest names.
    (tmp_path / "text-00001.array_record").write_bytes(b"half")
    add_texts(tmp_path, [(CAPTIONS[2:], texts(CAPTIONS[2:]))], provenance=MADE, dtype=TextDtype.BFLOAT16)
    opened = TextCache(directory=str(tmp_path)).embeddings()
    assert_equal(opened(CAPTIONS[2:]), padded(texts(CAPTIONS[2:]), TextDtype.BFLOAT16))


def test_captions_with_equal_first_halves_of_their_digests_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "_digest", lambda caption: (7, len(caption)))
    captions = ["", "ab", "a"]
    opened = write(tmp_path, captions).embeddings()
    assert_equal(opened(captions), padded(texts(captions), TextDtype.BFLOAT16))
    assert "abc" not in opened


def test_a_batch_has_the_embeddings_of_its_captions(tmp_path):
    cache = write(tmp_path)
    moments = np.zeros((1, 2, 2, 4), np.float32)
    clips = [Clip(key=str(i), start=0, moments=moments, caption=CAPTIONS[i], fps=8.0) for i in (2, 1)]
    readers = open_all({"text": cache})
    assert_equal(collate(clips, readers).signals["text"], cache.embeddings()([CAPTIONS[2], CAPTIONS[1]]))
    with pytest.raises(ValueError, match=r"no embedding of the caption 'an owl'; add it with: dit-video encode"):
        collate([dataclasses.replace(clips[0], caption="an owl")], readers)


def test_numbers_that_the_type_does_not_hold_are_an_error_that_names_the_caption(tmp_path):
    large = texts(["", "loud"])
    large.pooled[1, 0] = 1e6
    with pytest.raises(ValueError, match="the embedding of 'loud' has numbers that float16 does not hold"):
        add_texts(tmp_path, [(["", "loud"], large)], provenance=MADE, dtype=TextDtype.FLOAT16)
    add_texts(tmp_path / "wide", [(["", "loud"], large)], provenance=MADE, dtype=TextDtype.FLOAT32)


def test_a_cache_of_another_kind_is_refused(tmp_path):
    cache = write(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"config\.data\.signals\.text\.dtype=float32: .* holds bfloat16"):
        dataclasses.replace(cache, dtype=TextDtype.FLOAT32).embeddings()
    with pytest.raises(ValueError, match=r"config\.data\.signals\.text\.digest=0123.*other encoders made it"):
        dataclasses.replace(cache, digest="0123").embeddings()
    with pytest.raises(FileNotFoundError, match="is no text cache"):
        TextCache(directory=str(tmp_path)).embeddings()
    other = Text(np.zeros((1, L, E + 1), np.float32), np.ones(1, np.int32), np.zeros((1, P), np.float32))
    with pytest.raises(ValueError, match="its embeddings have"):
        add_texts(cache.directory, [(["new"], other)], provenance=MADE, dtype=cache.dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "dit_video.latent_cache"}, "a text cache has 'dit_video.text_cache'"),
        ({"num_tokens": 0}, "num_tokens=0: must be at least 1"),
        ({"hidden_size": "wide"}, "hidden_size='wide': must be a whole number"),
        ({"dtype": "int8"}, "dtype='int8': float32, float16, bfloat16 are known"),
        ({"shards": {"../text-00000.array_record": 6}}, "is not in the folder"),
        ({"shards": {}}, "it has no shards"),
        ({"shards": {"text-00000.array_record": 5}}, r"uint64 \[6, 2\], the manifest says uint64 \[5, 2\]"),
        ({"hidden_size": E + 1}, "the embedding of 'a fox' is damaged"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(tmp_path, change, message):
    cache = write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        cache.embeddings()(["a fox"])


def test_files_that_were_changed_are_refused(tmp_path):
    cache = write(tmp_path / "texts")
    for name in ("text-00000.npy", "text-00000.array_record"):
        shutil.copytree(tmp_path / "texts", tmp_path / name)
        path = tmp_path / name / name
        path.write_bytes(path.read_bytes()[:9])
        with pytest.raises(ValueError, match=f"{name}: has 9 bytes, the manifest says .*; delete the folder"):
            dataclasses.replace(cache, directory=str(tmp_path / name)).embeddings()
    # A cache from before does not know its files.
    manifest = tmp_path / "texts" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}}))
    np.save(tmp_path / "texts" / "text-00000.npy", np.zeros(6, np.int64))
    with pytest.raises(ValueError, match=r"text-00000.npy: int64 \[6\], the manifest says uint64"):
        cache.embeddings()
    # The index of another cache.
    write(tmp_path / "other", CAPTIONS[::-1])
    shutil.copy(tmp_path / "other" / "text-00000.npy", tmp_path / "texts" / "text-00000.npy")
    with pytest.raises(ValueError, match="the embedding of '日本語' is damaged"):
        cache.embeddings()(["日本語"])
