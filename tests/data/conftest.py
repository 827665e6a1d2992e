"""Folders of videos that tests read."""

from pathlib import Path

import pytest
from sample_videos import waves

from dit_video.data.ingest import ingest
from dit_video.data.video import encode_mp4


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with eight mp4 files of 20 frames in two class folders."""
    folder = tmp_path / "videos"
    for index in range(8):
        path = folder / ("cat" if index % 2 else "dog") / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mp4(waves(index, num_frames=20), 10.0))
    return folder


@pytest.fixture
def video_set(videos: Path, tmp_path: Path) -> Path:
    """That folder, ingested; a quarter or so is held out."""
    ingest([videos], tmp_path / "set", held_out_fraction=0.3)
    return tmp_path / "set"
