"""Options of `dit-video pack` and `dit-video unpack`."""

import argparse

from dit_video.cli.usage.arguments import add_like, command, local_path, path, run_path, whole

EXAMPLES = """  dit-video pack runs/dit --out=dit.tar
  dit-video unpack dit.tar --out=theirs
  dit-video sample --workdir=theirs --label=3 --out=three.mp4

One file with all that sampling, export and reading on need: the experiment, the latest checkpoint, what was measured,
samples, and the codec. The data are not in it."""

UNPACK = """  dit-video unpack dit.tar --out=theirs

What is no plain file below one folder is refused, and then nothing is written. `tar xf` unpacks it too."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "pack", "make one file of a run, to give away", EXAMPLES)
    parser.add_argument("workdir", type=run_path, metavar="RUN", help="folder of the run, or gs://bucket/run")
    parser.add_argument("--out", type=local_path, required=True, metavar="FILE.tar", help="the file to write")
    parser.add_argument("--step", type=whole(0), help="checkpoint to pack (default: the latest)")
    add_like(parser)
    parser.set_defaults(run=_pack)
    parser = command(subparsers, "unpack", "make a run of a file that pack made", UNPACK)
    parser.add_argument("archive", type=path, metavar="FILE.tar", help="made by dit-video pack")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder of the run: new, or empty")
    parser.set_defaults(run=_unpack)


def _pack(arguments: argparse.Namespace) -> int:
    from dit_video.cli.pack import main

    return main(arguments)


def _unpack(arguments: argparse.Namespace) -> int:
    from dit_video.cli.pack import unpacked

    return unpacked(arguments)
