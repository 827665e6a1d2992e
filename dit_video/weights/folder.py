"""Weight files of a folder of diffusers, transformers or official code: whole, in shards, as variants such as fp16."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_video.config.json_file import read_object
from dit_video.config.paths import shell_word
from dit_video.weights.adapters import ADAPTER
from dit_video.weights.file_formats import check_text
from dit_video.weights.names import Dialect

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_TORCH_WEIGHTS = "diffusion_pytorch_model.bin"
# What they are called in folders of diffusers and of transformers, the first that is there.
_NAMES = {
    Dialect.DIFFUSERS: (WEIGHTS, _TORCH_WEIGHTS),
    Dialect.OFFICIAL: (WEIGHTS, _TORCH_WEIGHTS),
    Dialect.TRANSFORMERS: ("model.safetensors", "pytorch_model.bin"),
}
# Classes of official code that save a config.json as those of diffusers do.
_OFFICIAL_CLASSES = ("WanModel",)
# A pipeline is a folder of folders, one for each network.
PIPELINE, _PIPELINE_PART = "model_index.json", "transformer"
_OF_ADAPTERS = ("adapter_config.json", "adapter_model.*", "pytorch_lora_weights.*")
_ANY_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".sft")
# A name on the Hub or its address; a Path has one slash where an address has two.
_ON_HUB = re.compile(
    r"(?:(?:https?:|hf:)/)?(?:(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w-][\w.-]*/[\w.-]+?)(?:/(?:tree|blob|resolve)/.*)?"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclasses.dataclass(frozen=True)
class Located:
    """Where published weights are.

    Attributes:
        files: of weights, all of which belong together.
        config_file: the config.json beside them; None for a file of weights alone, which is in the official dialect.
        notes: what a user should know of the choice.
    """

    dialect: Dialect
    files: tuple[Path, ...]
    config: dict[str, Any] | None = None
    config_file: Path | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Set:
    """Files that hold a whole network: one file, or the shards that an index lists."""

    variant: str  # "" for none
    name: Path  # by which a user asks for it: that of the file, or of the index
    files: tuple[Path, ...]


def locate(path: Path) -> Located:
    """Finds the weight files at a path: a folder of a network or of a pipeline, a file of one, or a file alone.

    Of several variants (`save_pretrained(variant="fp16")`) the one without a suffix is taken, and the others are noted.

    Raises:
        FileNotFoundError: there is no such path, or no weights or config.json in it; says what to do.
        ValueError: a JSON file is none, or variants alone are there and it is not said which.
    """
    if not path.exists():
        raise FileNotFoundError(_not_there(path))
    path = folder_of(path)
    if path.is_dir():
        folder = _network_in(path)
        config, dialect, sets = _described(folder)
        return _chosen(folder, config, dialect, sets)
    if (path.parent / CONFIG).is_file() and is_of_folder(path.name):
        config, dialect, sets = _described(path.parent)
        for one in sets:
            if path == one.name or path in one.files:
                return Located(dialect, one.files, config, path.parent / CONFIG)
    return Located(Dialect.OFFICIAL, (path,))


def folder_of(path: Path) -> Path:
    """The folder of which a config.json or model_index.json was named; any other path as it is."""
    return path.parent if path.is_file() and path.name in (CONFIG, PIPELINE) else path


def is_of_folder(name: str) -> bool:
    """Whether a file of this name is saved beside a config.json, by diffusers or transformers."""
    stem = _SHARD.sub("", name.partition(".")[0])
    return any(known.startswith(f"{stem}.") for names in _NAMES.values() for known in names)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that others have published; ValueError says where it is a pointer or a web page."""
    if path.is_file():
        check_text(path)
    return read_object(path)


def _described(folder: Path) -> tuple[dict[str, Any], Dialect, list[_Set]]:
    config = read_json(folder / CONFIG)
    dialect = _dialect_of(config)
    return config, dialect, _sets_in(folder, dialect)


def _dialect_of(config: Mapping[str, Any]) -> Dialect:
    if config.get("_class_name") in _OFFICIAL_CLASSES:
        return Dialect.OFFICIAL
    # transformers writes its own field for the class, and other names of files.
    transformers = "model_type" in config and "_class_name" not in config
    return Dialect.TRANSFORMERS if transformers else Dialect.DIFFUSERS


def _chosen(folder: Path, config: dict[str, Any], dialect: Dialect, sets: list[_Set]) -> Located:
    if not sets:
        raise FileNotFoundError(_no_weights(folder, dialect))
    first, others = sets[0], [one for one in sets[1:] if one.variant != sets[0].variant]
    notes = ()
    if others:
        names = ", ".join(sorted({one.name.name for one in others}))
        if first.variant:
            raise ValueError(f"{folder}: holds variants alone, {first.name.name}, {names}: name the file of one")
        notes = (f"read of {folder.name}: {first.name.name}; name another file to read that instead: {names}",)
    elif first.variant:
        notes = (f"read of {folder.name}: the variant {first.name.name}",)
    return Located(dialect, first.files, config, folder / CONFIG, notes)


def _sets_in(folder: Path, dialect: Dialect) -> list[_Set]:
    """Whole sets of weights in a folder: without a variant first, then safetensors, then those in shards."""
    found = []
    for rank, name in enumerate(_NAMES[dialect]):
        stem, _, kind = name.rpartition(".")
        for path in sorted(folder.iterdir()):
            index = re.fullmatch(rf"{re.escape(name)}\.index(?:\.([^.]+))?\.json", path.name)
            whole = re.fullmatch(rf"{re.escape(stem)}(?:\.([^.]+))?\.{kind}", path.name)
            if index is not None:
                found.append(((index[1] or "", rank, 0), path, _shards(path)))
            elif whole is not None and not _SHARD.search(whole[1] or ""):
                found.append(((whole[1] or "", rank, 1), path, (path,)))
    return [_Set(key[0], path, files) for key, path, files in sorted(found, key=lambda one: one[0])]


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index lists."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index}: has no weight_map of files by tensor")
    for shard in shards.values():
        if Path(shard).name != shard:
            raise ValueError(f"{index}: names {shard!r}, which is not in the folder")
    return tuple(index.parent / shard for shard in sorted(set(shards.values())))


def _network_in(path: Path) -> Path:
    """The folder of a network: `path`, or its sub-folder where `path` is a pipeline."""
    folder = path / _PIPELINE_PART if (path / PIPELINE).is_file() else path
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(_no_config(folder))
    return folder


def _not_there(path: Path) -> str:
    if path.is_symlink():
        return f"{path}: is a link to {path.readlink()}, which is not there; download it again"
    named = _ON_HUB.fullmatch(str(path))
    name = named[1] if named and path.suffix.lower() not in _ANY_WEIGHTS else "OWNER/NAME"
    folder = name.rpartition("/")[2]
    return (
        f"{path}: is not there. To take it from the Hub: `hf download {name} --local-dir {shell_word(folder)}`, then "
        f"`dit-video import {shell_word(folder)} --out=...`"
    )


def _no_config(folder: Path) -> str:
    """What to do where a folder has no config.json, by what is in it."""
    if not folder.is_dir():
        return f"{folder}: is not there; download all of the pipeline, or name the folder of a network, or a file"
    if any(list(folder.glob(name)) for name in _OF_ADAPTERS):
        return f"{folder}: {ADAPTER}"
    at = f"{folder / CONFIG}: not there"
    weights = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in _ANY_WEIGHTS]
    inner = [str(path.parent) for name in (PIPELINE, CONFIG) for path in sorted(folder.glob(f"*/**/{name}"))]
    if weights:
        return (
            f"{at} beside {weights[0]}: of a folder of diffusers download it too, for it has the sizes of the network; "
            "a file of official code is named itself"
        )
    if inner:
        return f"{at}; name the folder of a network or a pipeline, such as {', '.join(inner[:3])}"
    return f"{at}; name the folder of a network of diffusers, or a file"


def _no_weights(folder: Path, dialect: Dialect) -> str:
    known = " and no ".join(_NAMES[dialect])
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in _ANY_WEIGHTS]
    shards = [name for name in others if _SHARD.search(name.rpartition(".")[0])]
    if shards:
        return f"{folder}: holds {shards[0]} and no index (.index.json) that lists the shards; download that too"
    if others:
        return f"{folder}: holds no {known}; it has {', '.join(others[:3])}: name that file if it is of official code"
    return f"{folder}: holds no {known}, and no index of several (.index.json); download it whole"
