"""Pictures as clips of one frame: each its own, upright, beside videos, and mixed with them in batches."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_videos import waves

from dit_video.data.dataset import Data
from dit_video.data.record import Split
from dit_video.data.shapes import BatchShape
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.ingest.extend import extend
from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding
from dit_video.video.encode import encode_mp4

IMAGES = Transcoding(images=True)


def picture(path: Path, seed: int, height: int = 32, width: int = 48) -> None:
    Image.fromarray(waves(seed, 1, height, width)[0]).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes: pictures with numbers in their names, of two sizes; and a picture with a caption beside a video."""
    folder = tmp_path_factory.mktemp("images") / "both"
    for name in ("many", "few"):
        (folder / name).mkdir(parents=True)
    picture(folder / "many" / "1.png", 1)
    picture(folder / "many" / "2.webp", 2, 48, 32)
    picture(folder / "few" / "sun.jpg", 3)
    (folder / "few" / "sun.txt").write_text("the sun")
    (folder / "few" / "moving.mp4").write_bytes(encode_mp4(waves(4, 9, 32, 32), 10.0))
    return folder


@pytest.fixture(scope="module")
def made(folder) -> VideoSet:
    out = folder.parent / "set"
    ingest([folder], out, held_out_fraction=0.0, transcoding=IMAGES)
    return VideoSet(directory=str(out))


def test_each_picture_is_a_clip_of_one_frame(folder, made):
    entries = made.manifest().stored(Split.TRAIN)
    assert {e.file: (e.frames, e.height, e.width, e.label, e.caption) for e in entries} == {
        "few/moving.mp4": (9, 32, 32, "few", ""),
        "few/sun.jpg": (1, 32, 48, "few", "the sun"),
        "many/1.png": (1, 32, 48, "many", ""),
        "many/2.webp": (1, 48, 32, "many", ""),
    }
    transform = ClipTransform(num_frames=1, size=(32, 48))
    records = {record.key: record for record in made.open(Split.TRAIN)}
    clip = transform(records["many/1.png"], np.random.default_rng(0)).video
    source = np.asarray(Image.open(folder / "many" / "1.png").convert("RGB"))
    assert np.abs(clip[0].astype(int) - source).mean() < 6  # H.264, with half of the colours' resolution


def test_without_being_asked_none_is(folder, tmp_path):
    manifest = ingest([folder], tmp_path / "set", held_out_fraction=0.0)
    assert {entry.file: entry.reason for entry in manifest.skipped() if "sun.jpg" in entry.file} == {
        "few/sun.jpg": "a picture, not a video"
    }
    assert "images" not in manifest.settings
    with pytest.raises(ValueError, match=r"--add: images=True, but .* was made with images=None"):
        extend([folder], tmp_path / "set", asked={"images": True})


def test_more_pictures_are_added_as_those_before(folder, made, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    picture(more / "3.png", 5)
    out = tmp_path / "set"
    ingest([folder], out, held_out_fraction=0.0, transcoding=IMAGES)
    manifest = extend([more], out)
    assert "3.png" in {entry.file for entry in manifest.stored(Split.TRAIN)}


def test_pictures_and_videos_are_mixed_in_batches_of_their_own_shapes(made):
    shapes = [(1, (32, 48)), (1, (48, 32)), (9, (32, 32))]
    sized = tuple(BatchShape(num_frames=t, size=size, batch_size=2) for t, size in shapes)
    data = Data(source=made, clips=ClipTransform(num_frames=9, size=(32, 32)), batch_size=2, shapes=sized)
    with contextlib.closing(dataclasses.replace(data, num_threads=1).train(0, 0)) as batches:
        seen = {next(batches).video.shape[1:4] for _ in range(12)}
    assert seen == {(t, *size) for t, size in shapes}
