"""Lock file in a folder: one of several processes can create it, and nobody ever sees half of it.

It is written under a temporary name and linked to its own, which fails where there is one already (link(2)).
"""

import os
import stat
from pathlib import Path

from dit_video.config.atomic import bad_name, remove_litter, temporary_path

# Of a lock; what is longer is none.
_MOST_BYTES = 1 << 16


class FileLock:
    """Lock of a run in a folder; see dit_video/run/lock.py."""

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / name
        self.where, self.run = str(self._path), str(folder)

    def create(self, text: str) -> bool:
        """False where something of this name is there already."""
        temporary = temporary_path(self._path)
        try:
            temporary.write_text(text, encoding="utf-8")
            remove_litter(self._path, temporary)
            return self._claim(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def _claim(self, source: Path) -> bool:
        """Gives a file the name of the lock; False where something has it."""
        try:
            os.link(source, self._path, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError:  # FAT and some FUSE file systems have no links
            return self._claim_without_links(source)
        return True

    def _claim_without_links(self, source: Path) -> bool:
        """The same by O_EXCL and a rename: a kill in between leaves an empty lock, which is stale when it is old."""
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        try:
            source.replace(self._path)
        except OSError:
            self._path.unlink()
            raise
        return True

    def read(self) -> str | None:
        return _read(self._path)

    def touch(self) -> None:
        os.utime(self._path, follow_symlinks=False)

    def remove(self, text: str) -> bool:
        """Removes the lock if it is still this one. Of several that try, one succeeds: a rename is atomic."""
        if self.read() != text:
            return False
        grabbed = temporary_path(self._path)
        try:
            self._path.rename(grabbed)
        except FileNotFoundError:
            return False
        if _read(grabbed) != text:
            # Another was faster and holds the folder by now: what was grabbed is its lock. If a third one has come
            # meanwhile, the other finds that out when it touches its lock.
            self._claim(grabbed)
            grabbed.unlink(missing_ok=True)
            return False
        if grabbed.is_dir() and not grabbed.is_symlink():
            grabbed.rename(bad_name(self._path))  # there may be something in it
        else:
            grabbed.unlink()
        return True

    def sign(self) -> tuple[int, int] | None:
        """When it was last touched, in nanoseconds by the clock of the file system, and which file it is."""
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def age(self) -> float:
        """Seconds since it was touched, by the clock of the file system, which need not be that of this host."""
        probe = temporary_path(self._path)
        probe.touch()
        now = probe.stat().st_mtime_ns
        probe.unlink()
        touched = self.sign()
        return 0.0 if touched is None else max(0.0, (now - touched[0]) / 1e9)


def _read(path: Path) -> str | None:
    """Content of a lock; None where there is none, empty where it is no file or may not be read."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return ""
        # Who opens a pipe that has come meanwhile would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except PermissionError:
        return ""
    with open(descriptor, "rb") as file:
        return file.read(_MOST_BYTES).decode(errors="replace")
