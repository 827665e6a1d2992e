"""`dit-video new`: writes an experiment file to start from."""

import argparse
import dataclasses
from pathlib import Path

from dit_video.cli.arguments import named
from dit_video.config.atomic import write_file
from dit_video.config.components import flatten
from dit_video.config.overrides import override
from dit_video.config.paths import shell_word
from dit_video.config.source_code import Source, source_of
from dit_video.config.user_file import packaged, packaged_experiments
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.experiment import Experiment
from dit_video.progress import Terminal

# Of which the class table of a condition is made.
_NUM_CLASSES = "task.condition.num_classes"
_WIDTH = 120
_FILE = '''"""From {origin}, by `dit-video new`. Say here what it is for, what it takes and what came out.

    dit-video show --config={file}   the experiment, its parameters and FLOPs
    dit-video train --config={file} --workdir={workdir}

A field can be changed without editing this file: --config.optimizer.learning_rate=3e-4.
"""

{imports}


def get_config(arg: str = "") -> Experiment:
    """`arg` is what stands after a colon, --config={file}:arg; here it changes nothing."""
    return {expression}
'''


def main(arguments: argparse.Namespace) -> int:
    file, origin = arguments.file, _address(arguments.origin)
    if file.suffix != ".py":
        raise ValueError(f"{file}: an experiment is a Python file; name it {file.with_suffix('.py')}")
    if file.exists():
        raise ValueError(f"{file}: is there already; remove it, or name another")
    console = Terminal()
    experiment = named(origin)
    if arguments.data is not None:
        experiment, notes = _on_data(experiment, arguments.data)
        for note in notes:
            console.print(note)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, experiment_file(experiment, file, arguments.origin).encode())
    console.print(
        f"done: {file}; read it, then\n  dit-video show --config={shell_word(file)} --check\n"
        f"  dit-video train --config={shell_word(file)} --workdir={shell_word(f'runs/{file.stem}')}"
    )
    return 0


def experiment_file(experiment: Experiment, file: Path, origin: str) -> str:
    """The text of an experiment file whose get_config returns `experiment`."""
    source = source_of(experiment, indent=4)
    # The name stands within a docstring.
    from_what = origin.replace("\\", "/").replace('"', "'")
    named_file, workdir = shell_word(file), shell_word(f"runs/{file.stem}")
    imports = _imports(source)
    return _FILE.format(origin=from_what, file=named_file, workdir=workdir, imports=imports, expression=source.text)


def _imports(source: Source) -> str:
    line = f"from dit_video import {', '.join(source.names)}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join(["from dit_video import (", *(f"    {name}," for name in source.names), ")"])


def _address(origin: str) -> str:
    """What --from names, as --config takes it: a bare name is that of an experiment of this package."""
    name, colon, argument = origin.partition(":")
    if Path(name).exists() or "/" in name or name.endswith((".py", ".json")):
        return origin
    address = f"experiments/{name}.py"
    if packaged(address) is None and not Path(address).is_file():
        known = ", ".join(Path(one.name).stem for one in packaged_experiments())
        raise ValueError(f"--from={origin}: is no file and no run here; of this package there are {known}")
    return address + colon + argument


def _on_data(experiment: Experiment, directory: str) -> tuple[Experiment, list[str]]:
    """The experiment on a user's set, with a cache of its own, and what is to be known of that."""
    data, notes = dataclasses.replace(experiment.data, source=VideoSet(directory=directory)), []
    if data.cache is not None:
        cache = f"{directory.rstrip('/')}_latents"
        data = dataclasses.replace(data, cache=LatentCache(directory=cache))
        notes.append(f"latents will be in {cache}: `dit-video encode` makes them, once the codec is trained")
    experiment = dataclasses.replace(experiment, data=data)
    try:
        classes = data.source.info().class_names
    except (FileNotFoundError, ValueError) as error:
        return experiment, [*notes, f"--data={directory}: {error}; what the file says of classes is not that set's"]
    if _NUM_CLASSES in flatten(experiment) and classes:
        experiment = override(experiment, [f"--config.{_NUM_CLASSES}={len(classes)}"])
    elif _NUM_CLASSES in flatten(experiment):
        experiment = override(experiment, ["--config.task.guidance.scale=1", "--config.task.condition=None"])
        notes.append(
            f"--data={directory}: has no classes, so condition=None and guidance 1; sub-folders of what is "
            "ingested would be classes"
        )
    return experiment, notes
