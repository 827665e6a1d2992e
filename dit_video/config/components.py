"""Serialisation of configuration: trees of frozen dataclasses to JSON and back.

An experiment is such a tree, and an export takes the part of it along that its weights belong to. Reading one loads no
code but this package's.
"""

import dataclasses
import enum
import importlib
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from dit_video.config.names import FORMAT, MODULES
from dit_video.config.old_records import upgrade
from dit_video.config.user_file import PROGRAM_ERRORS, ExperimentError

# Twice that of any experiment; Python ends at some hundred.
_MAX_DEPTH = 24
_MISFIT = object()


def to_json(value: Any) -> Any:
    """Serialises a value to JSON data: a dataclass becomes an object whose "class" names it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": _name_of(type(value))} | {
            f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {k: to_json(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ExperimentError(f"{value!r}: an experiment holds numbers, strings, tuples, enums and dataclasses only")


def record(component: Any) -> dict[str, Any]:
    """What `to_json` makes, with the version of its format."""
    return {"format": FORMAT, **to_json(component)}


def from_json(data: Any, where: str, own: Mapping[str, type] | None = None) -> Any:
    """The component that `to_json` or `record` wrote, or a version from before.

    Args:
        where: its path, for messages.
        own: classes of other packages that may be made, by name (`own_classes`).

    Raises:
        ExperimentError: another value, a class or field that is not here, a value of another type than its field's or
            one that its component refuses; names the path.
    """
    if isinstance(data, dict):
        version = data.get("format", 1)
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise ExperimentError(
                f"{where}: is of format {reprlib.repr(version)}, this version of dit_video reads {FORMAT} and before; "
                "it was written by a newer one"
            )
        try:
            data = {k: v for k, v in (data if version == FORMAT else upgrade(data, where)).items() if k != "format"}
        except RecursionError as error:
            raise ExperimentError(f"{where}: nested deeper than {_MAX_DEPTH} components") from error
    return _from_json(data, None, where, 0, own or {})


def own_classes(component: Any) -> dict[str, type]:
    """Dataclasses of users' own modules that a component contains, by name, with the others of those modules."""
    classes: set[type] = set()

    def visit(node: Any) -> None:
        if isinstance(node, Mapping | tuple):
            for item in node.values() if isinstance(node, Mapping) else node:
                visit(item)
        elif dataclasses.is_dataclass(node):
            if not _is_ours(type(node).__module__):
                classes.add(type(node))
            for field in dataclasses.fields(node):
                visit(getattr(node, field.name))

    visit(component)
    siblings = {
        kind
        for name in {kind.__module__ for kind in classes}
        for kind in vars(sys.modules[name]).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == name
    }
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*siblings, *classes)}


def of_type(value: Any, hint: Any, where: str) -> Any:
    """Checks and converts a leaf to its field's type; ExperimentError where it does not fit."""
    try:
        typed = _typed(value, hint)
    except OverflowError as error:
        raise ExperimentError(f"{where}={reprlib.repr(value)}: {error}") from error
    if typed is _MISFIT:
        kind = hint.__name__ if isinstance(hint, type) else hint
        raise ExperimentError(f"{where}={reprlib.repr(value)}: must be of type {kind}")
    return typed


def enum_of(kind: type[enum.Enum], value: Any, where: str) -> enum.Enum:
    """The enum member with this value; ExperimentError where there is none."""
    try:
        return kind(value)
    except ValueError:
        raise ExperimentError(f"{where}={value!r}: must be one of {', '.join(str(m.value) for m in kind)}") from None


def _typed(value: Any, hint: Any) -> Any:
    """A leaf converted to its field's type (int to float, value to enum member, "None" to None), or _MISFIT."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        return value if value in arguments else _MISFIT
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in arguments and value in (None, "None"):
            return None
        typed = (_typed(value, argument) for argument in arguments)
        return next((item for item in typed if item is not _MISFIT), _MISFIT)
    if origin is tuple and isinstance(value, tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        items = tuple(_typed(item, kind) for item, kind in zip(value, kinds))
        return items if len(kinds) == len(value) and _MISFIT not in items else _MISFIT
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum) and not isinstance(value, hint):
        return next((member for member in hint if member.value == value), _MISFIT)
    return value if isinstance(value, origin or hint) else _MISFIT


def _from_json(data: Any, hint: Any, where: str, depth: int, own: Mapping[str, type]) -> Any:
    """Deserialises JSON data to the type `hint`, None for any; `own` are users' classes by name."""
    if depth > _MAX_DEPTH:
        raise ExperimentError(f"{where}: nested deeper than {_MAX_DEPTH} components")
    kinds = typing.get_args(hint)
    if isinstance(data, dict) and "class" in data:
        value = _component(data, where, depth, own)
    elif isinstance(data, dict):
        kind = kinds[1] if len(kinds) == 2 and typing.get_origin(hint) is Mapping else None
        value = {k: _from_json(v, kind, f"{where}.{k}", depth + 1, own) for k, v in data.items()}
    elif isinstance(data, list):
        of_each = kinds if typing.get_origin(hint) is tuple and len(kinds) == len(data) else (None,) * len(data)
        if typing.get_origin(hint) is tuple and kinds[-1] is Ellipsis:
            of_each = kinds[:1] * len(data)
        parts = enumerate(zip(data, of_each))
        value = tuple(_from_json(v, kind, f"{where}.{number}", depth + 1, own) for number, (v, kind) in parts)
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        value = enum_of(hint, data, where)
    else:
        value = data
    return value if hint is None else of_type(value, hint, where)


def _component(data: dict[str, Any], where: str, depth: int, own: Mapping[str, type]) -> Any:
    kind = _class(data["class"], where, own)
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind) if f.init}
    for name in sorted(data.keys() - {"class"} - names):
        raise ExperimentError(f"{where}.{name}: {kind.__name__} has no such field in this version")
    values = {k: _from_json(v, hints[k], f"{where}.{k}", depth + 1, own) for k, v in data.items() if k != "class"}
    try:
        return kind(**values)
    except PROGRAM_ERRORS as error:
        raise ExperimentError(f"{where}: {kind.__name__}: {error}") from error


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == __name__.split(".")[0]


def _name_of(kind: type) -> str:
    """What a record calls a class: of this package its name alone, of another its address."""
    address = f"{kind.__module__}.{kind.__qualname__}"
    if not _is_ours(kind.__module__):
        return address
    if MODULES.get(kind.__name__) != kind.__module__:
        raise ExperimentError(f"{address}: is no component of an experiment; config/names.py lists them")
    return kind.__name__


def _class(name: Any, where: str, own: Mapping[str, type]) -> type:
    if not isinstance(name, str):
        raise ExperimentError(f"{where}: class {reprlib.repr(name)} is no name")
    if name in own:
        return own[name]
    if name in MODULES:
        return getattr(importlib.import_module(MODULES[name]), name)
    module, _, _ = name.rpartition(".")
    if not module or _is_ours(module):
        raise ExperimentError(f"{where}: this version of dit_video has no {name}")
    raise ExperimentError(
        f"{where}: class {name!r} is not of this package, and a record must not load code; give the experiment "
        f"file that is made of it, or of another class of {module!r}: --config=FILE.py[:arg]"
    )


def flatten(component: Any) -> dict[str, Any]:
    """Flattens a component: leaves by dotted path, as JSON values; the class of each part is a leaf too."""
    leaves: dict[str, Any] = {}

    def visit(path: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                visit(f"{path}.{key}" if path else key, value)
        else:
            leaves[path] = node

    visit("", to_json(component))
    return leaves


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Leaves that differ between two components, with the value on either side (None where a side has no such leaf)."""
    left, right = flatten(a), flatten(b)
    paths = sorted(left.keys() | right.keys())
    return {p: (left.get(p), right.get(p)) for p in paths if left.get(p) != right.get(p)}
