"""Options of `dit-video data` and its commands: ingest, record, inspect, shapes, digits and text."""

import argparse
from pathlib import Path

from dit_video.cli.usage.arguments import add_config, command, local_path, path, path_text, whole

INGEST = """  dit-video data ingest videos/ --out data/mine
      every video below videos/, in any container and codec; first-level sub-folders are classes

  dit-video data ingest clips.tar more.tar.gz --out data/mine --max_size 256
      tars; videos with a longer short side than 256 pixels are scaled down

  dit-video data ingest grid_train.tar grid_test.tar --out data/grid \\
      --labels grid_labels.tsv --key key --label digit --caption caption --split split
      labels, captions and the split from the columns of a CSV, TSV or JSON lines file (UTF-8 or UTF-16, also
      gzip) or of Parquet; the key is a path within the source (with or without extension) or a bare file name

  dit-video data ingest talks/ --out data/talks --group '([^/]+)_[0-9]+\\.mp4'
      clips that were cut from one source, here talk_17.mp4 of talk, are all trained on or all held out

  dit-video data ingest videos/ photos/ --out data/both --images
      pictures as well, each a clip of one frame, to be trained on with videos (docs/shapes.md)

  dit-video data ingest more/ --out data/mine --add
      more videos for a set, as if it had been made of all folders at once

  dit-video data ingest recorded/ --out data/world --actions '{stem}_actions.npz' --action_leads from
      videos with an action for each frame
  dit-video data ingest episodes.npz --out data/robot --actions '{stem}_actions.npz' --action_leads to
      arrays: video [N T H W 3], action [N T A], and caption [N] where there is one

Without a table: clip.txt beside clip.mp4 is its caption, clip.cls its class, clip.json has both (as in WebDataset
tars); metadata.jsonl, .csv or .parquet with file_name and text (as Hugging Face has it); sub-folders are classes. A
folder of numbered pictures is a clip.

An ingest that was stopped or killed goes on when the same command is given again.

Files that are no videos, broken, empty, sound only, or copies of another are named in DIR/manifest.json with
the reason. Without a split column or folders named train/ and test/, files are held out by their sha256: the
same files every time.
"""


INSPECT = """  dit-video data inspect data/mine
  dit-video data inspect data/mine --out contact_sheet.png
  dit-video data inspect data/mine --caption_bytes 256
      how long captions are, and how many of them CaptionBytes(num_bytes=256) would cut
  dit-video data inspect data/mine --json"""


SHAPES = """  dit-video data shapes data/mine --num 8
      the eight shapes (frames, height, width) in which the videos lose least, with batch sizes of equal work
  dit-video data shapes data/mine --config=experiments/video_1b.py --config.data.clips.size='(256, 256)'
      for this network, of clips up to the length of config.data.clips and as many pixels
  dit-video data shapes data/mine --config=mine.py --explain park/0017.mp4
      where one video goes in the shapes of an experiment, and why"""

# The network that FLOPs are those of.
SHAPES_CONFIG = "experiments/video_1b.py"


DIGITS = """  dit-video data digits --out data/moving_digits
  dit-video data digits --out data/digits64 --size 64 --digit_size 40 --num_frames 17"""

# Those of `MovingDigits`, which is not imported to be helped with.
DIGITS_DEFAULTS = {
    "num_train": 4000,
    "num_held_out": 500,
    "size": 32,
    "num_frames": 9,
    "digit_size": 20,
    "seed": 0,
}


TEXT = """  dit-video data text book.txt --out data/book
      one document, whose last tenth is held out
  dit-video data text corpus/ more.jsonl.gz --out data/corpus --tokenizer bpe:4096 --field content
      every .txt below corpus/ and every line of the other is a document; also .zst"""


RECORD = """  dit-video data record corridor --out data/corridor --steps 100000
      a first-person maze that needs no extra, played at random, each action held for a while
  dit-video data record ALE/Breakout-v5 --out data/breakout --steps 50000 --repeat 2 --policy player.py
      any environment of Gymnasium that renders rgb_array (extra worlds), every second frame, played by your own
      `get_policy()`: a function of (description, generator) whose result says the action of a frame

Episodes are held out by their sha256. A recording that was stopped or killed goes on when the same command is given
again. Action f of a video is what was pressed between its frames f - 1 and f."""


def add_parser(subparsers) -> None:
    examples = "\n\n".join((INGEST, RECORD, INSPECT, SHAPES, DIGITS, TEXT))
    parser = command(subparsers, "data", "make and look at data sets", examples)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_ingest(commands)
    _add_record(commands)
    _add_inspect(commands)
    _add_shapes(commands)
    _add_digits(commands)
    _add_text(commands)


def _add_ingest(commands) -> None:
    parser = command(commands, "ingest", "turn folders and tars of videos into a data set", INGEST)
    parser.add_argument("sources", nargs="+", type=path_text, metavar="FOLDER_OR_TAR")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="new folder for the set")
    parser.add_argument("--add", action="store_true", help="add to the set in DIR, with the settings that it has")
    parser.add_argument(
        "--labels", type=path, metavar="FILE", help="CSV, TSV, JSON lines or Parquet, a row for each file"
    )
    parser.add_argument("--key", metavar="COL", help="column that names a file (default: key)")
    parser.add_argument("--label", metavar="COL", help="column with the class")
    parser.add_argument("--caption", metavar="COL", help="column with a sentence")
    parser.add_argument("--split", metavar="COL", help="column with train, test, val, validation or held_out")
    parser.add_argument(
        "--group",
        metavar="PATTERN|COL",
        help="what clips of one source have in common, which stay on one side of the split: a column, a field of "
        "clip.json, or a regular expression on paths, of which the first (...) counts",
    )
    parser.add_argument(
        "--actions",
        metavar="PATTERN",
        help="file of actions beside each video, as {stem}_actions.npz; .npz, .jsonl, .csv or .parquet, a row a frame",
    )
    parser.add_argument(
        "--action_leads", choices=("to", "from"), help="row f led to frame f, or was done on seeing it, from there on"
    )
    parser.add_argument("--action_columns", metavar="COL,COL", help="columns of actions, or the array of a .npz")
    parser.add_argument("--held_out_fraction", type=float, metavar="F", help="share held out (default 0.1)")
    parser.add_argument("--max_size", type=whole(2), metavar="PIXELS", help="longest short side (default: keep sizes)")
    parser.add_argument(
        "--images", action="store_const", const=True, help="pictures (png, jpeg, webp, bmp) are clips of one frame"
    )
    parser.add_argument("--num_workers", type=whole(1), metavar="N", help="files decoded at once (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON and nothing else")
    parser.set_defaults(run=_run_ingest)


def _add_record(commands) -> None:
    parser = command(commands, "record", "record a world that answers to actions", RECORD)
    parser.add_argument("environment", metavar="ENV", help="corridor, or an id of Gymnasium")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="new folder for the set")
    parser.add_argument("--steps", type=whole(1), required=True, metavar="N", help="actions in all, at least")
    parser.add_argument(
        "--policy",
        type=path_text,
        default="sticky",
        metavar="KIND|FILE.py",
        help="sticky (default), random, or your own",
    )
    parser.add_argument(
        "--episode_steps", type=whole(1), default=200, metavar="N", help="longest episode (default 200)"
    )
    parser.add_argument(
        "--repeat", type=whole(1), default=1, metavar="N", help="steps of the world for each frame (default 1)"
    )
    parser.add_argument("--size", type=whole(8), default=64, metavar="PIXELS", help="of the corridor (default 64)")
    parser.add_argument("--fps", type=float, metavar="F", help="of the videos (default: that of the world)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default 0")
    parser.add_argument("--held_out_fraction", type=float, default=0.1, metavar="F", help="of episodes (default 0.1)")
    parser.add_argument("--num_workers", type=whole(1), metavar="N", help="processes (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON and nothing else")
    parser.set_defaults(run=_run_record)


def _add_inspect(commands) -> None:
    parser = command(commands, "inspect", "show what a data set holds", INSPECT)
    parser.add_argument("directory", type=path_text, metavar="DIR")
    parser.add_argument("--out", type=local_path, metavar="FILE.png", help="draw a contact sheet")
    parser.add_argument(
        "--caption_bytes", type=whole(2), metavar="N", help="say how many captions num_bytes=N would cut"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON and nothing else")
    parser.set_defaults(run=_run_inspect)


def _add_shapes(commands) -> None:
    parser = command(commands, "shapes", "choose the shapes of clips for a data set, or explain them", SHAPES)
    parser.add_argument("directory", type=path_text, metavar="DIR")
    parser.add_argument("--num", type=whole(1), metavar="N", help="shapes, at most (8, or those of the experiment)")
    add_config(parser, required=False)
    parser.set_defaults(config=SHAPES_CONFIG)
    parser.add_argument("--explain", metavar="VIDEO", help="say where this video of the set goes, and why")
    parser.add_argument("--json", action="store_true", help="print it as JSON and nothing else")
    parser.set_defaults(run=_run_shapes)


def _add_digits(commands) -> None:
    parser = command(commands, "digits", "make the moving-digits set, which needs no download", DIGITS)
    parser.add_argument("--out", type=local_path, default=Path("data/moving_digits"), metavar="DIR")
    for name, default in DIGITS_DEFAULTS.items():
        parser.add_argument(f"--{name}", type=whole(0), default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON and nothing else")
    parser.set_defaults(run=_run_digits)


def _add_text(commands) -> None:
    parser = command(commands, "text", "turn text files into a set of tokens", TEXT)
    parser.add_argument("sources", nargs="+", type=path_text, metavar="PATH")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="new folder for the set")
    parser.add_argument(
        "--tokenizer",
        default="bytes",
        metavar="KIND",
        help="bytes (default), chars, bpe:N for N byte pairs learnt here, or a tokenizer.json",
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="of lines of JSON, the text (default text)")
    parser.add_argument(
        "--held_out_fraction", type=float, default=0.1, metavar="F", help="share of documents held out (default 0.1)"
    )
    parser.add_argument("--json", action="store_true", help="print what was made as JSON and nothing else")
    parser.set_defaults(run=_run_text)


def _run_ingest(arguments: argparse.Namespace) -> int:
    from dit_video.cli.data import run_ingest

    return run_ingest(arguments)


def _run_record(arguments: argparse.Namespace) -> int:
    from dit_video.cli.data_record import run_record

    return run_record(arguments)


def _run_inspect(arguments: argparse.Namespace) -> int:
    from dit_video.cli.data import run_inspect

    return run_inspect(arguments)


def _run_shapes(arguments: argparse.Namespace) -> int:
    from dit_video.cli.data_shapes import run_shapes

    return run_shapes(arguments)


def _run_digits(arguments: argparse.Namespace) -> int:
    from dit_video.cli.data import run_digits

    return run_digits(arguments)


def _run_text(arguments: argparse.Namespace) -> int:
    from dit_video.cli.data_text import run_text

    return run_text(arguments)
