"""Command-line overrides of configuration fields, `--config.PATH=VALUE`.

They go through `ml_collections.config_flags`, on a ConfigDict mirror of the tree, as usual in the
JAX ecosystem; the tree is then rebuilt, which validates it again.
"""

import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from dit_video.config.components import enum_of, of_type
from dit_video.config.user_file import ExperimentError

Component = TypeVar("Component")


def override(component: Component, overrides: Sequence[str]) -> Component:
    """Applies command-line overrides `--config.PATH=VALUE` to a component.

    Where a field may be without its component, None takes it out: `--config.data.cache=None`.
    """
    words, absent = [], set()
    for word in _joined(overrides):
        path, _, value = word.removeprefix("--config.").partition("=")
        if value == "None" and _is_optional(component, path):
            absent.add(f"config.{path}")
            continue
        _check_path(component, path)
        if gone := [name for name in absent if f"config.{path}".startswith(f"{name}.")]:
            raise ExperimentError(f"config.{path}: {gone[0]}=None takes it out; leave one of them out")
        words.append(word)
    mirror = _thaw(component)
    values = flags.FlagValues()
    argv = ["dit-video", *words]
    config_flags.DEFINE_config_dict("config", mirror, flag_values=values, lock_config=True, sys_argv=argv)
    try:
        values(argv)
        return _freeze(component, typing.cast(ConfigDict, values["config"].value), "config", absent)
    except (flags.Error, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ExperimentError(f"{' '.join(words)}: {error}") from error


def _joined(words: Sequence[str]) -> Iterator[str]:
    """Joins `--config.a b` to `--config.a=b`."""
    words = list(words)
    while words:
        word = words.pop(0)
        if "=" not in word:
            if not words:
                raise ExperimentError(f"{word}: give a value, as in {word}=VALUE")
            word = f"{word}={words.pop(0)}"
        yield word


def _check_path(node: Any, path: str) -> None:
    """Checks that `path` exists; the error names its first unknown part and the nearest name that exists.

    A whole component is no value that a word of the command line could give.
    """
    where = "config"
    for part in path.split("."):
        names = _children(node)
        if part not in names:
            near = difflib.get_close_matches(part, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names) or 'no fields'}"
            raise ExperimentError(f"{where}.{part}: {type(node).__name__} has no such field; {hint}")
        if not part.isidentifier():
            raise ExperimentError(
                f"{where}.{part}: on the command line a name can have letters, digits and _ alone; give it another in "
                f"the experiment file, perhaps {re.sub(r'[^0-9A-Za-z_]+', '_', part)!r}, or change it there"
            )
        node = node[part] if isinstance(node, Mapping) else getattr(node, part)
        where = f"{where}.{part}"
    if dataclasses.is_dataclass(node) or isinstance(node, Mapping):
        kind = type(node).__name__ if dataclasses.is_dataclass(node) else "several by name"
        raise ExperimentError(
            f"{where}: is a component, {kind}; put another in its place in the experiment file, perhaps "
            "under an argument of its get_config, as --config=FILE.py:arg gives it"
            + (f". Of this one can be set: {', '.join(_children(node))}" if _children(node) else "")
        )


def _is_optional(component: Any, path: str) -> bool:
    """Whether `path` leads to a component that may be absent."""
    *parents, name = path.split(".")
    node = component
    for part in [*parents, name]:
        parent = node
        if part not in _children(node):
            return False
        node = node[part] if isinstance(node, Mapping) else getattr(node, part)
    if not dataclasses.is_dataclass(node) or not dataclasses.is_dataclass(parent):
        return False
    return types.NoneType in typing.get_args(typing.get_type_hints(type(parent))[name])


def _children(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        return list(node)
    return [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def _thaw(node: Any) -> Any:
    """Mirrors a dataclass tree as a ConfigDict; enums as values, an empty optional as a typed placeholder."""
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


def _freeze(node: Any, mirror: ConfigDict, where: str, absent: Set[str]) -> Any:
    """Rebuilds the dataclass tree of `node` with the values of its ConfigDict `mirror`, and None at paths of `absent`.

    All at once: a value may be right only together with another, as no condition with guidance 1.
    """
    if isinstance(node, Mapping):
        return {name: _freeze(value, mirror[name], f"{where}.{name}", absent) for name, value in node.items()}
    hints = typing.get_type_hints(type(node))
    changes = {}
    for field in dataclasses.fields(node):
        old, new = getattr(node, field.name), mirror[field.name]
        path = f"{where}.{field.name}"
        if path in absent:
            new = None
        elif isinstance(new, ConfigDict):
            new = _freeze(old, new, path, absent)
        elif isinstance(old, enum.Enum):
            new = enum_of(type(old), new, path)
        else:
            new = of_type(new, hints[field.name], path)
        if new is not old:
            changes[field.name] = new
    return dataclasses.replace(node, **changes) if changes else node
