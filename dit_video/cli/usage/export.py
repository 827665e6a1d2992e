"""Options of `dit-video export`."""

import argparse
from pathlib import Path

from dit_video.cli.usage.arguments import add_weights, command, local_path, path

EXAMPLES = """  dit-video export --workdir=runs/grid_dit --out=exported
  dit-video export --workdir=runs/grid_dit --out=exported_raw --step=5000 --raw
  dit-video export --workdir=runs/grid_vae --out=exported_vae --format=safetensors
  dit-video export --workdir=runs/dit_xl --out=for_diffusers --format=diffusers
  dit-video export --workdir=runs/dit_xl --out=for_diffusers --format=diffusers --dtype=bfloat16
  dit-video export --workdir=runs/dit_xl --out=transformer --format=diffusers --pipeline=none
  dit-video export --workdir=runs/grid_dit --out=for_torch --format torch hub --push_to=somebody/videos --private

safetensors  weights of denoiser and codec by name, and config.json, which rebuilds them
stablehlo    that, and denoiser and decoder as programs for CPU, CUDA and TPU: any batch size, called with those weights
diffusers    a folder that diffusers loads with from_pretrained: of a run that came from a pipeline, or goes on from one
             that did, the whole pipeline; else the network, where diffusers has a class for it
torch        a folder with the networks as PyTorch modules in files of their own, which need torch and safetensors
hub          pushes the finished folder to --push_to on the Hugging Face Hub; beside the formats that it is to have

Everything is loaded again from disk and compared with the checkpoint before the folder gets its name; the README.md in
it says how to load it."""

SAFETENSORS, STABLEHLO, DIFFUSERS, TORCH, HUB = "safetensors", "stablehlo", "diffusers", "torch", "hub"
DEFAULT = (SAFETENSORS, STABLEHLO)
# Formats that are a folder of their own.
ALONE = (DIFFUSERS, TORCH)
FLOAT32 = "float32"
# Of --pipeline.
NONE = Path("none")
DTYPES = (FLOAT32, "bfloat16", "float16")


def add_parser(subparsers) -> None:
    parser = command(
        subparsers, "export", "write the weights of a run, and programs that use them, to take away", EXAMPLES
    )
    add_weights(parser)
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder to write: new, or empty")
    parser.add_argument(
        "--format",
        choices=(*DEFAULT, *ALONE, HUB),
        nargs="+",
        default=[],
        help=f"what to write (default: {' '.join(DEFAULT)}; {' and '.join(ALONE)} are folders of their own), and "
        f"{HUB} to push it",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=FLOAT32,
        help=f"type of the weights of {DIFFUSERS} (default {FLOAT32}, which is exact; others take half the bytes)",
    )
    parser.add_argument(
        "--pipeline",
        type=path,
        metavar="DIR",
        help=f"pipeline whose other parts {DIFFUSERS} takes, where it is no longer where it was imported from, or of a "
        f"run that came from none; {NONE}: the network alone",
    )
    parser.add_argument(
        "--push_to", metavar="OWNER/NAME", help=f"repository that {HUB} pushes to; made if it is not there"
    )
    parser.add_argument("--private", action="store_true", help="push to a private repository")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.export import main

    return main(arguments)
