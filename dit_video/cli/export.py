"""dit-video export"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dit_video import experiment as experiments
from dit_video import run, trained_codec
from dit_video.cli.arguments import add_weights, command, like_of
from dit_video.export.diffusers_folder import TOLERANCE, write_diffusers
from dit_video.export.folder import fresh_folder, write_readme
from dit_video.export.source import PROVENANCE
from dit_video.export.stablehlo import BATCH_SIZES, write_programs
from dit_video.export.weights import Content, Denoiser, Origin, write_weights
from dit_video.json_file import read_object
from dit_video.tasks.denoise import Denoise

SAFETENSORS, STABLEHLO, DIFFUSERS = "safetensors", "stablehlo", "diffusers"

EXAMPLES = """  dit-video export --workdir=runs/grid_dit --out=exported
  dit-video export --workdir=runs/grid_dit --out=exported_raw --step=5000 --raw
  dit-video export --workdir=runs/grid_vae --out=exported_vae --format=safetensors
  dit-video export --workdir=runs/dit_xl --out=for_torch --format=diffusers

safetensors  weights of denoiser and codec by name, and config.json, which rebuilds them
stablehlo    that, and denoiser and decoder as programs for CPU, CUDA and TPU: any batch size, called with those weights
diffusers    a folder that a class of diffusers loads with from_pretrained: of DiT as published, on images

Everything is loaded again from disk and compared with the checkpoint before the folder gets its name; the README.md in
it says how to load it."""


def add_parser(subparsers) -> None:
    parser = command(
        subparsers, "export", "write the weights of a run, and programs that use them, to take away", EXAMPLES
    )
    add_weights(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write: new, or empty")
    parser.add_argument(
        "--format",
        choices=(SAFETENSORS, STABLEHLO, DIFFUSERS),
        nargs="+",
        default=[SAFETENSORS, STABLEHLO],
        help=f"what to write (default: {SAFETENSORS} {STABLEHLO}; {DIFFUSERS} is a folder of its own)",
    )
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    console = Console()
    if DIFFUSERS in arguments.format and len(arguments.format) > 1:
        raise ValueError(f"--format {' '.join(arguments.format)}: {DIFFUSERS} is a folder of its own; export twice")
    with fresh_folder(arguments.out) as folder:
        content = _content(arguments, console)
        lines = (
            _write_for_diffusers(content, folder)
            if DIFFUSERS in arguments.format
            else _write(content, folder, STABLEHLO in arguments.format)
        )
    table = Table("file", "bytes")
    table.columns[1].justify = "right"
    for path in sorted(arguments.out.iterdir()):
        table.add_row(path.name, f"{path.stat().st_size:,}")
    console.print(table)
    lines.append(f"done: {arguments.out}; README.md in it says how to load it")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    return 0


def _write(content: Content, folder: Path, programs: bool) -> list[str]:
    """Writes the formats of this package; what was compared, in words."""
    config, num_tensors = write_weights(content, folder)
    compared = write_programs(content, folder) if programs else []
    write_readme(folder, config)
    sizes = " and ".join(map(str, BATCH_SIZES))
    return [
        f"compared with the checkpoint: {num_tensors} tensors bit-equal",
        *(f"{p.file} at batch sizes {sizes}: {p.measure} {p.error:.3g} (allowed {p.tolerance:g})" for p in compared),
    ]


def _write_for_diffusers(content: Content, folder: Path) -> list[str]:
    """Writes a folder for diffusers; what was compared, in words."""
    parity = write_diffusers(content, folder)
    outputs = (
        "outputs were NOT compared with those of diffusers: torch or diffusers is not installed here"
        if parity.error is None
        else f"{parity.num_compared} layers and outputs of diffusers: largest difference over largest value "
        f"{parity.error:.3g} (allowed {TOLERANCE:g})"
    )
    return [f"compared with the checkpoint: {parity.num_tensors} tensors bit-equal", outputs]


def _content(arguments: argparse.Namespace, console: Console) -> Content:
    like = like_of(arguments)
    opened = run.open_run(arguments.workdir, step=arguments.step, ema=not arguments.raw, like=like, console=console)
    experiment = opened.experiment
    if isinstance(experiment.task, Denoise):
        denoiser = Denoiser(experiment.task, opened.definition.bind(opened.params))
        assert opened.frozen is not None, "open_run loads the codec of a denoising run"
        codec = opened.frozen.codec
    elif arguments.raw or arguments.step is not None:
        raise ValueError(
            f"{arguments.workdir} trained a codec: leave out --raw and --step; a codec is the averaged weights of its "
            "last step, with the latent statistics measured for them"
        )
    else:
        denoiser, (codec, _, _) = None, trained_codec.codec_of_run(arguments.workdir, opened.mesh, console, experiment)
    provenance = arguments.workdir / PROVENANCE
    origin = Origin(
        run=arguments.workdir.resolve().name,
        step=opened.step,
        ema=opened.ema,
        fingerprint=experiments.fingerprint(experiment),
        task=experiments.to_json(experiment.task),
        imported=read_object(provenance) if provenance.is_file() else None,
    )
    clips = experiment.data.clips
    shape = (clips.num_frames, *clips.size)
    return Content(denoiser, codec, shape, origin, caption_bytes=experiment.data.caption_bytes)
