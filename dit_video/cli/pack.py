"""`dit-video pack` and `dit-video unpack`: a run as one file."""

import argparse

from rich.filesize import decimal

from dit_video.cli.arguments import like_of
from dit_video.config.paths import shell_word
from dit_video.progress import Terminal
from dit_video.run.pack import pack, unpack


def main(arguments: argparse.Namespace) -> int:
    packed = pack(arguments.workdir, arguments.out, step=arguments.step, like=like_of(arguments))
    Terminal().print(
        f"done: {arguments.out}, {decimal(packed.num_bytes)} in {packed.num_files} files, step {packed.step}; "
        f"`dit-video unpack {shell_word(arguments.out.name)} --out=DIR` makes a run of it"
    )
    return 0


def unpacked(arguments: argparse.Namespace) -> int:
    unpack(arguments.archive, arguments.out)
    Terminal().print(
        f"done: {arguments.out}; `dit-video sample --workdir={shell_word(arguments.out)}` makes clips with it"
    )
    return 0
