"""An ingest that is killed at any moment goes on to the set that it would have made, and decodes nothing twice."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from sample_videos import waves, write

from dit_video.data.sources import VideoSet
from dit_video.ingest.extend import extend
from dit_video.ingest.ingest import ingest
from dit_video.ingest.probe import Facts
from dit_video.ingest.transcoding import Transcoding
from dit_video.ingest.unfinished import unfinished
from dit_video.ingest.video_folder import open_videos
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


def killed(sets: Mapping[Path, list[int]], tmp_path: Path, **options) -> list[list[dict]]:
    """Runs of each set, with everything that a program may write to in folders of their own, which stay empty."""
    elsewhere = {name: tmp_path / "elsewhere" / name for name in ("HOME", "TMPDIR", "here")}
    for folder in elsewhere.values():
        folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, PROGRAM, json.dumps(options), json.dumps({str(out): list(sets[out]) for out in sets})],
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
    (runs,) = killed({videos / "set": [14, 30]}, tmp_path, sources=[str(videos)])
    assert [run["killed"] for run in runs] == [True, True, False]
    assert runs[-1]["decoded"] == 0
    assert content(videos / "set") == content(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "whole", "elsewhere"}
    with pytest.raises(ValueError, match="set: is the folder of the set itself; give the folder of the videos"):
        extend([videos / "set"], videos / "set")


def test_an_extension_goes_on_after_a_kill(tmp_path):
    """Killed while the new set is moved over the old one."""
    check_extension(tmp_path, [51])


def check_extension(tmp_path: Path, moments: Iterable[int]) -> None:
    a, b = sources(tmp_path / "a"), sources(tmp_path / "b", first=5)
    ingest([a], tmp_path / "old", transcoding=Transcoding(num_workers=1))
    ingest([a, b], tmp_path / "whole", transcoding=Transcoding(num_workers=1))
    sets = {shutil.copytree(tmp_path / "old", tmp_path / f"set{moment}"): [moment] for moment in moments}
    check_killed(sets, killed(sets, tmp_path, sources=[str(b)], add=True), content(tmp_path / "whole"))


def check_killed(sets: Mapping[Path, list[int]], runs: list[list[dict]], whole: dict[str, bytes]) -> None:
    for (out, moments), (first, *more) in zip(sets.items(), runs, strict=True):
        assert first["killed"] or not more
        assert content(out) == whole, moments


# More than an ingest makes changes of the disk: 57 to 61.
ALL = range(1, 66)


@pytest.mark.slow
def test_an_extension_goes_on_after_a_kill_at_any_moment(tmp_path):
    check_extension(tmp_path, ALL)


@pytest.mark.slow
def test_an_ingest_goes_on_after_a_kill_at_any_moment(tmp_path):
    videos = sources(tmp_path / "videos")
    ingest([videos], tmp_path / "whole", transcoding=Transcoding(num_workers=1))
    sets = {tmp_path / f"set{moment}": [moment] for moment in ALL}
    check_killed(sets, killed(sets, tmp_path, sources=[str(videos)]), content(tmp_path / "whole"))


FACTS = Facts(frames=4, fps=10.0, width=16, height=16, left_out=0, doubled=0, notes="")


def stopped(out: Path, *, max_size: int | None = None) -> dict[str, dict]:
    """What an ingest that fails at once finds of the one before; then it keeps two files, one of them encoded."""
    found = {}
    with contextlib.suppress(KeyboardInterrupt), unfinished(out, {"max_size": max_size}) as done:
        found |= done.known
        (done.work / "0.mp4").write_bytes(b"mp4")
        done.keep("a", FACTS, done.work / "0.mp4", 3)
        done.keep("b", FACTS, None, 5)
        raise KeyboardInterrupt
    return found


def test_what_was_decoded_is_found_again_and_a_torn_line_is_not(tmp_path):
    out, kept = tmp_path / "set", {**FACTS, "num_bytes": 3, "stored": "encoded"}
    assert stopped(out) == {}
    assert stopped(out) == {"a": kept, "b": {**kept, "num_bytes": 5, "stored": "copied"}}
    journal = out / "unfinished" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7] + b'"cop')
    (out / "unfinished" / "encoded" / "a.mp4").write_bytes(b"of another size")
    assert set(stopped(out)) == {"b"}
    assert [path.name for path in (out / "unfinished").glob("work-*")] == [list(out.rglob("work-*"))[-1].name]
    with pytest.raises(
        ValueError, match=r"max_size=8: .*set holds an unfinished ingest with max_size=None; give the same"
    ):
        stopped(out, max_size=8)
    with pytest.raises(
        FileNotFoundError, match="set holds a set that an ingest has begun and not finished: give the same"
    ):
        VideoSet(directory=str(out)).manifest()
    # What lies there is no folder of videos, alone or among others.
    with pytest.raises(ValueError, match=r"no usable video among 1 files .*what an ingest has not finished \(unf"):
        open_videos(out)
    with pytest.raises(ValueError, match=r"what an ingest has not finished \(set/unfinished\)"):
        ingest([tmp_path], tmp_path / "other")


def test_one_ingest_writes_into_a_folder_and_one_that_did_nothing_leaves_nothing(tmp_path):
    with unfinished(tmp_path / "set", {}):
        with pytest.raises(
            ValueError, match="set: another ingest writes there; wait for its end, or give another --out"
        ):
            stopped(tmp_path / "set")
        assert list(tmp_path.iterdir()) == [tmp_path / "set"]
    (tmp_path / "set").rmdir()
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "set", {}):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "not mounted")
    with pytest.raises(FileNotFoundError, match=r"link: is a link to .*not mounted, which is not there; mount it"):
        stopped(tmp_path / "link")
