"""dit-video evaluate: FVD of a run, of two folders of videos, and cards side by side"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dit_video.cli import evaluate_compare, evaluate_fvd
from dit_video.cli.arguments import add_extractor, command, extractor_of
from dit_video.cli.together import Together, add_processes
from dit_video.cli.weights import add_weights, open_weights
from dit_video.distributed import processes
from dit_video.evaluation.card import table, write_card
from dit_video.evaluation.defaults import Counts, evaluators_for
from dit_video.evaluation.fvd import CARD as FVD_CARD
from dit_video.run.open import evaluation_data
from dit_video.storage import bucket, mirror

EXAMPLES = """  dit-video evaluate run --workdir=runs/grid_dit
  dit-video evaluate --workdir=runs/grid_dit                     the same
  dit-video evaluate run --workdir=runs/grid_dit --num_clips=200 --step=5000 --raw
  dit-video evaluate run --workdir=runs/grid_vae --num_clips=200     a codec: PSNR, SSIM and FVD of its reconstructions

Writes RUN/evaluation/step_N_ema_fvd_nM.json (the card: value, yardsticks, protocol, subject; M is the number of clips)
and pictures beside it."""


def add_parser(subparsers) -> None:
    examples = "\n\n".join((EXAMPLES, evaluate_fvd.EXAMPLES, evaluate_compare.EXAMPLES))
    summary = "FVD of a run or of any two folders of videos, with its protocol, as a card"
    parser = command(subparsers, "evaluate", summary, examples)
    commands = parser.add_subparsers(dest="evaluate_command", required=True, metavar="COMMAND")
    _add_run(commands)
    evaluate_fvd.add_parser(commands)
    evaluate_compare.add_parser(commands)


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
        commands, "run", "FVD of a run against held-out clips, with yardsticks and protocol, as a card", EXAMPLES
    )
    add_weights(parser)
    parser.add_argument("--num_clips", type=int, default=2048, help="clips of each set (default 2048)")
    parser.add_argument("--num_frames", type=int, default=16, help="frames of each clip that are judged (default 16)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips at a time (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples' noise (default 0)")
    add_extractor(parser)
    parser.add_argument("--no_yardsticks", action="store_true", help="judge the samples alone")
    parser.add_argument("--json", action="store_true", help="print the card as JSON and nothing else")
    add_processes(parser)
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    with Together(arguments, stops_together=False):
        return _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    console = Console(stderr=arguments.json, quiet=not processes.is_first())
    opened = open_weights(arguments, console)
    task, data, subject = opened.experiment.task, evaluation_data(opened.experiment), opened.subject()
    counts = Counts(
        num_clips=arguments.num_clips,
        num_frames=arguments.num_frames,
        batch_size=arguments.batch_size,
        extractor=extractor_of(arguments),
        yardsticks=not arguments.no_yardsticks,
    )
    judges = evaluators_for(task, counts)
    for judge in judges.values():
        judge.check(task, opened.experiment.data)
    folder = opened.workdir / "evaluation"
    stem = f"step_{opened.step:07d}_{'ema' if opened.ema else 'raw'}"
    measured, media, cards = {}, {}, {}
    for name, judge in judges.items():
        console.print(f"{name} ...", highlight=False)
        report = judge(subject, data, arguments.seed)
        measured |= report.scalars
        media |= report.media
        cards |= report.cards
    if not processes.is_first():
        return 0
    for label, medium in media.items():
        medium.write_each(folder / f"{stem}_{label}")
    card: dict[str, Any] = {
        **cards.pop(FVD_CARD, {"subject": dict(subject.description)}),
        **cards,
        "measured": measured,
    }
    what = card.get("metric", "measured").lower()
    path = folder / f"{stem}_{what}_n{counts.num_clips}.json"
    write_card(path, card)
    if arguments.json:
        print(json.dumps(card, indent=1))
    else:
        kept = bucket.address(arguments.workdir) or arguments.workdir
        _show(card, what, f"{kept} step {opened.step}", console)
        console.print(f"card: {kept}/evaluation/{path.name}; pictures beside it", highlight=False)
    # Last: a bucket that takes nothing must not cost what was measured.
    mirror.push(opened.workdir)
    return 0


def _show(card: dict[str, Any], metric: str, title: str, console: Console) -> None:
    shown = Table("measured", "value", title=title)
    for name, value in card["measured"].items():
        if not name.startswith(metric):
            shown.add_row(name, f"{value:.4f}")
    console.print(shown)
    if "value" in card:
        console.print(table([card]))
