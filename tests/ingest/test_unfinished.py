"""An ingest that is killed at any moment goes on to the set that it would have made, and decodes nothing twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_videos import waves, write

from dit_video.ingest.extend import extend
from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding
from dit_video.video.encode import encode_mp4

PROGRAM = Path(__file__).parent / "killed_ingest.py"
NUM_FILES = 4


def sources(folder: Path, first: int = 0) -> Path:
    """A folder of videos, of which one is stored as it is, one is broken, and the others are encoded."""
    folder.mkdir()
    for number in range(first, first + NUM_FILES - 1):
        write(folder / f"{number}.mkv", waves(number, 4, 16, 16), codec="libx264", pixels="yuv420p")
    (folder / f"{first}.mp4").write_bytes(encode_mp4(waves(first + 9, 4, 16, 16), 10.0))
    (folder / f"{first}.avi").write_bytes(b"broken")
    return folder


def killed(out: Path, moments: list[int], tmp_path: Path, **options) -> list[dict]:
    """Runs with everything that a program may write to in folders of their own, which stay empty."""
    elsewhere = {name: tmp_path / "elsewhere" / name for name in ("HOME", "TMPDIR", "here")}
    for folder in elsewhere.values():
        folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, PROGRAM, out, json.dumps(options), json.dumps(moments)],
        cwd=elsewhere["here"],
        env={**os.environ, "HOME": str(elsewhere["HOME"]), "TMPDIR": str(elsewhere["TMPDIR"]), "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert [list(folder.iterdir()) for folder in elsewhere.values()] == [[], [], []]
    return [json.loads(line) for line in done.stdout.splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_ingest_goes_on_after_a_kill(tmp_path):
    """Killed while it decodes, and while it writes: then everything is decoded already.

    The set lies within its source, and neither it nor what is left of it is a part of that.
    """
    videos = sources(tmp_path / "videos")
    ingest([videos], tmp_path / "whole", transcoding=Transcoding(num_workers=1))
    runs = killed(videos / "set", [14, 30], tmp_path, sources=[str(videos)])
    assert [run["killed"] for run in runs] == [True, True, False]
    assert runs[-1]["decoded"] == 0
    assert content(videos / "set") == content(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "whole", "elsewhere"}
    with pytest.raises(ValueError, match="set: is the folder of the set itself; give the folder of the videos"):
        extend([videos / "set"], videos / "set")


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 60))
def test_an_ingest_goes_on_after_a_kill_at_any_moment(tmp_path, moment):
    videos = sources(tmp_path / "videos")
    ingest([videos], tmp_path / "whole", transcoding=Transcoding(num_workers=1))
    first, *more = killed(tmp_path / "set", [moment], tmp_path, sources=[str(videos)])
    assert first["killed"] or not more
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def test_an_extension_goes_on_after_a_kill(tmp_path):
    """Killed while the new set is moved over the old one."""
    check_extension(tmp_path, 51)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 62))
def test_an_extension_goes_on_after_a_kill_at_any_moment(tmp_path, moment):
    check_extension(tmp_path, moment)


def check_extension(tmp_path: Path, moment: int) -> None:
    a, b = sources(tmp_path / "a"), sources(tmp_path / "b", first=5)
    ingest([a], tmp_path / "set", transcoding=Transcoding(num_workers=1))
    ingest([a, b], tmp_path / "whole", transcoding=Transcoding(num_workers=1))
    first, *more = killed(tmp_path / "set", [moment], tmp_path, sources=[str(b)], add=True)
    assert first["killed"] or not more
    assert content(tmp_path / "set") == content(tmp_path / "whole")
