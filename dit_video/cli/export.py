"""`dit-video export`: safetensors, StableHLO, diffusers or PyTorch files of a run, compared with its checkpoint."""

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dit_video import experiment as experiments
from dit_video.cli.usage.export import ALONE, DEFAULT, DIFFUSERS, FLOAT32, HUB, NONE, SAFETENSORS, STABLEHLO, TORCH
from dit_video.cli.weights import open_weights
from dit_video.config.atomic import new_folder
from dit_video.config.components import record
from dit_video.config.json_file import read_object
from dit_video.export import hub
from dit_video.export.diffusers_folder import Parity, write_diffusers
from dit_video.export.diffusers_pipeline import write_pipeline
from dit_video.export.folder import README, write_readme
from dit_video.export.stablehlo import BATCH_SIZES, write_programs
from dit_video.export.torch.folder import write_torch
from dit_video.export.weights import Content, Denoiser, Origin, write_params, write_weights
from dit_video.progress import Terminal
from dit_video.published.recognise import is_published_vae
from dit_video.run import codec as trained_codec
from dit_video.run.open_run import OpenRun
from dit_video.tasks.task import Task
from dit_video.weights.pipeline import parts_of, read_parts
from dit_video.weights.source import PROVENANCE


def main(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
    formats = _formats(arguments)
    with new_folder(arguments.out) as folder:
        opened = open_weights(arguments, console, needs_data=False)
        alone = next((name for name in formats if name in ALONE), None)
        if _is_own(opened.experiment.task):
            lines = _write_own(opened, folder, arguments)
        elif alone is None:
            lines = _write(_content(arguments, opened, console), folder, STABLEHLO in formats)
        else:
            content = _content(arguments, opened, console)
            if alone == TORCH:
                lines = _compared(write_torch(content, folder), TORCH)
            else:
                lines = _write_diffusers(arguments, opened, content, folder)
    if not arguments.json:
        _show(console, arguments.out, lines)
    address = None
    if arguments.push_to is not None:
        address = hub.push(arguments.out, arguments.push_to, private=arguments.private)
        console.print(f"pushed: {address}")
    if arguments.json:
        files = {name: path.stat().st_size for name, path in _files(arguments.out).items()}
        found = {"out": str(arguments.out), "files": files, "compared": lines, "pushed": address}
        print(json.dumps(found, indent=1))
    return 0


def _show(console: Console, out: Path, lines: list[str]) -> None:
    table = Table("file", "bytes")
    table.columns[1].justify = "right"
    for name, path in _files(out).items():
        table.add_row(name, f"{path.stat().st_size:,}")
    console.print(table)
    readme = "; README.md in it says how to load it" if (out / README).is_file() else ""
    console.print("\n".join([*lines, f"done: {out}{readme}"]))


def _files(out: Path) -> dict[str, Path]:
    """The files in a folder and below, by name."""
    return {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}


def _formats(arguments: argparse.Namespace) -> list[str]:
    """What is to be written.

    Raises:
        ValueError: not into one folder, or it could not be pushed; says what to do.
    """
    formats = [name for name in arguments.format if name != HUB] or list(DEFAULT)
    if len(formats) > 1 and (alone := [name for name in formats if name in ALONE]):
        raise ValueError(f"--format {' '.join(formats)}: {alone[0]} is a folder of its own; export twice")
    if arguments.dtype != FLOAT32 and formats != [DIFFUSERS]:
        raise ValueError(f"--dtype {arguments.dtype}: of --format {DIFFUSERS} alone; others are as exact as the run")
    if arguments.pipeline is not None and formats != [DIFFUSERS]:
        raise ValueError(f"--pipeline {arguments.pipeline}: is of --format {DIFFUSERS} alone")
    if HUB in arguments.format:
        if arguments.push_to is None:
            raise ValueError(f"--format {HUB}: say which repository with --push_to OWNER/NAME")
        hub.check(arguments.push_to)
    elif arguments.push_to is not None or arguments.private:
        raise ValueError(f"--push_to, --private: nothing is pushed; add {HUB} to --format")
    return formats


def _write(content: Content, folder: Path, programs: bool) -> list[str]:
    """Writes safetensors, and StableHLO with `programs`; returns lines that say what was compared."""
    config, num_tensors = write_weights(content, folder)
    compared = write_programs(content, folder) if programs else []
    write_readme(folder, config)
    sizes = " and ".join(map(str, BATCH_SIZES))
    return [
        f"compared with the checkpoint: {num_tensors} tensors bit-equal",
        *(f"{p.file} at batch sizes {sizes}: {p.measure} {p.error:.3g} (allowed {p.tolerance:g})" for p in compared),
    ]


def _write_diffusers(arguments: argparse.Namespace, opened: OpenRun, content: Content, folder: Path) -> list[str]:
    """Writes the network, and of a denoiser the pipeline around it; returns lines that say what was compared."""
    parts = None if arguments.pipeline == NONE or content.denoiser is None else read_parts(opened.workdir)
    if arguments.pipeline is None and parts is not None and not is_published_vae(content.codec.vae.config):
        lines = _compared(write_diffusers(content, folder, arguments.dtype), DIFFUSERS)
        return [*lines, "the network alone, for the VAE of the run is none of diffusers' and makes no pipeline"]
    if arguments.pipeline not in (None, NONE):
        if content.denoiser is None:
            raise ValueError(f"--pipeline {arguments.pipeline}: {arguments.workdir} trained a codec, which is a part")
        named = arguments.pipeline
        parts = parts_of(named) if parts is None else dataclasses.replace(parts, folder=named)
    if parts is None:
        return _compared(write_diffusers(content, folder, arguments.dtype), DIFFUSERS)
    class_names = opened.experiment.data.source.info().class_names
    written = write_pipeline(content, folder, parts, arguments.dtype, class_names)
    return [
        *(f"{name}: {line}" for name, parity in written.compared.items() for line in _compared(parity, DIFFUSERS)),
        f"as they are in {parts.folder}: {', '.join(written.copied)}",
        *written.notes,
    ]


def _is_own(task: Task) -> bool:
    """Whether a task is a user's own, neither a denoiser of latents nor a VAE: then its weights alone are exported."""
    return task.latent_denoiser() is None and task.learnt_vae is None


def _write_own(opened: OpenRun, folder: Path, arguments: argparse.Namespace) -> list[str]:
    kind = type(opened.experiment.task).__name__
    if surplus := [name for name in arguments.format if name not in (SAFETENSORS, HUB)]:
        raise ValueError(f"--format {surplus[0]}: of a {kind} weights alone are exported; use --format {SAFETENSORS}")
    num_tensors = write_params(opened.params, _origin(opened), folder)
    return [f"compared with the checkpoint: {num_tensors} tensors bit-equal"]


def _compared(parity: Parity, library: str) -> list[str]:
    """Lines that say what was compared with another library."""
    outputs = (
        f"outputs were NOT compared with those of {library}: it is not installed here"
        if parity.error is None
        else f"{parity.num_compared} layers and outputs of {library}: largest difference over largest value "
        f"{parity.error:.3g} (allowed {parity.tolerance:g})"
    )
    rounded = "" if parity.dtype == FLOAT32 else f" after rounding it to {parity.dtype}"
    return [f"compared with the checkpoint{rounded}: {parity.num_tensors} tensors bit-equal", outputs]


def _content(arguments: argparse.Namespace, opened: OpenRun, console: Console) -> Content:
    experiment = opened.experiment
    task = experiment.task.latent_denoiser()
    if task is not None:
        denoiser = Denoiser(task, opened.definition.bind(opened.params))
        codec = opened.frozen.codec
    elif arguments.raw or arguments.step is not None:
        raise ValueError(
            f"{arguments.workdir} trained a codec: leave out --raw and --step; a codec is the averaged weights of its "
            "last step, with the latent statistics measured for them"
        )
    else:
        denoiser, (codec, _) = None, trained_codec.codec_of_run(opened.workdir, opened.mesh, console, experiment)
    clips = experiment.data.clips
    shape = (clips.num_frames, *clips.size)
    signals = experiment.task.example(experiment.data, 1).signals
    return Content(denoiser, codec, shape, _origin(opened), signals)


def _origin(opened: OpenRun) -> Origin:
    provenance = opened.workdir / PROVENANCE
    return Origin(
        run=opened.workdir.resolve().name,
        step=opened.step,
        ema=opened.ema,
        fingerprint=experiments.fingerprint(opened.identity),
        task=record(opened.identity.task),
        imported=read_object(provenance) if provenance.is_file() else None,
    )
