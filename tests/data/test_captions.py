"""Laws of encoded captions: nothing but a cut is lost, and every batch of them has one shape."""

import numpy as np
import pytest

from dit_video.data.batch import collate
from dit_video.data.captions import BEGIN, encode_captions, length_histogram, room_for
from dit_video.data.dataset import Data
from dit_video.data.latent_cache import write_latent_cache
from dit_video.data.record import Clip, Record, Split
from dit_video.data.signals import CaptionBytes, open_all
from dit_video.data.sources import LatentCache, MovingDigits
from dit_video.data.transforms import ClipTransform

TEXTS = ["", "a seven moving up", "eine Sieben läuft", "七が上へ動く", "🎬🎞", "\U0001f3ac" * 20]


def read(row: np.ndarray) -> str:
    assert row[0] == BEGIN
    length = np.count_nonzero(row)
    np.testing.assert_array_equal(row[length:], 0)
    return row[1:length].tobytes().decode()


@pytest.mark.parametrize("num_bytes", [2, 3, 10, 17, 64, 300])
def test_a_caption_is_read_back_as_far_as_whole_characters_fit(num_bytes):
    rows = encode_captions(TEXTS, num_bytes)
    assert (rows.shape, rows.dtype) == ((len(TEXTS), num_bytes), np.uint8)
    for text, row in zip(TEXTS, rows):
        read_back = read(row)
        assert text.startswith(read_back)
        rest = text[len(read_back) :]
        assert not rest or len((read_back + rest[0]).encode()) > room_for(num_bytes)


def test_no_character_looks_like_the_beginning_or_like_padding():
    """Zero bytes are left out, and half a character, which UTF-8 cannot say, becomes a question mark."""
    rows = encode_captions(["nul\0l", "half \ud83c"], 16)
    assert [read(row) for row in rows] == ["null", "half ?"]
    everything = "".join(chr(c) for c in range(1, 0x11000, 7) if not 0xD800 <= c < 0xE000)
    assert BEGIN not in everything.encode()


def test_batches_have_captions_where_they_are_asked_for():
    clips = [Clip(key=text, start=0, video=np.zeros((1, 2, 2, 3), np.uint8), caption=text, fps=1.0) for text in TEXTS]
    assert collate(clips).signals == {}
    signals = collate(clips, open_all({"caption": CaptionBytes(num_bytes=24)})).signals
    np.testing.assert_array_equal(signals["caption"], encode_captions(TEXTS, 24))


@pytest.fixture
def data(tmp_path) -> Data:
    digits = MovingDigits(directory=str(tmp_path / "digits"), num_train=6, num_held_out=4, size=16, digit_size=10)
    return Data(
        source=digits,
        clips=ClipTransform(num_frames=5, size=(16, 16)),
        batch_size=6,
        signals={"caption": CaptionBytes(num_bytes=48)},
    )


def test_captions_come_from_the_source_and_from_its_latent_cache(data, tmp_path):
    records = list(data.source.open(Split.TRAIN))
    expected = {record.caption for record in records}
    assert {text.split(" moving ")[0] for text in expected} == {
        "a zero",
        "a one",
        "a two",
        "a three",
        "a four",
        "a five",
    }

    def encoded(record: Record) -> Clip:
        moments = np.zeros((2, 2, 2, 8), np.float32)
        return Clip(key=record.key, start=0, moments=moments, caption=record.caption, fps=record.fps)

    splits = {split: map(encoded, data.source.open(split)) for split in Split}
    write_latent_cache(tmp_path / "cache", splits, class_names=(), split_digests={}, provenance={})
    cached = Data(**vars(data) | {"cache": LatentCache(directory=str(tmp_path / "cache"))})
    for source in (data, cached):
        batches = source.train(0, 0)
        batch = next(batches)
        batches.close()
        assert {read(row) for row in batch.signals["caption"]} == expected
    (batch, _), *_ = data.judged(Split.HELD_OUT, 4, 4, seed=0)
    assert {read(row) for row in batch.signals["caption"]} == {
        record.caption for record in data.source.open(Split.HELD_OUT)
    }


def test_captions_without_room_are_refused():
    with pytest.raises(ValueError, match=r"CaptionBytes\.num_bytes=1: must be at least 2"):
        CaptionBytes(num_bytes=1)


@pytest.mark.parametrize("longest", [0, 1, 16, 17, 1000])
def test_every_length_is_in_one_bin_of_the_histogram(longest):
    lengths = np.random.default_rng(0).integers(0, longest + 1, 50)
    bins = length_histogram(lengths)
    for low, high, count in bins:
        assert count == int(((low <= lengths) & (lengths <= high)).sum())
    assert [low for low, _, _ in bins][1:] == [high + 1 for _, high, _ in bins][:-1]
    assert bins[-1][1] >= lengths.max()
