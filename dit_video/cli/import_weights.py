"""dit-video import"""

import argparse
from pathlib import Path

from rich.console import Console

from dit_video.cli.arguments import add_config, command, local_path
from dit_video.experiment import load
from dit_video.export.folder import fresh_folder
from dit_video.run.imported import import_run
from dit_video.weights.source import read_digests

EXAMPLES = """  dit-video import DiT-XL-2-256 --out=runs/dit_xl
  dit-video sample --workdir=runs/dit_xl --label="golden retriever" --guidance=4 --out=dogs.gif
  dit-video import sd-vae-ft-mse --out=runs/sd_vae
  dit-video import DiT-XL-2-256x256.pt --sha256=... --codec=runs/sd_vae --out=runs/dit_xl
  dit-video import DiT-XL-2-256/transformer --config=mine.py --out=runs/dit_xl
  dit-video import Latte-1 --sha256=SHA256SUMS --out=runs/latte
  dit-video train --config=mine.py --init_from=runs/dit_xl --workdir=runs/tuned

Reads a folder of diffusers (a pipeline, or one network of it; in one file or in shards) or a file of official weights.
Every tensor is mapped exactly once or nothing is written. Torch files (.bin, .pt, .pth) hold programs: they are read by
a reader that runs none, and only with the digests that they were published with; several are listed in a file, as
`sha256sum */*.bin` writes it in the folder.

What weights do not say comes from elsewhere. Of a pipeline all its parts are read, and the run can be sampled from at
once; a network alone needs the run of its VAE (--codec) or an experiment (--config): then data, codec and sampler are
that one's, and its network must be that of the weights; where it is not, the message says which fields differ.

families
  DiT as published   DiTTransformer2DModel, facebookresearch/DiT
  Latte              LatteTransformer3DModel, Vchitect/Latte
  SD3, SD3.5         SD3Transformer2DModel, Stability-AI/sd3.5 (in one file, with or without VAE and text encoders)
  Wan 2.1, 2.2       WanTransformer3DModel, Wan-Video/Wan2.1 and Wan2.2 (WanModel)
  VAEs               AutoencoderKL (SD, SDXL, SD3, Flux), AutoencoderKLWan, AutoencoderKLCogVideoX"""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "import", "make a run of weights that others have published", EXAMPLES)
    parser.add_argument("source", type=Path, metavar="FOLDER_OR_FILE", help="weights of diffusers or of official code")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder of the run: new, or empty")
    add_config(parser, required=False)
    parser.add_argument("--codec", type=Path, metavar="RUN", help="run of the VAE that a denoiser without --config has")
    parser.add_argument(
        "--sha256",
        metavar="HEX_OR_FILE",
        help="digest that a torch file was published with, or a file of several, as sha256sum writes them",
    )
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    if arguments.config is None and arguments.overrides:
        raise ValueError(f"{arguments.overrides[0]}: there is no experiment to change; name one with --config")
    if arguments.config is not None and arguments.codec is not None:
        raise ValueError(f"--codec={arguments.codec}: the experiment of --config names its own; leave one of them out")
    experiment = None if arguments.config is None else load(arguments.config, arguments.overrides)
    with fresh_folder(arguments.out) as folder:
        parts = import_run(
            arguments.source,
            folder,
            out=arguments.out,
            experiment=experiment,
            overrides=tuple(arguments.overrides),
            codec=arguments.codec,
            digests={} if arguments.sha256 is None else read_digests(arguments.sha256, arguments.source),
        )
    lines = [
        f"{part.network}: {part.num_tensors} tensors of {part.dtype}, each mapped once: {part.num_params:,} parameters "
        "in float32"
        for part in parts
    ]
    for part in parts:
        if part.num_beside:
            lines.append(f"not read: {part.num_beside} tensors of the file that are of its VAE or text encoders")
        if part.not_followed:
            lines.append(f"not followed of its scheduler, so that samples differ: {', '.join(part.not_followed)}")
        if part.needs:
            lines.append(f"keep these folders, which the run reads: {', '.join(part.needs)}")
    lines.append(
        f"done: {arguments.out}; export takes it as --workdir, as do sample (a denoiser) and evaluate (where --config "
        f"gave it data); `dit-video train --init_from={arguments.out}` starts from it"
    )
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0
