"""Options of `dit-video evaluate run`, `evaluate fvd` and `evaluate compare`."""

import argparse
from collections.abc import Sequence

from dit_video.cli.usage.arguments import (
    add_extractor,
    add_processes,
    add_weights,
    command,
    local_path,
    path,
    path_text,
    positive,
    whole,
)
from dit_video.evaluation.protocol import PUBLISHED, USUAL_NUM_CLIPS, USUAL_NUM_FRAMES

RUN = """  dit-video evaluate run --workdir=runs/grid_dit
  dit-video evaluate --workdir=runs/grid_dit                     the same
  dit-video evaluate run --workdir=runs/grid_dit --num_clips=200 --step=5000 --raw
  dit-video evaluate run --workdir=runs/grid_vae --num_clips=200     a codec: PSNR, SSIM and FVD of its reconstructions
  dit-video evaluate run --workdir=runs/grid_dit --protocol=stylegan-v --config.data.clips.stride=1
  dit-video evaluate run --workdir=runs/text_block --judge=runs/text_judge     samples of text, in bits per byte

Writes RUN/evaluation/step_N_ema_fvd_nM.json (the card: value, yardsticks, protocol, subject; M is the number of clips)
and pictures beside it."""

FVD = """  dit-video evaluate fvd --real real_videos/ --fake made_by_any_program/
  dit-video evaluate fvd --real data/grid --fake samples.npy --num_frames=16 --stride=2 --size=64,64 --out=card.json
  dit-video evaluate fvd --real data/grid --fake samples/ --train data/grid:train --resize=half_pixel --json
  dit-video evaluate fvd --real data/grid:train --fake samples/ --protocol=stylegan-v

A set is what `dit-video data ingest` wrote (its held-out split, or DIR:train); a folder is read as it lies, every
video in it; an array is uint8 [N T H W 3] in a .npy file. One clip is cut from each video, and as many clips are
judged on both sides. --stride belongs to the real side: samples are mostly stored at their own rate, without one."""

COMPARE = """  dit-video evaluate compare runs/{a,b,c}/evaluation/step_0005000_ema_fvd_n2048.json
      ranks cards of one protocol; refuses others and says in which fields they differ (exit code 1)"""


def add_parser(subparsers) -> None:
    examples = "\n\n".join((RUN, FVD, COMPARE))
    summary = "FVD of a run or of any two folders of videos, with its protocol, as a card"
    parser = command(subparsers, "evaluate", summary, examples)
    commands = parser.add_subparsers(dest="evaluate_command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_fvd(commands)
    _add_compare(commands)


def spelled_out(words: Sequence[str]) -> list[str]:
    """`evaluate --workdir=R` is short for `evaluate run --workdir=R`."""
    words = list(words)
    command = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    name, first = [*words[command : command + 2], "", ""][:2]
    if name == "evaluate" and first.startswith("-") and first not in ("-h", "--help"):
        words.insert(command + 1, "run")
    return words


def _add_run(commands) -> None:
    parser = command(
        commands, "run", "FVD of a run against held-out clips, with yardsticks and protocol, as a card", RUN
    )
    add_weights(parser)
    parser.add_argument("--num_clips", type=whole(2), help=f"clips of each set (default {USUAL_NUM_CLIPS})")
    parser.add_argument("--num_frames", type=whole(1), help=f"frames of each clip (default {USUAL_NUM_FRAMES})")
    _add_protocol(parser)
    parser.add_argument("--batch_size", type=whole(1), default=16, help="clips at a time (default 16)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the samples' noise (default 0)")
    parser.add_argument("--judge", type=path_text, metavar="RUN", help="of text: an autoregressive run, another seed's")
    add_extractor(parser)
    parser.add_argument("--no_yardsticks", action="store_true", help="judge the samples alone")
    parser.add_argument("--json", action="store_true", help="print the card as JSON and nothing else")
    add_processes(parser)
    parser.set_defaults(run=_run_run)


def _add_fvd(commands) -> None:
    parser = command(commands, "fvd", "FVD of any two folders or sets of videos", FVD)
    where = "DIR_OR_SET"
    parser.add_argument("--real", type=path_text, required=True, metavar=where, help="reference clips")
    parser.add_argument("--fake", type=path_text, required=True, metavar=where, help="clips to judge")
    parser.add_argument("--train", type=path_text, metavar=where, help="training clips: finds samples that are copies")
    parser.add_argument("--num_clips", type=whole(2), help=f"of each side (default: all, at most {USUAL_NUM_CLIPS})")
    parser.add_argument("--num_frames", type=whole(1), help=f"frames of a clip (default {USUAL_NUM_FRAMES})")
    _add_protocol(parser)
    parser.add_argument("--stride", type=whole(1), help="frames from one to the next, real side (default 1)")
    parser.add_argument("--fake_stride", type=whole(1), default=1, help="the same of the fake side (default 1)")
    parser.add_argument(
        "--clip_fps",
        type=positive,
        metavar="F",
        help="frames per second of clips, of both sides: nearest frames",
    )
    parser.add_argument(
        "--size", metavar="H,W", help="scale and crop frames of both sides to this before (default: whole frames)"
    )
    parser.add_argument("--batch_size", type=whole(1), default=16, help="clips at a time (default 16)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the windows that clips are cut from (default 0)")
    parser.add_argument("--fps", type=positive, default=25.0, help="of .npy arrays, which do not say (default 25)")
    add_extractor(parser)
    parser.add_argument("--no_yardsticks", action="store_true", help="judge the fake side alone")
    parser.add_argument(
        "--out", type=local_path, metavar="CARD.json", help="where the card goes (default: fvd_REAL_FAKE.json)"
    )
    parser.add_argument("--json", action="store_true", help="print the card as JSON and nothing else")
    parser.set_defaults(run=_run_fvd)


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=list(PUBLISHED),
        help="a published FVD: its numbers of clips and frames, its stride and resize rule (docs/fvd.md)",
    )


def _add_compare(commands) -> None:
    parser = command(commands, "compare", "rank cards whose protocols are equal; refuse others", COMPARE)
    parser.add_argument("cards", nargs="+", type=path, metavar="CARD.json")
    parser.add_argument("--json", action="store_true", help="print the ranking as JSON and nothing else")
    parser.set_defaults(run=_run_compare)


def _run_run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.evaluate import main

    return main(arguments)


def _run_fvd(arguments: argparse.Namespace) -> int:
    from dit_video.cli.evaluate_fvd import main

    return main(arguments)


def _run_compare(arguments: argparse.Namespace) -> int:
    from dit_video.cli.evaluate_compare import main

    return main(arguments)
