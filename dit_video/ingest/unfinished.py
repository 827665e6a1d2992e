"""An ingest in progress, kept in its output folder, so that the same command goes on where it was killed.

    OUT/unfinished/journal.jsonl        how videos are stored; then a line for each file that was decoded
    OUT/unfinished/encoded/SHA256.mp4   what was encoded, by the digest of the file that it was made from
    OUT/unfinished/work-*/              of one process: members of tars, what is being encoded or written
    OUT/unfinished/set/                 the set, where complete.json is there too: whole, and being moved to OUT
    OUT/unfinished/complete.json        the command that made it, and the names of its files

A file is known by its content, so the journal holds for any command that stores videos in the same way. Lines are
written after what they speak of; a torn last one is cut off. Writing the set copies bytes, and begins anew.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dit_video.config.atomic import refuse_dangling
from dit_video.config.json_file import read_object, write_json
from dit_video.data.video_set import JOURNAL, MANIFEST, RECORDS, UNFINISHED

_ENCODED, _WORK, _SET, _COMPLETE = "encoded", "work-", "set", "complete.json"


class Unfinished:
    """What an ingest has done so far; safe to call from many threads.

    Attributes:
        work: a new folder for what is not kept.
        known: facts of files that are stored already, by their sha256.
    """

    def __init__(self, out: Path, stored_as: Mapping[str, Any], known: Mapping[str, dict[str, Any]]):
        """Args: as `unfinished`."""
        # TFDS would take a ~ for a home folder.
        self._folder = (out / UNFINISHED).absolute()
        (self._folder / _ENCODED).mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(f"{_WORK}*"):
            # What a decoder that outlived its parent still writes goes with it, and there alone.
            shutil.rmtree(path, ignore_errors=True)
        self._lock = threading.Lock()
        journaled = _read_journal(self._folder, stored_as)
        self._num_journaled = len(journaled)
        self.known = {**known, **journaled}
        self.work = self._folder / f"{_WORK}{secrets.token_hex(8)}"
        self.work.mkdir()

    @property
    def holds_work(self) -> bool:
        """Whether anything would have to be decoded again."""
        return self._num_journaled > 0

    def encoded(self, sha256: str) -> Path:
        """Where the mp4 lies that was made from a file."""
        return self._folder / _ENCODED / f"{sha256}.mp4"

    def keep(self, sha256: str, facts: Mapping[str, object], encoded: Path | None, num_bytes: int) -> dict[str, Any]:
        """Keeps what is known of a file now, and the mp4 that was made from it; returns that, and how it is stored.

        Args:
            sha256: of the file; what is no file, as an episode that is recorded, has a name of its own.
        """
        fields = {"stored": "copied" if encoded is None else "encoded", "num_bytes": num_bytes, **facts}
        if encoded is not None:
            with encoded.open("rb") as file:
                os.fsync(file.fileno())
            encoded.replace(self.encoded(sha256))
        line = json.dumps({"sha256": sha256, **fields}) + "\n"
        with self._lock, (self._folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(line)
            self.known[sha256] = fields
            self._num_journaled += 1
        return fields

    def complete(self, command: Mapping[str, Any], directory: Path) -> None:
        """Moves the whole set in `directory` to its place; from here on it is finished, whatever happens."""
        shutil.rmtree(self._folder / _SET, ignore_errors=True)
        directory.rename(self._folder / _SET)
        names = sorted(path.name for path in (self._folder / _SET).iterdir())
        write_json(self._folder / _COMPLETE, {"command": command, "files": names})
        _install(self._folder)


def finish(out: Path) -> dict[str, Any] | None:
    """Moves a set to its place that was whole when its ingest was killed; returns the command that made it, if any.

    Raises:
        ValueError: another process writes there.
    """
    with contextlib.suppress(OSError):
        (out / UNFINISHED).rmdir()  # empty where an ingest was killed at its very end
    if not (out / UNFINISHED / _COMPLETE).exists():
        return None
    with _locked(out):
        command = read_object(out / UNFINISHED / _COMPLETE)["command"]
        _install(out / UNFINISHED)
        return command


@contextlib.contextmanager
def unfinished(
    out: Path,
    stored_as: Mapping[str, Any],
    *,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> Iterator[Unfinished]:
    """Begins an ingest into `out`, or goes on with one.

    What was decoded stays in `out` when the block fails; where nothing was, nothing is left.

    Args:
        stored_as: as JSON; what decides the stored bytes.
        known: facts of the files of the set that is there already, where it is extended; else None.

    Raises:
        FileExistsError: `out` exists and is not an empty folder, and no set is extended.
        ValueError: another process writes there, or what is unfinished there is stored in another way.
    """
    exists = out.is_dir()
    _refuse_other(out, extends=known is not None)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        folder, work = out / UNFINISHED, None
        try:
            work = Unfinished(out, stored_as, known or {})
            yield work
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            if work is not None and not work.holds_work:
                shutil.rmtree(folder, ignore_errors=True)
                if not exists:
                    with contextlib.suppress(OSError):
                        out.rmdir()
            raise


def _refuse_other(out: Path, *, extends: bool) -> None:
    """Raises FileExistsError where `out` holds anything but an ingest in progress, or the set to be extended.

    FileNotFoundError: it is a link to what is not there.
    """
    refuse_dangling(out)
    ours = out.is_dir() and not {path.name for path in out.iterdir()} - {UNFINISHED}
    if not (extends or ours) and out.exists():
        raise FileExistsError(
            f"{out}: is there already and not empty; name another folder, or remove it (rm -r {out}); --add extends a "
            "set"
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps other ingests out of a folder, until the process ends however it does."""
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ValueError(f"{out}: another ingest writes there; wait for its end, or give another --out") from None
    try:
        yield
    finally:
        os.close(folder)


def _read_journal(folder: Path, stored_as: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a journal says of files that are still there; begins one where there is none, cuts off a torn last line."""
    path = folder / JOURNAL
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        path.write_text(json.dumps(dict(stored_as)) + "\n", encoding="utf-8")
        return {}
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    header, *lines = map(json.loads, whole.splitlines())
    for name, value in stored_as.items():
        if header.get(name) != value:
            raise ValueError(
                f"{name}={value}: {folder.parent} holds an unfinished ingest with {name}={header.get(name)}; give the "
                f"same, or delete it (rm -r {folder})"
            )
    known = {line.pop("sha256"): line for line in lines}
    return {
        sha256: fields
        for sha256, fields in known.items()
        if fields["stored"] == "copied" or _has_size(folder / _ENCODED / f"{sha256}.mp4", fields["num_bytes"])
    }


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _install(folder: Path) -> None:
    """Moves a whole set from OUT/unfinished to OUT, over the one that is there; may be killed and called again."""
    out, made = folder.parent, folder / _SET
    names = read_object(folder / _COMPLETE)["files"]
    if (made / MANIFEST).exists():
        # While files of two sets lie together there is no manifest, so that nobody reads them.
        (out / MANIFEST).unlink(missing_ok=True)
        for name in names:
            if name != MANIFEST and (made / name).exists():
                (made / name).replace(out / name)
        for path in out.glob(RECORDS):
            if path.name not in names:
                path.unlink()
        (made / MANIFEST).replace(out / MANIFEST)
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _COMPLETE:
            path.unlink()
    (folder / _COMPLETE).unlink()
    shutil.rmtree(folder, ignore_errors=True)
