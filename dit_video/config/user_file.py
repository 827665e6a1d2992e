"""Users' Python config files: `FILE.py[:arg]` is executed, and its function returns an experiment or another value."""

import importlib.util
import sys
from pathlib import Path
from typing import TypeVar

Kind = TypeVar("Kind")

# What a user's program usually fails with: its name and words are for its author, a traceback of ours is not.
PROGRAM_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip


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
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; there are {', '.join(near)}" if near else ""
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
