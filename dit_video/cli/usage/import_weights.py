"""Options of `dit-video import`."""

import argparse

from dit_video.cli.usage.arguments import add_config, command, local_path, path, path_text

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

Variants (fp16) and mixed types are read, and names under a prefix such as module. or _orig_mod.; where a folder has
several variants, name the file of one. docs/models.md lists what is read.

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
    parser.add_argument("source", type=path, metavar="FOLDER_OR_FILE", help="weights of diffusers or of official code")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder of the run: new, or empty")
    add_config(parser, required=False)
    parser.add_argument("--codec", type=path, metavar="RUN", help="run of the VAE that a denoiser without --config has")
    parser.add_argument(
        "--sha256",
        type=path_text,
        metavar="HEX_OR_FILE",
        help="digest that a torch file was published with, or a file of several, as sha256sum writes them",
    )
    parser.add_argument(
        "--allow_not_finite", action="store_true", help="take weights among which are NaN or infinite numbers"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.import_weights import main

    return main(arguments)
