"""Laws of opening videos to judge: pixels are the files' own, every file is accounted for."""

import io
import json
import os
import shutil
import struct
import tarfile
import zipfile

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image
from sample_videos import waves, write, write_sound

from dit_video.data.loader import held_out_clips
from dit_video.data.record import Clip, Examples, Record, Split, content_digest
from dit_video.data.transforms import ClipTransform
from dit_video.ingest.ingest import ingest
from dit_video.ingest.video_folder import open_videos
from dit_video.tasks.evaluator import EvaluationData
from dit_video.video.decode import decode, decode_window
from dit_video.video.encode import encode_mp4, write_gif
from dit_video.video.frame_folder import FPS


def keys(opened) -> list[str]:
    return [record.key for record in opened.examples]


def whole_clips(opened) -> dict[str, Clip]:
    """Every video of 20 frames, once."""
    transform = ClipTransform(num_frames=20, size=(16, 16))
    clips = held_out_clips(opened.examples, transform, num_clips=len(opened.examples), seed=0)
    return {clip.key: clip for clip in clips}


def test_the_bytes_handed_over_are_the_files_own(videos):
    opened = open_videos(videos)
    assert len(opened.examples) == 8
    for record in opened.examples:
        assert record.video == (videos / record.key).read_bytes()
    assert opened.sizes.tolist() == [[32, 48]] * 8
    assert opened.description == {"name": "videos", "kind": "folder", "num_videos": 8, "skipped": {}}


def test_frames_are_counted_right_and_every_window_decodes_in_any_container(tmp_path):
    video = waves(0, num_frames=30)
    write(tmp_path / "a.avi", video, codec="mpeg4", pixels="yuv420p")
    write(tmp_path / "b.mkv", video, codec="libx264", pixels="yuv444p")
    write(tmp_path / "c.webm", video, codec="libvpx-vp9", pixels="yuv420p")
    write(tmp_path / "d.webm", video, codec="libvpx", pixels="yuv420p")
    write(tmp_path / "e.mpg", video, codec="mpeg2video", pixels="yuv420p", fps=25)
    write(tmp_path / "f.ts", video, codec="libx264", pixels="yuv420p")
    write_gif(tmp_path / "g.gif", video, 10.0)
    (tmp_path / "h.mp4").write_bytes(encode_mp4(video, 10.0))
    opened = open_videos(tmp_path)
    assert opened.description["skipped"] == {}
    assert opened.examples.num_frames.tolist() == [30] * 8
    for record in opened.examples:
        whole, fps = decode(record.video)
        assert (len(whole), fps) == (record.num_frames, record.fps), record.key
        for start in (0, 13, 26):
            window = decode_window(record.video, start=start, num_frames=4)
            np.testing.assert_array_equal(window, whole[start : start + 4], err_msg=record.key)


def test_sizes_are_those_that_decoding_gives(tmp_path):
    data = encode_mp4(waves(5), 10.0)
    # The display matrix of a phone held upright: a quarter turn clockwise.
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 1 << 30)
    place = data.index(matrix, data.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(data[:place] + turned + data[place + len(matrix) :])
    (tmp_path / "upright.mp4").write_bytes(data)
    opened = open_videos(tmp_path)
    assert opened.sizes.tolist() == [[48, 32], [32, 48]]
    assert [decode(record.video)[0].shape[1:3] for record in opened.examples] == [(48, 32), (32, 48)]


def test_a_set_and_the_folder_it_copied_give_the_same_clips(videos, tmp_path):
    manifest = ingest([videos], tmp_path / "set", held_out_fraction=0.5)
    assert {entry.stored for entry in manifest.entries} == {"copied"}
    held_out = open_videos(tmp_path / "set")
    for entry in manifest.stored(Split.TRAIN):
        (videos / entry.file).unlink()
    folder = open_videos(videos)
    assert sorted(keys(held_out)) == keys(folder)
    by_name = np.argsort(keys(held_out)).tolist()
    assert content_digest(held_out.examples, by_name) == content_digest(folder.examples, range(len(by_name)))
    of_set, of_folder = whole_clips(held_out), whole_clips(folder)
    for key, clip in of_set.items():
        np.testing.assert_array_equal(clip.video, of_folder[key].video)
        assert clip.fps == of_folder[key].fps
    assert held_out.sizes.tolist() == folder.sizes.tolist()
    assert (held_out.description["kind"], held_out.description["split"]) == ("set", "held_out")


def test_order_is_that_of_names_and_not_of_creation(videos, tmp_path):
    names = sorted(path.relative_to(videos) for path in videos.rglob("*.mp4"))
    for name in reversed(names):
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(videos / name, tmp_path / "other" / name)
    one, other = open_videos(videos, num_workers=1), open_videos(tmp_path / "other", num_workers=3)
    assert keys(one) == keys(other) == [name.as_posix() for name in names]
    assert content_digest(one.examples, [0, 5]) == content_digest(other.examples, [0, 5])


def test_every_file_is_among_the_examples_or_the_skipped(videos, tmp_path):
    whole = (videos / "dog" / "0.mp4").read_bytes()
    (videos / "cat" / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "cat" / "empty.mp4").write_bytes(b"")
    (videos / "cat" / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (videos / "notes.txt").write_text("these are my cats\n")
    # A manifest of another program does not make the folder a set.
    (videos / "manifest.json").write_text(json.dumps({"made by": "somebody"}))
    (videos / ".hidden.mp4").write_bytes(whole)
    (videos / "gone.mp4").symlink_to(videos / "nowhere.mp4")
    write_sound(videos / "dog" / "bark.m4a")
    Image.fromarray(waves(0)[0]).save(videos / "dog" / "photo.jpg")
    stages = []
    opened = open_videos(videos, progress=lambda *stage: stages.append(stage))
    skipped = opened.description["skipped"]
    files = [os.path.join(here, name) for here, _, names in os.walk(videos) for name in names]
    assert {os.path.relpath(file, videos) for file in files} == set(keys(opened)) | set(skipped)
    assert len(files) == len(opened.examples) + len(skipped) == 8 + 9
    assert all(skipped.values())
    assert skipped["dog/photo.jpg"] == "a picture, not a video"
    assert skipped["dog/bark.m4a"] == "sound only"
    assert [stage[:3] for stage in stages] == [("probing", done, 17) for done in range(1, 18)]
    assert {name for *_, name in stages} <= {os.path.relpath(file, videos) for file in files} | {""}
    assert str(tmp_path) not in json.dumps(opened.description)


def test_of_a_stream_that_is_cut_off_the_rest_is_judged(tmp_path):
    with av.open(tmp_path / "whole.mp4", "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "8"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in waves(0, num_frames=40):
            container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    write(tmp_path / "whole.ts", waves(0, num_frames=30), codec="libx264", pixels="yuv420p")
    (tmp_path / "begins_late.ts").write_bytes((tmp_path / "whole.ts").read_bytes()[188 * 12 :])
    opened = open_videos(tmp_path)
    assert keys(opened) == ["cut.mp4", "whole.mp4", "whole.ts"]
    cut, whole = opened.examples[0], opened.examples[1]
    assert 16 <= cut.num_frames < 40
    np.testing.assert_array_equal(decode(cut.video)[0], decode(whole.video)[0][: cut.num_frames])
    assert opened.description["notes"] == {"cut.mp4": "1 frame left out: damaged"}
    # Of a stream that begins between key frames there is nothing to decode with.
    assert opened.description["skipped"]["begins_late.ts"].startswith("breaks off after frame 0")


def test_one_changed_byte_anywhere_changes_the_digest(videos):
    def digest() -> str:
        return content_digest(open_videos(videos).examples, [1, 4])

    before = digest()
    path = videos / "cat" / "3.mp4"
    data = bytearray(path.read_bytes())
    # Of what the encoder says of itself: no picture changes.
    data[data.index(b"x264") + 20] ^= 1
    path.write_bytes(data)
    assert keys(open_videos(videos))[1] == "cat/3.mp4"
    changed = digest()
    assert changed != before
    # What was not picked does not matter.
    (videos / "cat" / "1.mp4").write_bytes(data)
    assert digest() == changed
    # A name is part of what was judged.
    path.rename(videos / "cat" / "4.mp4")
    assert digest() != changed


class OneRecord(Examples):
    """A record alone."""

    def __init__(self, record: Record):
        self._record = record

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return (self._record,)[index]

    @property
    def num_frames(self) -> np.ndarray:
        return np.array([self._record.num_frames])


def test_a_digest_sees_values_shape_and_name_of_arrays():
    def digest(key: str, video: np.ndarray) -> str:
        return content_digest(OneRecord(Record(key=key, video=video, num_frames=len(video), fps=1.0)), [0])

    video = waves(0)
    changed = video.copy()
    changed[-1, -1, -1, -1] ^= 1
    variants = [("a", video), ("b", video), ("a", changed), ("a", video.reshape(6, 64, 48, 3))]
    assert len({digest(*variant) for variant in variants}) == 4
    assert digest("a", np.asfortranarray(video)) == digest("a", video)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_of_frames_is_judged_as_it_is(tmp_path, suffix):
    array = np.stack([waves(seed) for seed in range(3)])
    path = tmp_path / f"fake{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, samples=array)
    opened = open_videos(path, fps=8.0)
    np.testing.assert_array_equal(np.stack([record.video for record in opened.examples]), array)
    assert opened.examples.num_frames.tolist() == [12] * 3
    assert opened.sizes.tolist() == [[32, 48]] * 3
    assert {record.fps for record in opened.examples} == {8.0}
    expected = {"name": path.name, "kind": "array", "num_videos": 3, "skipped": {}, "fps": 8.0}
    assert json.loads(json.dumps(opened.description)) == expected
    transform = ClipTransform(num_frames=4, size=(16, 16))
    clips = held_out_clips(opened.examples, transform, num_clips=5, seed=0)
    assert [clip.video.shape for clip in clips] == [(4, 16, 16, 3)] * 5
    # Where nobody says, arrays are taken for what folders of pictures are.
    assert open_videos(path).examples.fps.tolist() == [25.0] * 3
    assert FPS == 25


_FRAMES = np.zeros((2, 4, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            _FRAMES + 1,
            r"float32 of shape \(2, 4, 8, 8, 3\): .*scale to 0\.\.255, round, astype uint8: .*255 \*",
        ),
        (_FRAMES - 1, r"from -1 to -1; scale to 0\.\.255, round, astype uint8: .*127\.5"),
        (_FRAMES.astype(np.int64) + 200, "int64 .*; bring the values to 0..255"),
        (_FRAMES * np.nan, "from nan to nan; bring the values"),
        (_FRAMES.astype(str), "<U32 .*: must be uint8 in 0..255"),
        (_FRAMES.astype(np.uint8) + 1, "uint8 .*: no value is above 1; scale to 0..255"),
        (_FRAMES[0], r"float32 of shape \(4, 8, 8, 3\): must be uint8 of shape \[N T H W 3\].*video\[None\]"),
        (np.moveaxis(_FRAMES, -1, 2), r"\(2, 4, 3, 8, 8\).*np\.moveaxis\(videos, 2, -1\)"),
        (np.moveaxis(_FRAMES, -1, 1), r"\(2, 3, 4, 8, 8\).*np\.moveaxis\(videos, 1, -1\)"),
        (_FRAMES[..., :1], r"\(2, 4, 8, 8, 1\).*np\.repeat"),
        (_FRAMES[:0].astype(np.uint8), "holds no pixel"),
        (np.array([{}]), "no readable array of numbers .*; save it with np.save"),
    ],
)
def test_an_array_of_another_kind_says_what_it_is_and_the_remedy(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        open_videos(tmp_path / "a.npy")


def test_a_broken_or_ambiguous_array_file_is_an_error(tmp_path):
    np.savez(tmp_path / "two.npz", a=_FRAMES, b=_FRAMES)
    with pytest.raises(ValueError, match=r"two\.npz: holds 2 arrays \(a, b\); save one of them alone"):
        open_videos(tmp_path / "two.npz")
    for name, data in (("empty.npy", b""), ("text.npy", b"hello"), ("cut.npz", b"PK\3\4junk")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: no readable array"):
            open_videos(tmp_path / name)
    np.save(tmp_path / "a.npy", _FRAMES.astype(np.uint8))
    with pytest.raises(ValueError, match=r"fps=0\.0: must be above 0"):
        open_videos(tmp_path / "a.npy", fps=0.0)


@pytest.mark.parametrize(("more", "message"), [(0, "no readable array"), (1, "17179869185 bytes of pixels are read")])
def test_of_a_npz_16_gib_are_read_whole_at_most(tmp_path, more, message):
    """Files of which the index claims so much, and that hold nothing."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"")
        archive.infolist()[0].file_size = 16 * 1024**3 + more
    with pytest.raises(ValueError, match=message):
        open_videos(tmp_path / "a.npz")


def test_what_cannot_be_judged_says_what_to_do(videos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_videos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"0\.mp4: a single file; put the videos to judge into a folder"):
        open_videos(videos / "dog" / "0.mp4")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.mp4"), io.BytesIO())
    with pytest.raises(ValueError, match=r"a\.tar: a tar; unpack it .*data ingest a\.tar --out DIR"):
        open_videos(tmp_path / "a.tar")
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(ValueError, match="photos: empty"):
        open_videos(photos)
    Image.fromarray(waves(0)[0]).save(photos / "a.jpg")
    with pytest.raises(ValueError, match=r"photos: no usable video among 1 files \(1 \.jpg\): 1 x a picture"):
        open_videos(photos)


def test_a_split_that_a_set_lacks_names_those_it_has(videos, tmp_path):
    ingest([videos / "dog"], tmp_path / "set", held_out_fraction=0.0)
    assert len(open_videos(tmp_path / "set", Split.TRAIN).examples) == 4
    with pytest.raises(ValueError, match=r"set: has no split 'held_out'; it has train$"):
        open_videos(tmp_path / "set")


def test_videos_of_several_rates_are_judged_at_one_if_it_is_asked_for(tmp_path):
    for number, fps in enumerate((24, 60, 60)):
        (tmp_path / f"{number}.mp4").write_bytes(encode_mp4(waves(number, num_frames=40), fps))
    opened = open_videos(tmp_path)
    assert opened.examples.fps.tolist() == [24.0, 60.0, 60.0]

    def data(**cut) -> EvaluationData:
        transform = ClipTransform(num_frames=9, size=(32, 48), **cut)
        return EvaluationData.of({Split.HELD_OUT: opened.examples}, {Split.HELD_OUT: transform}, seed=0, references={})

    as_they_are, at_one = data(), data(fps=24.0)
    assert (as_they_are.fps, as_they_are.said_fps) == (60.0, [24.0, 60.0])
    assert "24 to 60 frames a second" in as_they_are.notes[0]
    assert (at_one.fps, at_one.said_fps) == (24.0, 24.0)
    assert at_one.protocol["resampled"] == "to 24 fps, nearest frame"
    whole = {record.key: decode(record.video)[0] for record in opened.examples}
    transform = ClipTransform(num_frames=9, size=(32, 48), fps=24.0)
    for clip in held_out_clips(opened.examples, transform, num_clips=3, seed=0):
        places = clip.start + (np.arange(9) if clip.key == "0.mp4" else np.array([0, 2, 5, 7, 10, 12, 15, 17, 20]))
        np.testing.assert_array_equal(clip.video, whole[clip.key][places])
