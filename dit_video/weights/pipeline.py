"""Parts of a diffusers pipeline that are no part of a run: where they are, and their digests.

A run that was made of a pipeline holds its denoiser and its VAE. The record of all else (index, scheduler, tokenizers,
text encoders, further networks) is a file in the run:

    {"folder": "/models/wan", "sha256": {"model_index.json": "...", "scheduler/scheduler_config.json": "...", ...}}
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_video.config.json_file import check_kinds, read_object, write_json
from dit_video.weights.folder import PIPELINE, read_json

# In the folder of a run.
RECORD = "pipeline.json"
# Networks that a run of a pipeline holds, by their names in the index.
DENOISER, VAE = "transformer", "vae"


@dataclasses.dataclass(frozen=True)
class PipelineParts:
    """Files of a pipeline beside its denoiser and VAE.

    Attributes:
        folder: of the pipeline; None where it is not known on this machine.
        sha256: by path in the folder.
    """

    folder: Path | None
    sha256: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        return {"folder": None if self.folder is None else str(self.folder), "sha256": dict(self.sha256)}


def parts_of(pipeline: Path) -> PipelineParts:
    """Index, and all files that are there of the parts that it names, but for the denoiser and the VAE."""
    folder = pipeline.resolve()
    files = [folder / PIPELINE]
    for name in named_parts(read_json(folder / PIPELINE)):
        if name not in (DENOISER, VAE):
            found = sorted(path for path in (folder / name).rglob("*") if path.is_file())
            files += [path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    return PipelineParts(folder, {str(path.relative_to(folder)): _sha256(path) for path in files})


def named_parts(index: Mapping[str, Any]) -> list[str]:
    """Names of the folders of a pipeline by its index, which has [library, class] of each part.

    [null, null] is a part that the pipeline goes without.
    """
    pairs = {name: kind for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2}
    return [name for name, kind in pairs.items() if None not in kind and Path(name).name == name]


def write_parts(parts: PipelineParts, run: Path) -> None:
    """Records the parts in a run."""
    write_json(run / RECORD, parts.record())


def read_parts(run: Path) -> PipelineParts | None:
    """The parts that a run records; None where it is of no pipeline.

    Raises:
        ValueError: the file is no such record; names it.
    """
    path = run / RECORD
    if not path.is_file():
        return None
    content = read_object(path, {"folder": (str, type(None)), "sha256": dict})
    try:
        check_kinds(content["sha256"], dict.fromkeys(content["sha256"], str))
    except ValueError as error:
        raise ValueError(f"{path}: sha256: {error}") from error
    if outside := [name for name in content["sha256"] if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"{path}: {outside[0]}: must be a path below the pipeline")
    folder = None if content["folder"] is None else Path(content["folder"])
    return PipelineParts(folder, content["sha256"])


def copy_parts(parts: PipelineParts, folder: Path) -> None:
    """Copies all files of the parts into `folder`.

    Raises:
        ValueError: a file is not there, or another than was recorded; says what to do.
    """
    remedy = "name the folder of the pipeline as it was imported with --pipeline, or --pipeline=none"
    if parts.folder is None or not (parts.folder / PIPELINE).is_file():
        where = "a folder of another machine" if parts.folder is None else f"{parts.folder}, which is not there now"
        raise ValueError(f"the run is of a pipeline in {where}: {remedy}")
    for name, sha256 in parts.sha256.items():
        source, copy = parts.folder / name, folder / name
        if not source.is_file():
            raise ValueError(f"{source}: was there at the import and is not now: {remedy}")
        copy.parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(source, copy)
        if _sha256(copy) != sha256:
            raise ValueError(f"{source}: is another file than at the import: {remedy}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
