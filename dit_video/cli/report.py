"""`dit-video report`: one self-contained page of one or many runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.filesize import decimal

from dit_video.config.atomic import write_file
from dit_video.progress import Terminal
from dit_video.report.page import render
from dit_video.report.recorded_run import read_runs
from dit_video.run.folder import EXPERIMENT_FILE
from dit_video.storage.mirror import local_copy


def main(arguments: argparse.Namespace) -> int:
    # Shapes are all that is computed.
    jax.config.update("jax_platforms", "cpu")
    folders = [local_copy(folder, EXPERIMENT_FILE) for folder in arguments.workdirs]
    size = write_report(folders, arguments.out, title=arguments.title)
    runs = "1 run" if len(folders) == 1 else f"{len(folders)} runs"
    Terminal().print(f"report of {runs}: {arguments.out} ({decimal(size)}); open it in a browser")
    return 0


def write_report(folders: Sequence[Path], out: Path, *, title: str) -> int:
    """Writes the page of some runs; returns its size in bytes."""
    page = render(read_runs(folders), title=title).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page)
    return len(page)
