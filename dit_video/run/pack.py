"""A run as one file to give away: its record, one checkpoint, what was measured, and its codec inside it.

Names in the archive are relative and of plain files, without owner or folder of who packed it. `unpack` takes no other.
"""

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dit_video.checkpoint.folder import FOLDER, steps_of
from dit_video.config.atomic import new_file, new_folder
from dit_video.config.json_file import read_object
from dit_video.experiment import Experiment
from dit_video.run.codec import STATISTICS
from dit_video.run.folder import EXPERIMENT_FILE, read_experiment
from dit_video.run.frozen import with_codec_inside
from dit_video.run.places import PLACES, located
from dit_video.storage.mirror import local_copy
from dit_video.training import events, goodput
from dit_video.training.tracker import METRICS_FILE
from dit_video.weights.pipeline import RECORD as PARTS
from dit_video.weights.pipeline import read_parts
from dit_video.weights.source import PROVENANCE

# Beside the checkpoint: what was measured, and what is to be looked at.
_FILES = (METRICS_FILE, events.FILE, goodput.FILE, "saves.jsonl", "curves.png", "plan.json", STATISTICS, PROVENANCE)
_FOLDERS = ("evaluation", "samples", "cards")


class Packed(NamedTuple):
    """What is in an archive: number of files, their bytes, and the step of the checkpoint."""

    num_files: int
    num_bytes: int
    step: int


@dataclasses.dataclass(frozen=True)
class _Member:
    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def pack(run: Path, out: Path, *, step: int | None = None, like: Experiment | None = None) -> Packed:
    """Writes the archive of a run; it is there whole or not at all.

    Args:
        step: of the checkpoint that is packed; the latest, if left out.

    Raises:
        ValueError: the run has no such checkpoint, or its codec is nowhere; says what to do.
    """
    folder = local_copy(run, EXPERIMENT_FILE)
    experiment = with_codec_inside(located(read_experiment(folder, like), folder / EXPERIMENT_FILE), folder)
    step = _step(folder, step)
    members = list(_members(folder, step))
    if (codec := experiment.task.trained_codec()) is not None:
        inside = local_copy(Path(codec.run), EXPERIMENT_FILE)
        if not (inside / EXPERIMENT_FILE).is_file():
            raise ValueError(
                f"{run}: its codec is not in {codec.run}; bring that run back, or say where it is now with "
                "--config.task.codec.run=FOLDER at its next training, and pack again"
            )
        # Where `with_codec_inside` looks for it.
        name = Path(codec.run).name
        members += [_Member(f"{name}/{m.name}", m.content) for m in _members(inside, _step(inside, None))]
    root = folder.resolve().name
    with new_file(out) as temporary, tarfile.open(temporary, "w") as archive:
        for member in members:
            _add(archive, f"{root}/{member.name}", member)
    return Packed(len(members), sum(member.size for member in members), step)


def unpack(archive: Path, out: Path) -> None:
    """Makes the run in an archive a folder; the archive may be a stranger's.

    Raises:
        ValueError: it is no archive of a run, or has something in it that is no plain file below its folder.
    """
    with new_folder(out) as folder:
        try:
            _extract(archive, folder)
        except (tarfile.ReadError, EOFError) as error:
            raise ValueError(f"{archive}: is no whole tar archive; nothing was unpacked") from error
        except tarfile.TarError as error:
            raise ValueError(f"{archive}: {error}; nothing was unpacked") from error
        if not (folder / EXPERIMENT_FILE).is_file():
            raise ValueError(f"{archive}: is no packed run: it has no {EXPERIMENT_FILE}")


def _extract(archive: Path, folder: Path) -> None:
    """Unpacks what is below the one folder of an archive."""
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        roots = {Path(member.name).parts[:1] for member in members}
        if len(roots) != 1:
            raise ValueError(f"{archive}: is no packed run: it has {len(roots)} things in it, not one folder")
        for member in members:
            if not (member.isfile() or member.isdir()):
                raise ValueError(f"{archive}: {member.name} is a link or a device; nothing was unpacked")
            member.name = str(Path(*Path(member.name).parts[1:]))
        opened.extractall(folder, members=members, filter="data")


def _step(folder: Path, step: int | None) -> int:
    steps = steps_of(folder).complete()
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, steps)) or "none"
        raise ValueError(f"{folder}: has no checkpoint{'' if step is None else f' of step {step}'}; there are {there}")
    return steps[-1] if step is None else step


def _members(folder: Path, step: int) -> Iterator[_Member]:
    content = read_object(folder / EXPERIMENT_FILE)
    # Folders of this machine, which lead nowhere on another.
    content.pop(PLACES, None)
    yield _Member(EXPERIMENT_FILE, (json.dumps(content, indent=1) + "\n").encode())
    if (parts := read_parts(folder)) is not None:
        record = dataclasses.replace(parts, folder=None).record()
        yield _Member(PARTS, (json.dumps(record, indent=1) + "\n").encode())
    for name in _FILES:
        if (folder / name).is_file():
            yield _Member(name, folder / name)
    for top in (*(folder / name for name in _FOLDERS), folder / FOLDER / str(step)):
        for file in sorted(top.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield _Member(str(file.relative_to(folder)), file)


def _add(archive: tarfile.TarFile, name: str, member: _Member) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = member.size, 0o644
    if isinstance(member.content, bytes):
        archive.addfile(info, io.BytesIO(member.content))
        return
    with member.content.open("rb") as file:
        archive.addfile(info, file)
