"""Laws of the sources: what was put in comes out, and what is not there says how to make it."""

import dataclasses
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sample_videos import waves

from dit_video.data import shard_files
from dit_video.data.builders import DigitSettings, moving_digit
from dit_video.data.dataset import Data
from dit_video.data.latent_cache import CodecQuality, write_latent_cache
from dit_video.data.record import NO_LABEL, Clip, Split
from dit_video.data.sources import LatentCache, MovingDigits, NoData, TFDSSet, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.video.decode import decode

DIGITS = {"num_train": 12, "num_held_out": 11, "size": 24, "num_frames": 5, "digit_size": 16, "seed": 0}


def test_a_missing_set_names_the_command_that_makes_it(tmp_path):
    for directory in ("nowhere", "."):
        with pytest.raises(FileNotFoundError, match=r"dit-video data ingest FOLDER_OR_TAR --out"):
            VideoSet(directory=str(tmp_path / directory)).open(Split.TRAIN)
    with pytest.raises(FileNotFoundError, match="dit-video encode"):
        LatentCache(directory=str(tmp_path)).open(Split.TRAIN)
    with pytest.raises(FileNotFoundError, match="tfds build ucf101"):
        TFDSSet(name="ucf101", data_dir=str(tmp_path)).open(Split.TRAIN)


def test_records_agree_with_the_manifest(video_set):
    source = VideoSet(directory=str(video_set))
    manifest, info = source.manifest(), source.info()
    assert info.class_names == ("cat", "dog")
    for split in Split:
        examples, entries = source.open(split), manifest.stored(split)
        assert info.num_records[split] == len(examples) == len(entries)
        np.testing.assert_array_equal(examples.num_frames, [entry.frames for entry in entries])
        for record, entry in zip(examples, entries):
            assert (record.key, record.label) == (entry.file, info.class_names.index(entry.label))
            assert decode(record.video)[0].shape[0] == entry.frames
    assert info.split_digest[Split.TRAIN] != info.split_digest[Split.HELD_OUT]


def test_one_flipped_bit_is_noticed_and_the_record_named(video_set):
    source = VideoSet(directory=str(video_set))
    shard = next(video_set.glob("*train.array_record*"))
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    entries = source.manifest().stored(Split.TRAIN)
    with pytest.raises(ValueError, match=r"train\): record \d+ \('(cat|dog)/\d.mp4'\) is damaged"):
        [source.open(Split.TRAIN)[index] for index in range(len(entries))]


def test_digits_are_labelled_captioned_and_balanced(tmp_path):
    source = MovingDigits(directory=str(tmp_path / "digits"), **DIGITS)
    examples = source.open(Split.TRAIN)
    names = source.info().class_names
    assert sorted(record.label for record in examples) == sorted(i % 10 for i in range(12))
    for record in examples:
        assert names[record.label] in record.caption
        assert decode(record.video)[0].shape == (5, 24, 24, 3)
    # The same value opens the same folder again; another refuses it, naming what differs.
    assert source.open(Split.HELD_OUT).num_frames.tolist() == [5] * 11
    other = MovingDigits(directory=source.directory, **DIGITS | {"num_train": 13})
    with pytest.raises(ValueError, match=r"MovingDigits.num_train=13: .* made with num_train=12"):
        other.open(Split.TRAIN)


def test_held_out_digits_are_in_no_training_clip():
    settings = DigitSettings(**DIGITS)
    train, held_out = ({moving_digit(settings, s, i)[0] for i in range(300)} for s in Split)
    assert not train & held_out


def test_digits_move_as_their_caption_says():
    settings = DigitSettings(**DIGITS | {"size": 64, "num_frames": 2})
    for clip in range(30):
        _, _, caption, video = moving_digit(settings, Split.TRAIN, clip)
        weight = video[..., 0].astype(float) - video.min()
        rows, columns = np.mgrid[:64, :64]
        moved = [np.diff((weight * axis).sum((1, 2)) / weight.sum((1, 2)))[0] for axis in (rows, columns)]
        # A digit beside an edge may bounce at once; then only its speed is known.
        if all(20 < (weight[0] * axis).sum() / weight[0].sum() < 44 for axis in (rows, columns)):
            for word, towards in (("up", -moved[0]), ("down", moved[0]), ("left", -moved[1]), ("right", moved[1])):
                assert towards > 0 or not re.search(rf"\b{word}\b", caption), caption


def test_the_digit_that_moves_is_the_same_everywhere():
    settings = DigitSettings(**DIGITS)
    first, second = (moving_digit(settings, Split.TRAIN, 3) for _ in range(2))
    assert first[:3] == second[:3]
    np.testing.assert_array_equal(first[3], second[3])


def test_values_that_an_experiment_does_not_say_are_those_they_were():
    """Another default would be another experiment under the same file."""
    digits = MovingDigits(directory="x")
    assert dataclasses.astuple(digits) == ("x", 4000, 500, 32, 9, 20, 0)
    assert (TFDSSet(name="a", data_dir="b").fps, NoData().fps) == (25.0, 8.0)
    nothing = NoData(class_names=("a",)).info()
    assert (nothing.class_names, set(nothing.num_records.values()), nothing.split_digest) == (("a",), {0}, {})


def test_of_several_versions_the_newest_is_opened_or_the_one_that_is_named(tmp_path):
    def directory(name: str) -> str:
        return TFDSSet(name=name, data_dir=str(tmp_path))._directory().name

    for version in ("1.9.0", "1.10.0", "2.0.0"):
        (tmp_path / "mine" / version).mkdir(parents=True)
        if version != "2.0.0":
            (tmp_path / "mine" / version / "dataset_info.json").write_text("{}")
    assert (directory("mine"), directory("mine:1.9.0")) == ("1.10.0", "1.9.0")
    with pytest.raises(FileNotFoundError, match=r"holds no prepared version 2\.0\.0"):
        directory("mine:2.0.0")
    with pytest.raises(FileNotFoundError, match="tfds build other --data_dir="):
        directory("other:1.0.0")


def test_impossible_digits_name_the_field():
    with pytest.raises(ValueError, match=r"MovingDigits\.size=31: must be even"):
        MovingDigits(size=31)
    with pytest.raises(ValueError, match=r"MovingDigits\.digit_size=40"):
        MovingDigits(digit_size=40)


def moments_of(index: int) -> Clip:
    moments = np.random.default_rng(index).normal(size=(3, 2, 2, 8)).astype(np.float32)
    return Clip(key=f"k{index}", start=index, moments=moments, label=index, caption=f"c{index}", fps=12.5)


def test_a_latent_cache_returns_what_was_written(tmp_path):
    write_latent_cache(
        tmp_path / "cache",
        {Split.TRAIN: (moments_of(i) for i in range(4)), Split.HELD_OUT: [moments_of(9)]},
        class_names=("a", "b"),
        split_digests={Split.TRAIN: "t", Split.HELD_OUT: "h"},
        provenance={"vae": "abc", "size": [64, 64]},
    )
    cache = LatentCache(directory=str(tmp_path / "cache"))
    assert cache.provenance() == {"vae": "abc", "size": [64, 64]}
    assert cache.info().num_records == {Split.TRAIN: 4, Split.HELD_OUT: 1}
    assert cache.info().split_digest == {Split.TRAIN: "t", Split.HELD_OUT: "h"}
    examples = cache.open(Split.TRAIN)
    assert examples.num_frames is None
    for index, record in enumerate(examples):
        clip = moments_of(index)
        np.testing.assert_array_equal(record.moments, clip.moments)
        assert (record.key, record.start, record.label, record.caption) == (clip.key, index, index, clip.caption)


QUALITY = CodecQuality(split="held_out", num_clips=3, psnr=20.0, psnr_mean_frame=20.5)


def test_a_cache_keeps_how_good_its_codec_is(tmp_path):
    assert LatentCache(directory=str(tmp_path / "cache")).quality() is None, "before it is there"
    moments = {Split.TRAIN: [moments_of(0)]}
    write_latent_cache(tmp_path / "cache", moments, class_names=(), split_digests={}, provenance={}, quality=QUALITY)
    cache = LatentCache(directory=str(tmp_path / "cache"))
    assert cache.quality() == QUALITY
    path = tmp_path / "cache" / "manifest.json"
    content = json.loads(path.read_text())
    for wrong in (None, {}, {**content["quality"], "psnr": "20"}, {**content["quality"], "split": "x"}, [1]):
        path.write_text(json.dumps(content | {"quality": wrong}))
        with pytest.raises(ValueError, match=r"manifest\.json: quality="):
            cache.quality()


@pytest.mark.parametrize(("psnr", "warned"), [(20.4, True), (20.5, False), (30.0, False)])
def test_a_codec_that_a_still_picture_beats_is_warned_of(psnr, warned):
    lines = dataclasses.replace(QUALITY, psnr=psnr).warnings()
    assert [re.findall(r"[\d.]+", line) for line in lines] == [["20.40", "3", "20.50"]] * warned


def cache_of(folder, seed, split=Split.TRAIN):
    """A cache of clips with the same keys, whatever `seed` their moments are of."""
    clips = [replace(moments_of(i), moments=moments_of(seed + i).moments) for i in range(4)]
    write_latent_cache(folder, {split: clips}, class_names=(), split_digests={}, provenance={})
    return folder / f"{split}-00000.array_record"


def test_a_shard_with_the_moments_of_other_clips_is_noticed(tmp_path, monkeypatch):
    """Those of few bytes whenever they are opened; the sizes of others then, and their contents on demand."""
    ours, theirs = cache_of(tmp_path / "ours", 0), cache_of(tmp_path / "theirs", 100)
    cache = LatentCache(directory=str(tmp_path / "ours"))
    assert len(cache.open(Split.TRAIN)) == 4
    shutil.copy(theirs, ours)
    with pytest.raises(ValueError, match=r"train-00000.array_record: is not the file that was written.*again"):
        cache.open(Split.TRAIN)
    monkeypatch.setattr(shard_files, "CHEAP", 1000)
    assert len(cache.open(Split.TRAIN)) == 4
    with pytest.raises(ValueError, match="is not the file that was written"):
        shard_files.check_contents(tmp_path / "ours", cache.manifest().files, "make it again")
    with ours.open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"train-00000\.array_record: has .* bytes, the manifest says"):
        cache.open(Split.TRAIN)
    ours.unlink()
    with pytest.raises(ValueError, match=r"train-00000\.array_record: is not there"):
        cache.open(Split.TRAIN)


def test_verifying_data_reads_every_shard_that_is_there(tmp_path):
    shard = cache_of(tmp_path / "cache", 0)
    cache = LatentCache(directory=str(tmp_path / "cache"))
    nowhere = MovingDigits(directory=str(tmp_path / "nowhere"))
    data = Data(source=nowhere, clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=4, cache=cache)
    read = []
    assert data.verify(read.append) == {cache.directory: ""}
    assert read == [shard.stat().st_size]
    cache_of(tmp_path / "other", 9).replace(shard)
    assert "is not the file that was written" in data.verify(lambda num_bytes: None)[cache.directory]
    assert not (tmp_path / "nowhere").exists()


def test_a_shard_of_a_set_is_compared_and_what_is_from_before_is_read_without(tmp_path, video_set):
    cache_of(tmp_path / "cache", 0)
    source = VideoSet(directory=str(video_set))
    before, shard = source.info(), next(video_set.glob("*-train.array_record*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    with pytest.raises(ValueError, match=f"{shard.name}: is not the file that was written"):
        shard_files.check_contents(video_set, source.manifest().files, "make it again")
    shard.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=f"{shard.name}: has {len(data) - 100} bytes, the manifest says {len(data)};"):
        source.open(Split.TRAIN)
    shard.write_bytes(data)
    for folder in (tmp_path / "cache", video_set):
        content = json.loads((folder / "manifest.json").read_text())
        assert content.pop("files")
        (folder / "manifest.json").write_text(json.dumps(content, indent=1))
    assert len(LatentCache(directory=str(tmp_path / "cache")).open(Split.TRAIN)) == 4
    assert len(source.open(Split.TRAIN)) == before.num_records[Split.TRAIN]
    assert source.info() == before


@pytest.mark.parametrize(
    "files",
    [[], {"a": 1}, {"a": {"bytes": 1}}, {"a": {"bytes": True, "sha256": ""}}, {"../a": {"bytes": 1, "sha256": ""}}],
)
def test_what_cannot_be_files_of_a_manifest_is_refused(tmp_path, files):
    cache_of(tmp_path / "cache", 0)
    path = tmp_path / "cache" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    with pytest.raises(ValueError, match=r"manifest.json: (files|file '../a')"):
        LatentCache(directory=str(path.parent)).open(Split.TRAIN)


def test_a_failed_cache_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no clips in train"):
        write_latent_cache(tmp_path / "cache", {Split.TRAIN: []}, class_names=(), split_digests={}, provenance={})
    assert list(tmp_path.iterdir()) == []


class Pictures(tfds.core.GeneratorBasedBuilder):
    """A TFDS set whose videos are sequences of images."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = {"frames": tfds.features.Sequence(tfds.features.Image(shape=(32, 48, 3), encoding_format="png"))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(3):
            pngs = []
            for frame in waves(index, num_frames=4):
                pngs.append(io.BytesIO())
                Image.fromarray(frame).save(pngs[-1], "PNG")
                pngs[-1].seek(0)
            yield index, {"frames": pngs}


def test_a_prepared_set_of_image_sequences_loads_by_name(tmp_path):
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    Pictures(data_dir=str(tmp_path), file_format="array_record").download_and_prepare(download_config=config)
    source = TFDSSet(name="pictures", data_dir=str(tmp_path), video="frames", label=None, held_out="train[2:]")
    examples = source.open(Split.TRAIN)
    assert examples.num_frames.tolist() == [4, 4, 4]
    assert examples.fps.tolist() == [25.0] * 3
    assert examples[0].label == NO_LABEL
    expected = [waves(index, num_frames=4) for index in range(3)]
    assert all(any(np.array_equal(record.video, video) for video in expected) for record in examples)
    assert source.info().num_records == {Split.TRAIN: 3, Split.HELD_OUT: 1}
    with pytest.raises(ValueError, match=r"TFDSSet\.video='video': pictures has no such feature; it has frames"):
        TFDSSet(name="pictures", data_dir=str(tmp_path)).open(Split.TRAIN)


def test_a_prepared_set_of_mp4_bytes_loads_by_name(video_set, tmp_path):
    (tmp_path / "tfds" / "mine").mkdir(parents=True)
    video_set.rename(tmp_path / "tfds" / "mine" / "1.0.0")
    source = TFDSSet(name="mine", data_dir=str(tmp_path / "tfds"), caption="caption", held_out="held_out")
    examples = source.open(Split.TRAIN)
    assert source.info().class_names == ("cat", "dog")
    assert set(examples.num_frames) == {20}
    assert decode(examples[0].video)[0].shape == (20, 32, 48, 3)
    assert examples[0].fps == 10.0


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dataset_info.json", lambda c: c | {"fileFormat": "tfrecord"}, "tfds convert_format --dataset_version_dir="),
        (
            "features.json",
            lambda c: {"featuresDict": {"features": {"video": {"pythonClassName": "tfds.video_feature.Video"}}}},
            "tfds.features.Video, which cannot be opened without TensorFlow",
        ),
    ],
)
def test_sets_that_need_tensorflow_say_how_to_convert_them(video_set, tmp_path, file, change, message):
    folder = tmp_path / "tfds" / "mine" / "1.0.0"
    folder.parent.mkdir(parents=True)
    video_set.rename(folder)
    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))
    with pytest.raises(ValueError, match=message):
        TFDSSet(name="mine", data_dir=str(tmp_path / "tfds"), label=None).open(Split.TRAIN)
