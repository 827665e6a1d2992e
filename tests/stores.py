"""Stores that can be filled up and locked, for tests of what is then lost.

Where this process may mount, the store is a file system of three MiB. Elsewhere a full one is had by the limit of the
size of files, and a locked one by permissions.
"""

import contextlib
import functools
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dit_video.checkpoint.folder import FOLDER

SIZE = 3 << 20
# What a full store has room for: more for a few lines, none for a checkpoint.
SPARE = 1 << 16


class Mounted:
    """A small file system in memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], check=True, capture_output=True)

    @contextlib.contextmanager
    def full(self, *, spare: int = SPARE) -> Iterator[None]:
        """While so many bytes are free."""
        filler = self.folder / "filler"
        free = os.statvfs(self.folder)
        filler.write_bytes(bytes(free.f_bavail * free.f_bsize - spare))
        yield
        filler.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self._remount("ro")
        yield
        self._remount("rw")

    @contextlib.contextmanager
    def undeletable(self, folder: Path) -> Iterator[None]:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        yield
        subprocess.run(["umount", folder], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def _remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


class Limited:
    """A folder of a user without rights."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    @contextlib.contextmanager
    def full(self, *, spare: int = SPARE) -> Iterator[None]:
        """While no file may be larger than that."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (spare, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        (self.folder / FOLDER).chmod(0o555)
        yield
        (self.folder / FOLDER).chmod(0o755)

    @contextlib.contextmanager
    def undeletable(self, folder: Path) -> Iterator[None]:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)

    def close(self) -> None:
        pass


@functools.cache
def may_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


@contextlib.contextmanager
def small_store(folder: Path) -> Iterator[Mounted | Limited]:
    made = (Mounted if may_mount() else Limited)(folder)
    try:
        yield made
    finally:
        made.close()
