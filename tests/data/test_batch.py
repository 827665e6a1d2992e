"""Laws of records, digests of what is stored, and batches."""

import hashlib

import numpy as np
import pytest

from dit_video.data.batch import Batch, collate
from dit_video.data.captions import encode_captions
from dit_video.data.record import Clip, Examples, Record, content_digest
from dit_video.data.signals import DEFAULT_SIGNALS, CaptionBytes, open_all

FRAMES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
MOMENTS = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)


class Listed(Examples):
    """Records in memory."""

    def __init__(self, *records: Record):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    @property
    def num_frames(self) -> None:
        return None


STORED = Listed(
    Record(key="frames", video=FRAMES, num_frames=2, fps=8.0),
    Record(key="bytes", video=b"not decoded", num_frames=5, fps=8.0),
    Record(key="moments", moments=MOMENTS, fps=8.0),
    Record(key="name\udcff", video=b"", num_frames=1, fps=8.0),
)


def test_a_record_is_a_video_with_its_length_or_moments():
    defaults = Record(key="a", moments=MOMENTS, fps=1.0)
    assert (defaults.label, defaults.caption, defaults.start) == (-1, "", 0)
    assert Record(key="a", caption="text alone", fps=1.0).video is None
    with pytest.raises(ValueError, match="Record 'a': give one of video and moments, or neither"):
        Record(key="a", video=FRAMES, moments=MOMENTS, num_frames=2, fps=1.0)
    with pytest.raises(ValueError, match="Record 'a': num_frames belongs to a video"):
        Record(key="a", video=FRAMES, fps=1.0)
    with pytest.raises(ValueError, match="Record 'a': num_frames belongs to a video"):
        Record(key="a", moments=MOMENTS, num_frames=2, fps=1.0)


def test_examples_are_walked_in_order():
    assert [record.key for record in STORED] == ["frames", "bytes", "moments", "name\udcff"]


def test_a_digest_of_content_is_sha256_of_keys_and_bytes_in_order():
    """Cards hold these; the lines between are part of the definition."""
    parts = {
        0: b"frames\n|u1 (2, 4, 4, 3)\n" + FRAMES.tobytes(),
        1: b"bytes\n11\nnot decoded",
        2: b"moments\n<f4 (1, 2, 2, 2)\n" + MOMENTS.tobytes(),
        3: b"name\xff\n0\n",
    }
    for positions in ([], [0], [1], [2], [3], [2, 0, 1, 3], [1, 1]):
        expected = hashlib.sha256(b"".join(parts[position] for position in positions)).hexdigest()
        assert content_digest(STORED, positions) == expected


def test_a_digest_of_frames_does_not_ask_how_they_lie_in_memory():
    strided = np.asfortranarray(FRAMES)
    other = Listed(Record(key="frames", video=strided, num_frames=2, fps=8.0))
    assert content_digest(other, [0]) == content_digest(STORED, [0])


def clip(key: str, **fields) -> Clip:
    return Clip(**{"key": key, "start": 0, "fps": 8.0} | fields)


def test_a_batch_stacks_what_its_clips_have():
    clips = [clip("a", video=FRAMES, label=2, caption="up"), clip("b", video=FRAMES + 1, caption="down")]
    batch = collate(clips, open_all(DEFAULT_SIGNALS))
    np.testing.assert_array_equal(batch.video, [FRAMES, FRAMES + 1])
    np.testing.assert_array_equal(batch.signals["label"], np.array([2, -1], np.int32), strict=True)
    assert (batch.moments, set(batch.signals)) == (None, {"label"})
    np.testing.assert_array_equal(
        collate(clips, open_all({"caption": CaptionBytes(num_bytes=6)})).signals["caption"],
        encode_captions(["up", "down"], 6),
    )
    moments = collate([clip("a", moments=MOMENTS)])
    assert moments.video is None
    np.testing.assert_array_equal(moments.moments, [MOMENTS])


def test_clips_of_another_shape_or_kind_are_named():
    first = clip("a", video=FRAMES)
    for other, message in (
        (clip("b", video=FRAMES[:1]), r"shape of video: a has \(2, 4, 4, 3\), b has \(1, 4, 4, 3\)"),
        (clip("b", moments=MOMENTS), r"shape of video: a has \(2, 4, 4, 3\), b has None"),
    ):
        with pytest.raises(ValueError, match=message):
            collate([first, first, other])
    with pytest.raises(ValueError, match=r"shape of video: b has None, a has \(2, 4, 4, 3\)"):
        collate([clip("b", moments=MOMENTS), first])
    with pytest.raises(ValueError, match="collate: no clips"):
        collate([])


def test_who_needs_what_a_batch_lacks_is_told():
    batch = Batch(video=FRAMES[None], signals={"label": np.zeros(1, np.int32)})
    assert batch.require_video() is batch.video
    assert batch.require_signal("label") is batch.signals["label"]
    with pytest.raises(ValueError, match=r"Batch.video=None: this needs clips"):
        batch._replace(video=None).require_video()
    with pytest.raises(ValueError, match=r"Batch.signals has no 'label', .* it has none: add one to"):
        batch._replace(signals={}).require_signal("label")
