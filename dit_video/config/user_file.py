"""Users' Python config files: `FILE.py[:arg]` is executed, and its function returns an experiment or another value."""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple, TypeVar

import dit_video

Kind = TypeVar("Kind")

# What a user's program usually fails with: its name and words are for its author, a traceback of ours is not.
PROGRAM_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip


# What the folder of our own experiments is called, in a checkout and by who types its files elsewhere.
_FOLDER = "experiments"


class ExperimentError(ValueError):
    """An experiment cannot be loaded, overridden or run; the message names the field and the remedy."""


def call_file(option: str, name: str, function: str, kind: type[Kind]) -> Kind:
    """Executes a Python file `PATH.py[:arg]` and returns the result of its `function(arg)`, which must be a `kind`.

    Args:
        option: the command-line option that named the file, for messages.
    """
    text, _, argument = name.partition(":")
    path = Path(text)
    if not path.is_file():
        path = packaged(name) or path
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; there are {', '.join(near)}" if near else ""
        if path.parent == Path(_FOLDER):
            hint += "; `dit-video experiments` lists those that come along"
        raise ExperimentError(f"{option} {path}: no such file{hint}")
    spec = importlib.util.spec_from_file_location(f"experiments_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{option} {path}: must be a Python file, FILE.py[:arg]")
    module = importlib.util.module_from_spec(spec)
    # As an import does it: dataclasses look up there what the annotations of a class mean.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ExperimentError(f'{option} {path}: defines no `{function}(arg: str = "") -> {kind.__name__}`')
        make = getattr(module, function)
        made = make(argument) if argument else make()
    except ExperimentError:
        raise
    except PROGRAM_ERRORS as error:
        raise ExperimentError(f"{option} {path}: {type(error).__name__}: {error}") from error
    if not isinstance(made, kind):
        raise ExperimentError(f"{option} {path}: {function} returned {type(made).__name__}, not an {kind.__name__}")
    return made


class Packaged(NamedTuple):
    """An experiment that came with this package.

    Attributes:
        name: as it is typed after --config.
        summary: first line of its docstring.
        argument: what may stand after a colon: the docstring of its get_config; empty where it has none.
    """

    name: str
    summary: str
    argument: str


def packaged(name: str) -> Path | None:
    """The file of this package that `experiments/FILE.py[:arg]` means where there is none here; None if it has none."""
    path = Path(name.partition(":")[0])
    if path.parent != Path(_FOLDER) or path.is_file():
        return None
    file = _packaged_folder() / path.name
    return file if file.is_file() else None


def packaged_experiments() -> list[Packaged]:
    """All experiments that came with this package; their files are read and not run."""
    return [_described(file) for file in sorted(_packaged_folder().glob("[!_]*.py"))]


def _packaged_folder() -> Path:
    """`dit_video/experiments` as it is installed, or `experiments` beside the package in a checkout."""
    package = Path(dit_video.__file__).parent
    return package / _FOLDER if (package / _FOLDER).is_dir() else package.parent / _FOLDER


def _described(file: Path) -> Packaged:
    module = ast.parse(file.read_text())
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "get_config"]
    argument = next((ast.get_docstring(function) or "" for function in functions), "")
    summary = (ast.get_docstring(module) or "").partition("\n")[0]
    return Packaged(f"{_FOLDER}/{file.name}", summary, argument.partition("\n")[0])
