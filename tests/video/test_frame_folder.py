"""Folders of pictures are clips, in the order of their numbers, in sets and in FVD alike."""

import random

import numpy as np
import pytest
from PIL import Image
from sample_videos import waves

from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding
from dit_video.ingest.video_folder import open_videos
from dit_video.video.decode import decode
from dit_video.video.frame_folder import frames, in_order
from dit_video.video.pictures import VideoError


def write(folder, video, suffix: str = ".png", name: str = "frame") -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(video):
        Image.fromarray(frame).save(folder / f"{name}{number}{suffix}")


@pytest.mark.parametrize("name", ["frame{}.png", "{:05}.jpg", "a{}b7.png", "{}"])
def test_names_are_in_the_order_of_their_numbers(name):
    names = [name.format(number) for number in range(120)]
    assert in_order(random.Random(0).sample(names, 120)) == names


def test_the_frames_of_a_folder_are_its_pictures(tmp_path):
    video = waves(0, 12)
    write(tmp_path / "clip", video)
    np.testing.assert_array_equal(np.stack(list(frames(tmp_path / "clip"))), video)


def test_they_are_read_by_ingest_and_by_fvd(tmp_path):
    # Grey, since H.264 as it is stored halves the resolution of colours.
    grey = [waves(seed, 12).mean(-1, keepdims=True).astype(np.uint8) for seed in range(2)]
    videos = [np.repeat(video, 3, axis=-1) for video in grey]
    for number, video in enumerate(videos):
        write(tmp_path / "in" / "cat" / f"video{number}", video)
    opened = open_videos(tmp_path / "in")
    assert opened.description["num_videos"] == 2
    assert "taken as 25 frames a second" in opened.description["notes"]["cat/video0"]
    for example, video in zip(opened.examples, videos):
        np.testing.assert_array_equal(example.video, video)
    manifest = ingest(
        [tmp_path / "in"], tmp_path / "set", held_out_fraction=0.0, transcoding=Transcoding(num_workers=1)
    )
    assert [(e.file, e.frames, e.fps, e.stored) for e in manifest.entries] == [
        ("cat/video0", 12, 25.0, "encoded"),
        ("cat/video1", 12, 25.0, "encoded"),
    ]
    stored = {record.key: record for record in VideoSet(directory=str(tmp_path / "set")).open(Split.TRAIN)}
    for number, video in enumerate(videos):
        decoded, fps = decode(stored[f"cat/video{number}"].video)
        assert fps == 25.0
        assert np.abs(decoded.astype(int) - video).mean() < 2


def test_a_picture_of_another_size_or_none_is_named(tmp_path):
    write(tmp_path / "in" / "a", waves(0, 3))
    Image.fromarray(waves(0, 1, 8, 8)[0]).save(tmp_path / "in" / "a" / "frame9.png")
    with pytest.raises(VideoError, match=r"frame9\.png has 8 x 8 pixels, the first 48 x 32"):
        list(frames(tmp_path / "in" / "a"))
    (tmp_path / "in" / "a" / "frame9.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"frame9\.png: not a picture that can be read"):
        list(frames(tmp_path / "in" / "a"))
    write(tmp_path / "in" / "b", waves(1, 3))
    assert list(open_videos(tmp_path / "in").description["skipped"]) == ["a"]


def test_pictures_beside_videos_or_in_the_source_itself_are_no_clip(tmp_path):
    """A folder of photographs is not a video; nor are covers that lie among videos."""
    write(tmp_path / "photos", waves(0, 3))
    with pytest.raises(ValueError, match="a picture, not a video"):
        open_videos(tmp_path / "photos")


def test_transparent_pictures_are_over_black(tmp_path):
    (tmp_path / "clip").mkdir()
    pixels = np.full((4, 4, 4), (9, 200, 9, 0), np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "clip" / "0.png")
    assert not next(frames(tmp_path / "clip")).any()
