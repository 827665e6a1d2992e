"""Laws of caches on disk: the bytes are as documented, so that those of before are read; what is not is refused."""

import json
import struct

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from dit_video.data import latent_cache, text_cache
from dit_video.data.latent_cache import CachedExamples, _pack, _unpack, write_latent_cache
from dit_video.data.record import Clip, Split
from dit_video.data.shapes import BatchShape, records_by_shape
from dit_video.data.text_cache import _digest
from dit_video.data.transforms import ClipTransform
from dit_video.video.files import MAX_FPS

MOMENTS = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
CLIP = Clip(key="k", start=3, moments=MOMENTS, label=1, caption="c", fps=8.0)
HEADER = b'{"key": "k", "start": 3, "label": 1, "caption": "c", "fps": 8.0, "shape": [1, 2, 3, 2]}'


def test_a_cached_record_is_a_length_a_header_and_numbers():
    data = _pack(CLIP, MOMENTS)
    assert data == struct.pack("<I", len(HEADER)) + HEADER + np.arange(12).astype("<f4").tobytes()
    record = _unpack(data)
    np.testing.assert_array_equal(record.moments, MOMENTS)
    assert (record.key, record.start, record.label, record.caption, record.fps) == ("k", 3, 1, "c", 8.0)


@pytest.mark.parametrize(
    ("shape", "numbers"), [([12], 12), ([1, 2, 3, 3], 12), ([0, 2, 3, 2], 0), ([-1, 2, 3, 2], 12), ([1, 2, 3, 2.0], 12)]
)
def test_a_record_of_another_shape_is_refused(shape, numbers):
    header = json.dumps({**json.loads(HEADER), "shape": shape}).encode()
    data = struct.pack("<I", len(header)) + header + bytes(4 * numbers)
    with pytest.raises(ValueError, match=f"it claims moments of shape .*, and has {numbers} numbers"):
        _unpack(data)


def write(folder, rates=(8.0, 8.0), **splits) -> dict:
    clips = [Clip(key=str(i), start=0, moments=MOMENTS, fps=fps) for i, fps in enumerate(rates)]
    write_latent_cache(folder, {Split.TRAIN: clips}, class_names=("a",), split_digests={}, provenance={})
    return json.loads((folder / "manifest.json").read_text())


def test_the_manifest_has_version_one_and_a_rate_or_one_for_each(tmp_path):
    content = write(tmp_path / "same")
    assert (content["format"], content["version"]) == ("dit_video.latent_cache", 1)
    assert (content["fps"], content["num_records"]) == ({"train": 8.0}, {"train": 2})
    assert content["shards"] == {"train": ["train-00000.array_record"]}
    assert CachedExamples(tmp_path / "same", Split.TRAIN).fps.tolist() == [8.0, 8.0]
    assert write(tmp_path / "mixed", (8.0, 12.5))["fps"] == {"train": [8.0, 12.5]}
    assert CachedExamples(tmp_path / "mixed", Split.TRAIN).fps.tolist() == [8.0, 12.5]


def test_a_shard_is_ended_when_it_is_full(tmp_path, monkeypatch):
    assert (latent_cache._SHARD_SIZE, text_cache._SHARD_SIZE) == (512 * 1024**2, 256 * 1024**2)
    size = len(_pack(Clip(key="0", start=0, moments=MOMENTS, fps=8.0), MOMENTS))
    for limit, shards in ((size, 3), (size + 1, 2), (2 * size, 2), (3 * size, 1)):
        monkeypatch.setattr(latent_cache, "_SHARD_SIZE", limit)
        folder = tmp_path / str(limit)
        names = write(folder, (8.0,) * 3)["shards"]["train"]
        assert names == [f"train-{number:05d}.array_record" for number in range(shards)]
        assert [record.key for record in CachedExamples(folder, Split.TRAIN)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, but a latent cache has 'dit_video.latent_cache' version 1"),
        ({"class_names": {}}, "class_names={}: must be a list"),
        ({"class_names": [1]}, "1 is no name"),
        ({"num_records": {"test": 2}}, "num_records.test=2: must be of train or held_out, and a int"),
        ({"num_records": {"train": "2"}}, "num_records.train='2': must be of train or held_out, and a int"),
        ({"num_records": {"train": 3}, "fps": {}}, "2 records, but the manifest says 3"),
        ({"fps": {"train": 0}}, "fps.train=0: must be a rate, or one for each record"),
        ({"fps": {"train": True}}, "fps.train=True: must be a rate"),
        ({"fps": {"train": MAX_FPS + 1}}, "fps.train=90001: must be a rate"),
        ({"fps": {"train": [8.0]}}, r"fps.train=\[8.0\]: must be a rate, or one for each record"),
        ({"fps": 8.0}, "fps=8.0: must be an object"),
        ({"shards": {"train": ["a\n"]}}, r"shard 'a\\n' is not in the folder"),
        ({"shards": {}}, "the cache holds no train records"),
        ({"shards": {"train": []}}, r"\(train\): its records are damaged .*make the cache again"),
        ({"shards": {"train": ["another"]}}, r"\(train\): its records are damaged .*make the cache again"),
    ],
)
def test_a_manifest_of_another_content_is_refused(tmp_path, change, message):
    content = write(tmp_path / "cache")
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        CachedExamples(tmp_path / "cache", Split.TRAIN)


def test_a_rate_at_the_limit_is_one_and_caches_of_before_have_none(tmp_path):
    content = write(tmp_path / "cache")
    for fps, expected in ({"train": MAX_FPS}, [MAX_FPS] * 2), ({"train": [1, 2]}, [1, 2]), ({}, None):
        (tmp_path / "cache" / "manifest.json").write_text(json.dumps(content | {"fps": fps}))
        rates = CachedExamples(tmp_path / "cache", Split.TRAIN).fps
        assert (rates if rates is None else rates.tolist()) == expected


def test_captions_are_found_by_the_first_128_bits_of_their_sha256():
    assert _digest("") == (1449310910991872227, 2646268962349054874)
    assert _digest("a fox") == (1539679554248031070, 9616335432774995836)


def test_cached_clips_of_several_shapes_go_to_those_that_they_were_cut_to(tmp_path):
    kinds = {(1, 2, 3): (1, 16, 24), (2, 2, 2): (5, 16, 16)}
    clips = [
        Clip(key=str(i), start=0, moments=np.full((*(list(kinds)[i % 2]), 2), i, np.float32), label=i, fps=8.0)
        for i in range(5)
    ]
    write_latent_cache(
        tmp_path / "cache",
        {Split.TRAIN: clips, Split.HELD_OUT: [CLIP]},
        class_names=("a",),
        split_digests={},
        provenance={},
        clip_of=kinds,
    )
    examples = CachedExamples(tmp_path / "cache", Split.TRAIN)
    assert CachedExamples(tmp_path / "cache", Split.HELD_OUT).cut_to is None
    shapes = [BatchShape(num_frames=t, size=size, batch_size=2) for t, size in [(5, (16, 16)), (1, (16, 24))]]
    by_shape = records_by_shape(examples, shapes, ClipTransform())
    assert [[record.label for record in records] for records in by_shape] == [[1, 3], [0, 2, 4]]
    assert {record.moments.shape[:3] for record in by_shape[0]} == {(2, 2, 2)}
    with pytest.raises(ValueError, match=r"shapes\[0\]=9x16x16: none of the 5 .* encode again"):
        records_by_shape(examples, [BatchShape(num_frames=9, size=(16, 16))], ClipTransform())
    manifest = tmp_path / "cache" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"cut_to": [[1, 2]]}))
    with pytest.raises(ValueError, match=r"cut_to=.*: must be frames, height and width of each training clip"):
        CachedExamples(tmp_path / "cache", Split.TRAIN)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"abc", "unpack_from requires a buffer"),
        (struct.pack("<I", 7) + b"no json", "Expecting value"),
        (struct.pack("<I", 2) + b"{}", "its header is {}"),
        (_pack(CLIP, MOMENTS)[:-4], "and has 11 numbers"),
    ],
)
def test_a_damaged_record_is_named_with_its_place_and_the_remedy(tmp_path, data, why):
    write(tmp_path / "cache")
    shard = tmp_path / "cache" / "train-00000.array_record"
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in (_pack(CLIP, MOMENTS), data):
        writer.write(record)
    writer.close()
    manifest = tmp_path / "cache" / "manifest.json"
    content = json.loads(manifest.read_text())
    content.pop("files", None)
    manifest.write_text(json.dumps(content))
    examples = CachedExamples(tmp_path / "cache", Split.TRAIN)
    assert examples[0].key == "k"
    with pytest.raises(ValueError, match=rf"cache \(train\): record 1 is damaged \(.*{why}.*\); make the cache again"):
        examples[1]
