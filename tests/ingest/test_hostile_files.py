"""Laws of untrusted files: read, or refused by name; never followed, never more memory or time than stated."""

import json
import os
import signal
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dit_video import experiment as experiments
from dit_video.config.json_file import read_object
from dit_video.config.user_file import ExperimentError
from dit_video.data.latent_cache import CachedExamples, write_latent_cache
from dit_video.data.record import Clip, Split
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.ingest import probe
from dit_video.ingest.decoding_process import decoding_processes
from dit_video.ingest.ingest import ingest
from dit_video.video import decode as decoding_module
from dit_video.video import files
from dit_video.video.decode import decode, decode_window, read_video
from dit_video.video.encode import encode_mp4
from dit_video.video.pictures import MAX_FRAME_PIXELS, VideoError
from dit_video.weights.files import read_tensors

sys.path.insert(0, str(Path(__file__).parents[2]))
from dit_video.config.components import to_json
from tools.hostile_files import FAMILIES, moving_bars, small_sets


@pytest.fixture(scope="module")
def good() -> bytes:
    return encode_mp4(moving_bars(0), 25.0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    """A video set and a latent cache; copied by who changes them."""
    return small_sets(tmp_path_factory.mktemp("sets"))


# --- videos ---


def bomb(data: bytes, num_samples: int) -> bytes:
    """An mp4 whose tables claim samples of one byte, all in its first chunk."""
    spoiled = bytearray(data)
    size, chunks, times = (data.index(name) for name in (b"stsz", b"stsc", b"stts"))
    spoiled[size + 8 : size + 16] = struct.pack(">II", 1, num_samples)
    spoiled[chunks + 16 : chunks + 20] = struct.pack(">I", num_samples)
    spoiled[times + 12 : times + 16] = struct.pack(">I", num_samples)
    return bytes(spoiled)


def gif(width: int, height: int) -> bytes:
    picture = b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\x00\x02\x02\x4c\x01\x00"
    colours = b"\x80\x00\x00" + bytes(3) + b"\xff" * 3
    return b"GIF89a" + struct.pack("<HH", width, height) + colours + picture * 2 + b"\x3b"


def test_a_frame_has_a_largest_size():
    with pytest.raises(VideoError, match=rf"16000 x 16000 pixels a frame, more than {MAX_FRAME_PIXELS}"):
        decode(b"YUV4MPEG2 W16000 H16000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000))
    # Where the container does not say, FFmpeg refuses the frame, as it does what is beyond its own limits.
    with pytest.raises(VideoError, match="after frame 0"):
        decode(gif(65535, 65535))


def test_scaling_a_thin_strip_is_bounded_too():
    strip = gif(60000, 2)
    with pytest.raises(VideoError, match=r"to cover 2048 x 2048, 60000 x 2 becomes .* pixels a frame"):
        decode_window(strip, start=0, num_frames=1, cover=(2048, 2048))


@pytest.mark.parametrize(
    ("module", "limit", "value", "message"),
    [
        (files, "MAX_FRAMES", 5, "more than 5 (frames|packets); cut it"),
        (files, "MAX_VIDEO_PIXELS", 5000, "decodes to more than 5000 pixels within 4 frames"),
        (decoding_module, "MAX_DECODED_BYTES", 30_000, "7 frames take more than 30000 bytes"),
    ],
)
def test_a_video_that_does_not_end_is_cut_off(good, monkeypatch, module, limit, value, message):
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(VideoError, match=message):
        decode(good)


def test_what_a_decoder_takes_is_bounded_by_its_process(good, tmp_path):
    path = tmp_path / "bomb.mp4"
    path.write_bytes(bomb(good, 20_000_000))
    with decoding_processes(1, max_bytes=256 << 20) as decoding:
        with pytest.raises(VideoError):
            decoding.run(probe.probe, path)
        path.write_bytes(good)
        facts = {"frames": 12, "fps": 25.0, "width": 48, "height": 32, "left_out": 0, "doubled": 0, "notes": ""}
        assert decoding.run(probe.probe, path) == {**facts, "chosen": None}


def test_a_file_that_takes_the_decoder_with_it_is_a_reason_and_the_next_one_is_read(good, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(good)
    with decoding_processes(1) as decoding:
        decoding.run(probe.probe, path)
        process = decoding._idle.get()
        process._started.send_signal(signal.SIGSEGV)
        process._started.wait()
        decoding._idle.put(process)
        with pytest.raises(VideoError, match=r"crashes the decoder \(SIGSEGV\)"):
            decoding.run(probe.probe, path)
        assert decoding.run(probe.probe, path)["frames"] == 12


def test_a_file_that_keeps_the_decoder_busy_is_given_up(good, tmp_path):
    path = tmp_path / "bomb.mp4"
    path.write_bytes(bomb(good, 20_000_000))
    with (
        decoding_processes(1, max_seconds=1) as decoding,
        pytest.raises(VideoError, match="takes more than 1 s of processor time to decode"),
    ):
        decoding.run(probe.probe, path)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
    "innocent.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_is_never_followed_to_another(good, tmp_path, name):
    (tmp_path / "secret.mp4").write_bytes(good)
    (tmp_path / name).write_text(PLAYLISTS[name])
    with pytest.raises(VideoError, match=rf"{name}: not a readable video"):
        read_video(tmp_path / name)


def test_names_are_no_addresses(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("http:clip.mp4").write_bytes(good)
    assert read_video("http:clip.mp4")[0].shape == (12, 32, 48, 3)
    os.mkfifo("endless.mp4")
    with pytest.raises(VideoError, match=r"endless\.mp4: not a regular file"):
        read_video("endless.mp4")


def test_a_name_that_is_no_text_is_skipped_with_its_bytes(good, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(good)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")).write_bytes(encode_mp4(moving_bars(1), 25.0))
    manifest = ingest([folder], tmp_path / "set", held_out_fraction=0.0)
    assert {entry.file: entry.reason for entry in manifest.skipped()} == {r"\udcff.mp4": "its name is not UTF-8"}


def test_one_hostile_file_costs_an_ingest_that_file_only(good, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(good)
    (folder / "huge.gif").write_bytes(gif(65535, 65535))
    (folder / "list.mp4").write_text(PLAYLISTS["innocent.mp4"])
    (folder / "cut.mp4").write_bytes(good[:-900])
    (folder / "none.mp4").write_bytes(good[:40])
    manifest = ingest([folder], tmp_path / "set", held_out_fraction=0.0)
    assert [entry.file for entry in manifest.stored(Split.TRAIN)] == ["good.mp4"]
    assert {entry.file for entry in manifest.skipped() if entry.reason} == {
        *("huge.gif", "list.mp4", "cut.mp4", "none.mp4")
    }


# --- weights ---


def header(**tensors: tuple[str, list[int], list[int]]) -> bytes:
    fields = ("dtype", "shape", "data_offsets")
    return json.dumps({name: dict(zip(fields, values)) for name, values in tensors.items()}).encode()


SAFETENSORS = {
    "overlap": (header(a=("F32", [4], [0, 16]), b=("F32", [2], [8, 16])), "offset"),
    "gap": (header(a=("F32", [2], [8, 16])), "offset"),
    "negative": (header(a=("F32", [4], [-16, 0])), "not a whole safetensors file"),
    "backwards": (header(a=("F32", [4], [16, 0])), "not a whole safetensors file"),
    "negative length": (header(a=("F32", [-4], [0, 16])), "not a whole safetensors file"),
    "name twice": (b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},' * 2, "not a whole safetensors file"),
    "nested": (b"[" * 200_000, "not a whole safetensors file"),
    "text": (b"not JSON", "not a whole safetensors file"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_say_what_they_hold_or_are_refused(tmp_path, case):
    text, message = SAFETENSORS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(ValueError, match=message) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


def test_an_npz_that_lies_about_its_size_takes_no_more_than_it_has(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, w=np.zeros(10_000_000, np.uint8))
    data = path.read_bytes()
    # The directory of the archive claims that the entry is small; what it unpacks to is 10 MB.
    small = data.replace(struct.pack("<I", 10_000_128), struct.pack("<I", 1000))
    assert small != data
    path.write_bytes(small)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=str(path)):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", b"x")
    with pytest.raises(ValueError, match=str(path)):
        read_tensors(path)


# --- manifests, records, experiments ---


def changed(original: Path, folder: Path, name: str, change) -> Path:
    """A copy of a set in which `change` was made to the JSON file `name`."""
    copied = folder / "copy"
    copied.mkdir()
    for file in original.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    content = json.loads((copied / name).read_text())
    change(content)
    (copied / name).write_text(json.dumps(content))
    return copied


MANIFESTS = {
    "type": (lambda m: m["entries"][0].update(frames="12"), r"entries\[0\]\.frames='12': is str"),
    "count": (lambda m: m["entries"][0].update(frames=10**12), "frames=1000000000000: must be above 0 and at most"),
    "rate": (lambda m: m["entries"][0].update(fps=float("nan")), "fps=nan: must be above 0"),
    "pixels": (lambda m: m["entries"][0].update(width=10**9), "width=1000000000: must be"),
    "path": (lambda m: m["entries"][0].update(file="../../x"), "its name leads out of its source"),
    "position": (lambda m: m["entries"][0].update(index=7), "index=.*has one record for each position"),
    "class": (lambda m: m["entries"][0].update(label="fish"), "label='fish' is none of the class names"),
    "split": (lambda m: m["entries"][0].update(split="secret"), r"entries\[0\]\.split='secret': must be one of"),
    "entries": (lambda m: m.update(entries={}), "entries={}: must be a list"),
    "fields": (lambda m: m["entries"][0].update(eval="x"), "must have the fields file, source"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_is_checked_before_it_is_believed(sets, tmp_path, case):
    change, message = MANIFESTS[case]
    path = changed(sets[0], tmp_path, "manifest.json", change)
    with pytest.raises(ValueError, match=message) as caught:
        VideoSet(directory=str(path)).manifest()
    assert str(path / "manifest.json") in str(caught.value)


def test_a_set_imports_no_module_that_it_names(sets, tmp_path):
    def change(features):
        features["featuresDict"]["features"]["key"]["pythonClassName"] = "antigravity.Feature"

    path = changed(sets[0], tmp_path, "features.json", change)
    with pytest.raises(ValueError, match=r"features\.json: 'antigravity\.Feature' is no feature of TFDS"):
        VideoSet(directory=str(path)).open(Split.TRAIN)
    assert "antigravity" not in sys.modules


def test_damaged_records_name_their_set(sets, tmp_path):
    for original, opened in ((sets[0], lambda d: VideoSet(directory=d)), (sets[1], lambda d: LatentCache(directory=d))):
        (tmp_path / original.name).mkdir()
        path = changed(original, tmp_path / original.name, "manifest.json", lambda m: None)
        shard = next(path.glob("*train*array_record*"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:70_000])
        with pytest.raises(ValueError, match=f"{shard}: has 70000 bytes, the manifest says {len(whole)}"):
            list(opened(str(path)).open(Split.TRAIN))


def test_cached_moments_have_the_shape_they_claim(tmp_path, monkeypatch):
    clip = Clip(key="x", start=0, moments=np.zeros((2, 2, 2, 4), np.float32), label=0, caption="", fps=8.0)
    pack = struct.pack
    for number, shape in enumerate(([2**40, 2, 2, 4], [-1, 2, 2, 4], [0, 2**62, 1, 1], [32], "x")):
        directory = tmp_path / str(number)
        text = json.dumps({"key": "x", "start": 0, "label": 0, "caption": "", "fps": 8.0, "shape": shape}).encode()
        record = pack("<I", len(text)) + text + bytes(128)
        monkeypatch.setattr("dit_video.data.latent_cache._pack", lambda clip, moments, record=record: record)
        write_latent_cache(
            directory, {Split.TRAIN: [clip]}, class_names=("a",), split_digests={Split.TRAIN: "0"}, provenance={}
        )
        with pytest.raises(ValueError, match=rf"{directory} \(train\): record 0 is damaged"):
            CachedExamples(directory, Split.TRAIN)[0]


def test_a_cache_reads_shards_of_its_own_folder_only(sets, tmp_path):
    path = changed(sets[1], tmp_path, "manifest.json", lambda m: m["shards"].update(train=["../../other"]))
    with pytest.raises(ValueError, match=r"shard '\.\./\.\./other' is not in the folder"):
        LatentCache(directory=str(path)).open(Split.TRAIN)


TEXTS = {
    "nested": (b'{"a":' * 100_000, "nested too deep"),
    "no object": (b"[1]", "holds list, not an object"),
    "no text": (b"\xff\xfe", "not JSON"),
    "digits": (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    "empty": (b"", "not JSON"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_json_files_are_named_with_what_is_wrong(tmp_path, case):
    text, message = TEXTS[case]
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"{path}: .*{message}|{path}: {message}"):
        read_object(path)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


EXPERIMENTS = {
    "deep": (lambda e: e.update(seed=nested(200)), "nested deeper than 24"),
    "class": (lambda e: e["task"].update({"class": 7}), r"experiment\.task: class 7 is no name"),
    "empty class": (lambda e: e["task"].update({"class": "dit_video..x"}), "this version of dit_video has no"),
    "type": (lambda e: e["schedule"].update(num_steps="many"), r"schedule\.num_steps='many': must be of type int"),
    "number": (lambda e: e["optimizer"].update(learning_rate=10**400), r"optimizer\.learning_rate=1000"),
    "list": (lambda e: e["data"].update(batch_size=[1] * 1000), r"data\.batch_size=.*must be of type int"),
    "other component": (lambda e: e.update(data=e["schedule"]), r"experiment\.data=.*must be of type Data"),
    "missing": (lambda e: e.pop("task"), "Experiment: .*task"),
    "refused": (lambda e: e["data"].update(batch_size=0), r"experiment\.data: Data: Data\.batch_size=0"),
}


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_an_experiment_from_json_names_file_and_field(tmp_path, case):
    change, message = EXPERIMENTS[case]
    loaded = experiments.load(str(Path(__file__).parents[2] / "experiments/quickstart.py"))
    content = json.loads(json.dumps(to_json(loaded)))
    change(content)
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps({"experiment": content}))
    with pytest.raises(ExperimentError, match=message) as caught:
        experiments.read(path)
    assert str(path) in str(caught.value)
    path.write_text("{}")
    with pytest.raises(ExperimentError, match="not an experiment: None"):
        experiments.read(path)


def test_a_tar_within_its_listing_is_read_by_our_names(tmp_path, good):
    path = tmp_path / "x.tar"
    (tmp_path / "x.mp4").write_bytes(good)
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "x.mp4", "../x.mp4")
        archive.add(tmp_path / "x.mp4", "y.mp4")
    manifest = ingest([path], tmp_path / "set", held_out_fraction=0.0)
    assert {entry.file: entry.reason for entry in manifest.skipped()} == {
        "../x.mp4": "its name leads out of the archive"
    }


# --- a little of tools/fault_bench.py ---


@pytest.mark.filterwarnings("ignore")  # Of TFDS and protobuf, at damaged descriptions.
@pytest.mark.parametrize("family", FAMILIES)
def test_spoiled_files_are_read_or_refused_by_name(tmp_path, family):
    reader = FAMILIES[family].prepare(tmp_path)
    words = []
    for case in range(30):
        path = reader.make(case)
        try:
            reader.read(path)
        except (ValueError, FileNotFoundError) as error:
            words.append(f"{case}: {error}")
    assert [line for line in words if str(tmp_path) not in line] == []
    assert len(words) > 5
