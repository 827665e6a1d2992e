"""Pages of the documentation site that are made when it is built: commands, components, experiments, the notebook.

A hook of MkDocs (`mkdocs.yml`). Nothing of it is kept in files, so that it says what this version does.
"""

import argparse
import ast
import dataclasses
import enum
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dit_video.cli.main import COMMANDS
from dit_video.config.names import MODULES

ROOT = Path(__file__).parent.parent
_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): ")


def pages() -> dict[str, str]:
    """Markdown by path in the site."""
    return {
        "reference/commands.md": commands(),
        "reference/components.md": components(),
        "reference/experiments.md": experiments(),
        "from_python.md": notebook(),
    }


def on_files(files, config):
    """Called by MkDocs: adds the pages."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def commands() -> str:
    """The help of every command, in the order of work."""
    os.environ["COLUMNS"] = "110"
    parser = argparse.ArgumentParser(prog="dit-video")
    subparsers = parser.add_subparsers()
    for module in COMMANDS:
        module.add_parser(subparsers)
    parts = ["# Commands", "In the order of work. This is what `dit-video COMMAND --help` prints."]
    for name, command in _commands(subparsers):
        parts += [f"## {name}", f"```text\n{command.format_help().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def components() -> str:
    """Every component that an experiment can name: what it is, its fields and their defaults."""
    parts = [
        "# Parts of an experiment",
        "All are imported from one place: `from dit_video import NAME`. "
        "Each is a frozen dataclass, and has this name in the record of a run.",
    ]
    for module, names in _by_module().items():
        parts += [f"## {module.removeprefix('dit_video.')}", _escaped(_summary(importlib.import_module(module)))]
        for name in names:
            parts += _component(getattr(importlib.import_module(module), name))
    return "\n\n".join(parts) + "\n"


def experiments() -> str:
    """The docstring of every experiment: command, cost, result."""
    parts = ["# Experiments and their results", "`dit-video experiments` lists them, `dit-video new` starts from one."]
    for path in sorted((ROOT / "experiments").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        parts += [f"## {path.stem}", _as_markdown(text)]
    return "\n\n".join(parts) + "\n"


def notebook() -> str:
    """The cells of docs/from_python.ipynb, and a link to it."""
    file = ROOT / "docs" / "from_python.ipynb"
    parts = []
    for cell in json.loads(file.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"The same as a notebook: [{file.name}]({file.name})."]) + "\n"


def _commands(subparsers: Any, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for name, command in subparsers.choices.items():
        yield f"{before}{name}", command
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _commands(action, f"{before}{name} ")


def _by_module() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, module in MODULES.items():
        found.setdefault(module, []).append(name)
    return dict(sorted(found.items()))


def _component(kind: type) -> list[str]:
    meanings = _meanings(kind)
    parts = [f"### {kind.__name__}", _escaped(_summary(kind))]
    rows = [
        f"| `{field.name}` | `{_type(field.type)}` | {_default(field)} | {_escaped(meanings.get(field.name, ''))} |"
        for field in dataclasses.fields(kind)
        if field.init
    ]
    if rows:
        parts.append("\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows]))
    return parts


def _summary(thing: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def _meanings(kind: type) -> dict[str, str]:
    """What `Attributes:` of a class and of those it is made of say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        names: list[str] = []
        _, _, section = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            if match := _ATTRIBUTE.match(line):
                names, line = match[1].split(", "), line[match.end() :]
            for name in names:
                found[name] = " ".join([*found.get(name, "").split(), *line.split()])
    return found


def _type(hint: Any) -> str:
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
    return re.sub(r"(\w+\.)+(?=\w)", "", str(text)).replace("|", "or")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default.value if isinstance(field.default, enum.Enum) else field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    text = type(value).__name__ + "(...)" if dataclasses.is_dataclass(value) else repr(value)
    return f"`{text if len(text) <= 40 else text[:37] + '...'}`".replace("|", "\\|")


def _as_markdown(text: str) -> str:
    """A docstring whose indented lines are commands."""
    lines, inside = [], False
    for line in text.splitlines():
        indented = line.startswith("    ")
        if line and indented != inside:
            lines.append("```text" if indented else "```\n")
            inside = indented
        lines.append(line[4:] if indented else _escaped(line))
    return "\n".join([*lines, *(["```"] if inside else [])])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; what stands between back-ticks is code already."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([\\*_\[\]|])", r"\\\1", piece).replace("<", "&lt;") for piece in pieces[::2]]
    return "`".join(pieces)
