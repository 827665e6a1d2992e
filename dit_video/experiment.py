"""Experiment: one tree of typed, frozen values that is a whole run. Load, override, validate, to and from JSON, diff.

An experiment file is Python and defines `get_config(arg: str = "") -> Experiment`. Overrides on the command line
(`--config.optimizer.learning_rate=3e-4`) go through `ml_collections.config_flags`, on a ConfigDict mirror of the
tree, so they parse and fail as people of this ecosystem know; the tree is then rebuilt, which validates it again.
"""

import dataclasses
import difflib
import enum
import hashlib
import json
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from dit_video import components
from dit_video.components import enum_of, of_type, own_classes, to_json
from dit_video.data.dataset import Data
from dit_video.json_file import read_object
from dit_video.retention import Keep
from dit_video.sharding import MeshShape
from dit_video.tasks.task import Evaluator, Task
from dit_video.training.faults import Faults
from dit_video.training.loop import Schedule
from dit_video.training.optimizer import EMA, Optimizer
from dit_video.training.step import CompilerOptions
from dit_video.user_file import ExperimentError, call_file

__all__ = [
    "Experiment", "ExperimentError", "diff", "fingerprint", "flatten", "from_json", "load", "override", "read",
    "to_json",
]  # fmt: skip

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run.

    Attributes:
        seed: of initialisation, data order and noise.
        num_microbatches: parts the global batch is cut into for gradient accumulation.
        evaluators: by the name they are recorded under.
        faults: what to do when training goes wrong.
        keep: which checkpoints stay; no part of the fingerprint either.
        mesh: devices along each axis; like `compiler_options` not part of the fingerprint, since it may change between
            hosts.
        compiler_options: XLA's for the train step, by kind of device: {"gpu": {...}, "tpu": {...}}.
    """

    task: Task
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    ema: EMA = EMA()
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    num_microbatches: int = 1
    faults: Faults = Faults()
    keep: Keep = Keep()
    seed: int = 0
    mesh: MeshShape = MeshShape()
    compiler_options: Mapping[str, CompilerOptions] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if surplus := self.compiler_options.keys() - {"cpu", "gpu", "tpu"}:
            raise ValueError(
                f"compiler_options: {', '.join(sorted(surplus))} is no kind of device; cpu, gpu and tpu are"
            )
        best = self.keep.best
        if best is not None and best.evaluator not in self.evaluators:
            known = ", ".join(map(repr, self.evaluators)) or "none"
            raise ValueError(f"keep.best.evaluator={best.evaluator!r}: is none of the evaluators; there are {known}")
        if self.num_microbatches < 1 or self.data.batch_size % self.num_microbatches:
            raise ValueError(
                f"num_microbatches={self.num_microbatches}: must divide data.batch_size={self.data.batch_size}"
            )


# What may differ between two starts of the same run.
_NOT_IN_FINGERPRINT = (
    "mesh", "compiler_options", "keep", "data.num_threads", "schedule.log_every", "schedule.save_every",
)  # fmt: skip


def load(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """Loads `PATH.py[:arg]` and applies overrides.

    Args:
        name: path of the experiment file, optionally with the argument of its `get_config` after a colon.
        overrides: command-line words such as "--config.optimizer.learning_rate=3e-4".

    Raises:
        ExperimentError: no such file, a field that does not exist (with the nearest that does), a wrong type.
    """
    experiment = call_file("--config", name, "get_config", Experiment)
    if overrides:
        experiment = override(experiment, overrides)
    return experiment


def override(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with fields replaced by command-line words `--config.PATH=VALUE`."""
    words = list(_joined(overrides))
    for word in words:
        _check_path(experiment, word.partition("=")[0].removeprefix("--config."))
    mirror = _thaw(experiment)
    values = flags.FlagValues()
    argv = ["dit-video", *words]
    config_flags.DEFINE_config_dict("config", mirror, flag_values=values, lock_config=True, sys_argv=argv)
    try:
        values(argv)
        return _freeze(experiment, typing.cast(ConfigDict, values["config"].value), "config")
    except (flags.Error, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ExperimentError(f"{' '.join(words)}: {error}") from error


def from_json(data: Any, like: Experiment | None = None) -> Experiment:
    """The experiment that `to_json` wrote. It loads no code: other classes than of this package are those of `like`.

    Args:
        like: an experiment whose file the user has run himself; it stands for the classes that it is made of, and for
            all others that their modules define.

    Raises:
        ExperimentError: another value, a class or field that is not here, a value of another type than its field's or
            one that its component refuses; names the path.
    """
    experiment = components.from_json(data, "experiment", {} if like is None else own_classes(like))
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"not an experiment: {reprlib.repr(data)}")
    return experiment


def read(path: Path, like: Experiment | None = None) -> Experiment:
    """The experiment in the record of a run, which may be a stranger's; `like` as in `from_json`.

    Raises:
        FileNotFoundError: no such file.
        ExperimentError: no JSON, or no experiment of this version; names the file.
    """
    try:
        content = read_object(path)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    try:
        return from_json(content.get("experiment"), like)
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}") from error


def fingerprint(experiment: Experiment) -> str:
    """Digest of everything that decides what a run computes; mesh, threads and logging are left out."""
    leaves = {k: v for k, v in flatten(experiment).items() if not k.startswith(_NOT_IN_FINGERPRINT)}
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:16]


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Leaves by dotted path, as JSON values; the class of each part is a leaf too."""
    leaves: dict[str, Any] = {}

    def visit(path: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                visit(f"{path}.{key}" if path else key, value)
        else:
            leaves[path] = node

    visit("", to_json(experiment))
    return leaves


def diff(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """Leaves that differ, with the value on either side (None where a side has no such leaf)."""
    left, right = flatten(a), flatten(b)
    paths = sorted(left.keys() | right.keys())
    return {p: (left.get(p), right.get(p)) for p in paths if left.get(p) != right.get(p)}


def _joined(words: Sequence[str]) -> Iterator[str]:
    """`--config.a b` and `--config.a=b` are the same override."""
    words = list(words)
    while words:
        word = words.pop(0)
        if "=" not in word:
            if not words:
                raise ExperimentError(f"{word}: give a value, as in {word}=VALUE")
            word = f"{word}={words.pop(0)}"
        yield word


def _check_path(node: Any, path: str) -> None:
    """Raises an error that names the first part of `path` which does not exist, and the nearest one that does.

    A whole component is no value that a word of the command line could give.
    """
    where = "config"
    for part in path.split("."):
        names = _children(node)
        if part not in names:
            near = difflib.get_close_matches(part, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names) or 'no fields'}"
            raise ExperimentError(f"{where}.{part}: {type(node).__name__} has no such field; {hint}")
        node = node[part] if isinstance(node, Mapping) else getattr(node, part)
        where = f"{where}.{part}"
    if dataclasses.is_dataclass(node):
        raise ExperimentError(
            f"{where}: is a component, {type(node).__name__}; put another in its place in the experiment file, perhaps "
            "under an argument of its get_config, as --config=FILE.py:arg gives it"
            + (f". Of this one can be set: {', '.join(_children(node))}" if _children(node) else "")
        )


def _children(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        return list(node)
    return [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def _thaw(node: Any) -> Any:
    """A ConfigDict with the same fields; enums as their values, an empty optional as a typed placeholder."""
    if isinstance(node, Mapping):
        return ConfigDict({name: _thaw(value) for name, value in node.items()})
    hints = typing.get_type_hints(type(node))
    mirror = ConfigDict()
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            value = _thaw(value)
        elif isinstance(value, enum.Enum):
            value = value.value
        elif value is None:
            options = [t for t in typing.get_args(hints[field.name]) if t is not types.NoneType]
            plain = len(options) == 1 and options[0] in (int, float, str, bool, tuple)
            value = config_dict.placeholder(options[0] if plain else str)
        mirror[field.name] = value
    return mirror


def _freeze(node: Any, mirror: ConfigDict, where: str) -> Any:
    """The tree of `node` with the values of `mirror`."""
    if isinstance(node, Mapping):
        return {name: _freeze(value, mirror[name], f"{where}.{name}") for name, value in node.items()}
    hints = typing.get_type_hints(type(node))
    changes = {}
    for field in dataclasses.fields(node):
        old, new = getattr(node, field.name), mirror[field.name]
        path = f"{where}.{field.name}"
        if isinstance(new, ConfigDict):
            new = _freeze(old, new, path)
        elif isinstance(old, enum.Enum):
            new = enum_of(type(old), new, path)
        else:
            new = of_type(new, hints[field.name], path)
        if new is not old:
            changes[field.name] = new
    return dataclasses.replace(node, **changes) if changes else node
