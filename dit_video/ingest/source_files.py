"""Listing of the files in folders and tar archives, and a path on disk for each.

A tar is never unpacked by its own names: each member is copied to a file of our naming, one at a time,
so that an archive cannot write anywhere. What a header claims is bounded before it is read or copied.
"""

import lzma
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import IO

from dit_video.data.video_set import JOURNAL, UNFINISHED
from dit_video.video.files import NO_SPACE
from dit_video.video.frame_folder import is_frame

# Bytes of a header's own data (names, times, comments), and of a member that is copied.
_LARGEST_HEADER, _LARGEST_MEMBER = 1 << 20, 64 << 30
_LONGEST_SUFFIX = 10
# Types of members that are read into memory to describe the next one.
_DESCRIBING = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
# Of an archive that is damaged or made to do harm.
_BROKEN = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, ArithmeticError, RecursionError)
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class _Member(tarfile.TarInfo):
    """A member whose own description is small; another is taken for a file of no known type, and left out."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIBING and self.size > _LARGEST_HEADER:
            self.type = b"?"
        return super()._proc_member(archive)  # type: ignore[missing-attribute]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file in a folder or tar, before it is opened.

    Attributes:
        name: its path within the source, with '/'; that of a folder, where its pictures are the frames of a clip.
        key: `name`, or source/name where two sources hold the same name; unique.
        reason: why it will not be opened; empty when it will.
    """

    source: Path
    name: str
    key: str
    reason: str = ""


def list_files(sources: Sequence[Path], out: Path | None = None, *, images: bool = False) -> list[SourceFile]:
    """Lists folders (recursively, sorted) and tars (in their order) without opening the files in them.

    Args:
        out: a folder that is no part of them, where it lies in one.
        images: each picture is a file of its own, and no folder of them a clip.

    Raises:
        FileNotFoundError: a source is missing.
        ValueError: a source is neither folder nor tar, a broken tar, or `out`; two files have the same name.
    """
    items = []
    for source in sources:
        items += [_source_file(source, name, reason) for name, reason in _list(source, out, images)]
    keys = keys_of([(item.source.name, item.key) for item in items])
    return [replace(item, key=key) for item, key in zip(items, keys)]


def keys_of(named: Sequence[tuple[str, str]]) -> list[str]:
    """Unique keys of files: their names within their sources, or source/name where two sources hold one name.

    Args:
        named: names of the source and of the file in it.

    Raises:
        ValueError: that is not unique either.
    """
    if len({name for _, name in named}) == len(named):
        return [name for _, name in named]
    keys = [f"{source}/{name}" for source, name in named]
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"{key}: {count} files of this name; give each source once, under a name of its own")
    return keys


def _source_file(source: Path, name: str, reason: str) -> SourceFile:
    key = plain_name(name)
    return SourceFile(source=source, name=name, key=key, reason=reason if key == name else "its name is not UTF-8")


def plain_name(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8, of which Python makes no characters, by their numbers."""
    return name.encode("utf-8", "backslashreplace").decode()


def _list(source: Path, out: Path | None, images: bool) -> Iterator[tuple[str, str]]:
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such folder or tar")
    if _is_same(source, out):
        raise ValueError(f"{source}: is the folder of the set itself; give the folder of the videos")
    if source.is_dir():
        yield from _list_folder(source, out, images)
    elif is_tar(source):
        for member in _members(source):
            if not member.isdir():
                yield member.name, _member_problem(member)
    else:
        raise ValueError(
            f"{source}: neither a folder nor a tar; unpack other archives, put single videos into a folder"
        )


def is_tar(path: Path) -> bool:
    """Whether a file begins as a tar, compressed or not; ValueError where that cannot be read."""
    try:
        with tarfile.open(path, tarinfo=_Member):
            return True
    except tarfile.TarError:
        return False
    except _BROKEN as error:
        raise ValueError(f"{path}: an archive that cannot be read ({error}); fetch it again") from error


def _is_same(path: Path, out: Path | None) -> bool:
    return out is not None and out.exists() and path.exists() and path.samefile(out)


def _list_folder(folder: Path, out: Path | None, images: bool) -> Iterator[tuple[str, str]]:
    unreadable: list[OSError] = []
    for here, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not _is_same(Path(here, name), out))
        if UNFINISHED in folders and Path(here, UNFINISHED, JOURNAL).exists():
            folders.remove(UNFINISHED)
            yield Path(here, UNFINISHED).relative_to(folder).as_posix(), "what an ingest has not finished"
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        if not images and _is_clip(Path(here), folder, files):
            yield Path(here).relative_to(folder).as_posix(), ""
            files = [name for name in files if not is_frame(name)]
        for name in sorted(files + links):
            path = Path(here) / name
            yield path.relative_to(folder).as_posix(), _file_problem(path)
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix(), f"cannot be listed: {error.strerror}"


def _is_clip(here: Path, source: Path, files: Sequence[str]) -> bool:
    """Whether a folder below the source is one clip: several numbered pictures, and nothing that may be a video."""
    pictures = [name for name in files if is_frame(name)]
    others = [name for name in files if not is_frame(name) and not name.startswith(".")]
    beside = all(PurePosixPath(name).suffix.lower() in (".txt", ".json", ".csv", ".md") for name in others)
    return here != source and len(pictures) > 1 and beside


def _file_problem(path: Path) -> str:
    if path.is_dir():
        return "a link to a folder; give that folder itself"
    if not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "not a regular file"
    return _content_problem(path.name, path.stat().st_size)


def _member_problem(member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "its name leads out of the archive"
    if member.issym() or member.islnk():
        return f"a link (to {member.linkname})"
    if member.issparse():
        return "a sparse file; unpack the archive, and give the folder"
    if not member.isfile():
        return "not a regular file"
    if member.size > _LARGEST_MEMBER:
        return f"it would have {member.size >> 30} GiB; unpack the archive, and give the folder"
    return _content_problem(path.name, member.size)


def _content_problem(name: str, size: int) -> str:
    if size == 0:
        return "an empty file"
    if name.startswith("."):
        return "a hidden file"
    return "an archive; give a tar as a source of its own" if name.lower().endswith(_ARCHIVES) else ""


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    with _opened(path) as archive:
        yield from _until_broken(path, archive)


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, tarinfo=_Member)
    except _BROKEN as error:
        raise ValueError(f"{path}: an archive that cannot be read ({error}); fetch it again") from error


def _until_broken(path: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    count = 0
    try:
        for member in archive:
            count += 1
            yield member
    except _BROKEN as error:
        raise ValueError(f"{path}: the archive breaks off after {count} members ({error}); fetch it again") from error


def files(items: Sequence[SourceFile], spool: Path) -> Iterator[tuple[SourceFile, Path]]:
    """Yields a path for each file, in order;
    members of a tar are copied into `spool` one by one, as they are asked for.
    """
    for number, source in enumerate(dict.fromkeys(item.source for item in items)):
        of_source = [item for item in items if item.source == source]
        if source.is_dir():
            yield from ((item, source / item.name) for item in of_source)
        else:
            yield from _extracted(source, of_source, spool, f"{number}")


def _extracted(source: Path, items: list[SourceFile], spool: Path, name: str) -> Iterator[tuple[SourceFile, Path]]:
    # The listing and this pass see the same members in the same order.
    expected = iter(items)
    with _opened(source) as archive:
        for member in _until_broken(source, archive):
            if member.isdir():
                continue
            item = next(expected)
            suffix = PurePosixPath(member.name).suffix
            # Two tars may have one name.
            path = spool / f"tar{name}-{member.offset}{suffix if len(suffix) <= _LONGEST_SUFFIX else ''}"
            if not item.reason and (content := archive.extractfile(member)):
                with content:
                    yield _copied(item, content, path), path
            else:
                yield item, path


def _copied(item: SourceFile, content: IO[bytes] | BufferedIOBase, path: Path) -> SourceFile:
    """Copies a member; one that breaks off is left out with its reason. OSError where it has no room."""
    try:
        with path.open("wb") as copy:
            shutil.copyfileobj(content, copy)
    except _BROKEN as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise OSError(error.errno, f"{error.strerror} for {item.key} of {item.source}", str(path)) from error
        return replace(item, reason=f"the archive breaks off in it ({error})")
    return item
