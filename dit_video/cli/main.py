"""`dit-video COMMAND`: finds the command, and turns a user's mistake into one message and an exit code.

What takes time to import is imported by the command that is run, so that help and wrong usage answer at once.
"""

import argparse
import sys
from collections.abc import Sequence

import dit_video
from dit_video.cli import streams
from dit_video.cli.usage import (
    data,
    demo,
    diff,
    doctor,
    encode,
    evaluate,
    experiments,
    export,
    import_weights,
    inspect,
    launch,
    new,
    pack,
    plan,
    play,
    report,
    sample,
    show,
    train,
    verify_resume,
    verify_sharding,
    watch,
)
from dit_video.cli.usage.arguments import CommandParser, typed_command
from dit_video.cli.usage.completion import add_completion

# In the order of work.
COMMANDS = (
    doctor,
    demo,
    experiments,
    new,
    data,
    show,
    plan,
    import_weights,
    launch,
    train,
    encode,
    sample,
    evaluate,
    play,
    report,
    watch,
    inspect,
    diff,
    export,
    pack,
    verify_sharding,
    verify_resume,
)

DESCRIPTION = """Train latent video diffusion transformers, judge them by FVD on held-out clips, take the weights away.

  dit-video doctor                                           can this machine train?
  dit-video demo                                             the whole way on embedded data
  dit-video new mine.py --from=quickstart --data=data/mine   an experiment to start from
  dit-video data ingest videos/ --out data/mine              a folder of videos -> a data set
  dit-video train --config=experiments/grid_vae.py --workdir=runs/grid_vae
  dit-video encode --config=experiments/grid_dit.py
  dit-video train --config=experiments/grid_dit.py --workdir=runs/grid_dit
  dit-video evaluate --workdir=runs/grid_dit
  dit-video sample --workdir=runs/grid_dit --label=3 --out=three.mp4
  dit-video export --workdir=runs/grid_dit --out=exported
  dit-video report runs/grid_dit                             one page: curves, samples, FVD, time, to open or give away
  dit-video inspect runs/grid_dit                            its checkpoints: what is in them, which are damaged"""

EXIT_CODES = """exit codes: 0 done; 1 could not (the message says why); 2 wrong usage; 3 stopped early and saved.
Experiment files are Python programs and are run: read one before you use it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    streams.prepare()
    parser = _parser()
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser.print_help()
        return 0
    arguments, rest = parser.parse_known_args(evaluate.spelled_out(words))
    arguments.overrides = rest
    if rest and not (hasattr(arguments, "config") and rest[0].startswith("--config.")):
        typed_command(parser, arguments).error(f"unknown argument {rest[0]}")
    try:
        return arguments.run(arguments)
    except (KeyboardInterrupt, Exception) as error:
        from dit_video.cli.multi_process import report

        return report(error, trace=arguments.traceback)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="dit-video",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dit-video {dit_video.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
