"""Atomic files and folders: each appears under its name whole or not at all, and what kills leave behind is removed.

Both are written under a temporary name beside their own, synced and renamed, and the name is synced too: what
appears is there after a power loss. The temporary name ends in random letters, for a process
id comes again in every container. A killed process leaves it behind. Whoever makes the same folder later removes it
once nobody has touched it for a day, and says so on standard error; a file stays, for to look for it in a folder of
many, at each write, would cost more than it does.
"""

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

LITTER_SECONDS = 24 * 3600.0
"""For how long nobody may have touched a temporary file or folder that is removed."""

_RANDOM = r"partial-\w{8}"
# Version 0.1 had the process id there.
_TEMPORARY = rf"({_RANDOM}|\d+\.partial)"


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that is being written, or that a kill has left."""
    return re.fullmatch(rf"\..+\.{_RANDOM}", name) is not None


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file to, which takes that name when the block ends well.

    Of two processes that write one file the later wins.
    """
    temporary = temporary_path(path)
    try:
        # Exclusively, and with the permissions that the user's umask leaves.
        temporary.open("xb").close()
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_file(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and is removed otherwise.

    Raises:
        FileExistsError: `out` is there, and is not an empty folder.
        FileNotFoundError: it is a link to what is not there, on a disk that is not mounted perhaps.
    """
    out = Path(out)
    refuse_dangling(out)
    out = out.resolve()
    _refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(out)
    temporary.mkdir()
    try:
        remove_litter(out, temporary)
        yield temporary
        _refuse_existing(out)
        sync_tree(temporary)
        try:
            temporary.rename(out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                _refuse_existing(out)
            raise
        sync(out.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, would outlast a power loss.

    Raises:
        OSError: the store has failed. Folders that cannot be read, and file systems without such a call, are left out.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` of every file and folder in a folder, and of itself, what is inside first."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            if (path := Path(parent, name)).is_file() and not path.is_symlink():
                sync(path)
        sync(Path(parent))


def sync_names(path: Path) -> None:
    """`sync` of all folders above a path, any of which may have been made just now."""
    for folder in path.absolute().parents:
        sync(folder)


def refuse_dangling(path: Path) -> None:
    """Raises FileNotFoundError where a path is a link to what is not there, on a disk that is not mounted perhaps."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: is a link to {path.readlink()}, which is not there; mount it, or mend the link"
        )


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out}: is there already and not empty; name another folder, or remove it (rm -r {out})")


def temporary_path(path: Path) -> Path:
    """A path beside `path` that nobody else uses."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def bad_name(path: Path) -> Path:
    """A free name beside `path` for something damaged that stood in its place: NAME.bad, or NAME.2.bad and so on."""
    bad, numbers = path.with_name(f"{path.name}.bad"), itertools.count(2)
    while os.path.lexists(bad):
        bad = path.with_name(f"{path.name}.{next(numbers)}.bad")
    return bad


def remove_litter(path: Path, temporary: Path) -> None:
    """Removes what killed processes of this user have left of `path`, and says so.

    Args:
        temporary: one that was made just now, by the clock of the file system, which need not be that of this host.
    """
    now, name = temporary.lstat().st_mtime, re.compile(rf"\.{re.escape(path.name)}\.{_TEMPORARY}")
    with contextlib.suppress(OSError):  # of a folder that cannot be listed, or somebody removes the same
        for litter in sorted(Path(entry) for entry in os.scandir(path.parent) if name.fullmatch(entry.name)):
            age = now - _last_touched(litter)
            if age < LITTER_SECONDS or litter.lstat().st_uid != os.geteuid():
                continue
            if litter.is_dir() and not litter.is_symlink():
                shutil.rmtree(litter)
            else:
                litter.unlink()
            hours = f"{age / 3600:.0f} hours ago"
            print(f"{litter}: removed; a process that was killed left it {hours}", file=sys.stderr)


def _last_touched(path: Path) -> float:
    """When anything in a file or folder was last changed: who writes a large file touches no folder."""
    inside = (os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
    return max(os.lstat(name).st_mtime for name in (path, *inside))
