"""Files and folders are there whole or not at all, and what kills leave behind does not stay."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dit_video.config.atomic import LITTER_SECONDS, is_temporary, new_file, new_folder, write_file

KILLED = """
import os, signal, sys
from dit_video.config.atomic import new_file, new_folder
with {new}(sys.argv[1]) as temporary:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in(new: str, out: Path) -> Path:
    """The litter of a real process that was killed while it wrote `out`, as PID 1 of a container where that can be."""
    program = KILLED.format(new=new).replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    run = subprocess.run([sys.executable, "-c", program, str(out)])
    assert run.returncode == -signal.SIGKILL
    (litter,) = (path for path in out.parent.iterdir() if is_temporary(path.name))
    return litter


def as_old_as(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then), follow_symlinks=False)


def test_the_folder_gets_its_name_when_all_is_written(tmp_path):
    out = tmp_path / "deep" / "exported"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_may_be_there(tmp_path):
    with new_folder(tmp_path / ".") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "a").exists()


def test_nothing_is_left_of_a_folder_that_fails(tmp_path):
    def export():
        with new_folder(tmp_path / "exported") as folder:
            (folder / "a").write_text("1")
            raise ValueError("a tensor differs")

    with pytest.raises(ValueError, match="a tensor differs"):
        export()
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_written_over(tmp_path):
    (tmp_path / "precious").write_text("1")
    for out in (tmp_path, tmp_path / "precious"):
        with pytest.raises(FileExistsError, match="name another folder, or remove it"), new_folder(out):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_link_to_a_disk_that_is_not_mounted_is_refused_and_one_that_is_is_followed(tmp_path):
    link, disk = tmp_path / "out", tmp_path / "disk" / "out"
    link.symlink_to(disk)
    with pytest.raises(FileNotFoundError, match=r"is a link to .*disk/out, which is not there"), new_folder(link):
        pass
    assert not disk.parent.exists()
    disk.mkdir(parents=True)
    with new_folder(link) as folder:
        assert folder.parent == disk.parent
        (folder / "a").touch()
    assert (link / "a").exists()
    assert link.is_symlink()


def test_what_came_while_it_was_written_is_not_written_over(tmp_path):
    def write():
        with new_folder(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(FileExistsError, match="out: is there already"):
        write()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_killed_writer_of_a_file_blocks_nobody(tmp_path):
    litter = kill_in("new_file", tmp_path / "e")
    with new_file(tmp_path / "e") as temporary:
        temporary.write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [litter.name, "e"]


def test_a_killed_writer_of_a_folder_blocks_nobody_and_its_litter_goes_after_a_day(tmp_path, capfd):
    """F12: `export` killed as PID 1 of a container blocked every later one."""
    out = tmp_path / "e"
    litter = kill_in("new_folder", out)
    with new_folder(out):
        assert litter.exists(), "somebody may be writing it"
    as_old_as(litter, LITTER_SECONDS + 60)
    other = tmp_path / ".other.partial-01234567"
    of_version_0_1 = tmp_path / ".e.1.partial"
    for path in (other, of_version_0_1):
        path.mkdir()
        (path / "a").touch()
        as_old_as(path, 2 * LITTER_SECONDS)
    with new_folder(out):
        pass
    assert sorted(tmp_path.iterdir()) == [other, out]
    assert re.findall(r"(\S+): removed; a process that was killed left it (\d+) hours ago", capfd.readouterr().err) == [
        (str(of_version_0_1), "48"),
        (str(litter), "24"),
    ]


def test_a_folder_in_which_anything_is_still_written_is_no_litter(tmp_path):
    """A shard of an hour a gigabyte touches neither its folder nor that above."""
    litter = kill_in("new_folder", tmp_path / "set")
    (litter / "spool").mkdir()
    (litter / "spool" / "shard").touch()
    as_old_as(litter, 10 * LITTER_SECONDS)
    (litter / "spool" / "shard").touch()
    with new_folder(tmp_path / "set"):
        pass
    assert litter.exists()


def test_litter_that_is_a_link_goes_and_its_target_stays(tmp_path):
    (tmp_path / "precious").mkdir()
    link = tmp_path / ".e.partial-00000000"
    link.symlink_to(tmp_path / "precious")
    as_old_as(link, 2 * LITTER_SECONDS)
    with new_folder(tmp_path / "e"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "precious"]


def test_files_and_folders_are_as_readable_as_the_umask_says(tmp_path):
    """A cache of two users: one of them must be able to read what the other wrote."""
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"1")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")] == [0o640, 0o750]


def test_a_file_is_the_one_before_until_it_is_whole(tmp_path):
    """Also where a folder has the name that temporary files once had (F13)."""
    (tmp_path / "experiment.tmp").mkdir()
    path = tmp_path / "experiment.json"
    write_file(path, b"before")

    def write():
        with new_file(path) as temporary:
            temporary.write_bytes(b"ha")
            assert path.read_bytes() == b"before"
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert path.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["experiment.json", "experiment.tmp"]
