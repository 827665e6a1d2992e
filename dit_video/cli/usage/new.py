"""Options of `dit-video new`."""

import argparse

from dit_video.cli.usage.arguments import command, local_path, path_text

EXAMPLES = """  dit-video new mine.py --from=quickstart --data=data/mine
  dit-video new mine_vae.py --from=quickstart:vae --data=data/mine
  dit-video new mine.py --from=captions --data=data/mine          text to video
  dit-video new mine.py --from=image --data=data/mine             clips that continue a picture
  dit-video new again.py --from=runs/dit                          the experiment of a run, as a file to change

Writes a whole experiment with its imports; what is as by default stands beside it in comments. `dit-video experiments`
lists the names that --from takes; it also takes an experiment file, a run folder, or the experiment.json of one."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "new", "write an experiment file to start from", EXAMPLES)
    parser.add_argument("file", type=local_path, metavar="FILE.py", help="the file to write; it must not be there")
    parser.add_argument(
        "--from",
        dest="origin",
        type=path_text,
        required=True,
        metavar="NAME_OR_RUN",
        help="an experiment of this package (quickstart, captions, image, ...), a run, or FILE.py[:arg]",
    )
    parser.add_argument(
        "--data", type=path_text, metavar="DIR", help="a set made by `dit-video data ingest`, in place of its data"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.new import main

    return main(arguments)
