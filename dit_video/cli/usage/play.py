"""Options of `dit-video play`."""

import argparse
from pathlib import Path

from dit_video.cli.usage.arguments import command, local_path, path, whole

EXAMPLES = """  dit-video play --workdir=runs/corridor
      a page on 127.0.0.1: arrow keys or touch act, the true world is beside the dream where it is there
  dit-video play --workdir=runs/corridor --guided
      with a slider for guidance on actions, at twice the work a frame
  dit-video play --workdir=runs/corridor --replay=play/play_0001.npz --out=again
      makes the frames of a recording again, and compares them bit for bit

Needs the extra web. It is served to whoever opens the address that is printed; of another machine forward the port:
ssh -L 8000:127.0.0.1:8000 HOST. The first page drives, others watch."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "play", "act in a trained world, in a browser", EXAMPLES)
    parser.add_argument("--workdir", type=path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--step", type=whole(0), metavar="N", help="checkpoint (default: the newest)")
    parser.add_argument("--guided", action="store_true", help="with guidance on actions, at twice the work a frame")
    parser.add_argument(
        "--out", type=local_path, default=Path("play"), metavar="DIR", help="folder of recordings (default: play)"
    )
    parser.add_argument("--replay", type=path, metavar="FILE.npz", help="make the frames of a recording again")
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="listen on another address of this machine")
    parser.add_argument("--port", type=whole(0), default=0, metavar="N", help="port (any that is free)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.play import main

    return main(arguments)
