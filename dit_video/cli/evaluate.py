"""`dit-video evaluate run`: judges a run by all evaluators that suit its task, FVD among them, and writes a card."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from dit_video.cli.arguments import extractor_of
from dit_video.cli.evaluate_protocol import check_stride, notes_of, settle
from dit_video.cli.multi_process import Together
from dit_video.cli.weights import open_weights
from dit_video.distributed import processes
from dit_video.evaluation.card import table, write_card
from dit_video.evaluation.citation import latex, markdown
from dit_video.evaluation.defaults import Counts
from dit_video.evaluation.protocol import USUAL_NUM_CLIPS
from dit_video.evaluation.text_judge import TrainedJudge
from dit_video.progress import Terminal
from dit_video.run.judging import judge
from dit_video.storage import bucket, mirror


def main(arguments: argparse.Namespace) -> int:
    with Together(arguments, stops_together=False):
        return _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json, quiet=not processes.is_first())
    settle(arguments, num_clips=USUAL_NUM_CLIPS)
    opened = open_weights(arguments, console)
    check_stride(arguments, opened.experiment.data.clips)
    counts = Counts(
        num_clips=arguments.num_clips,
        num_frames=arguments.num_frames,
        batch_size=arguments.batch_size,
        extractor=extractor_of(arguments),
        yardsticks=not arguments.no_yardsticks,
        judge=None if arguments.judge is None else TrainedJudge(run=arguments.judge),
    )
    card, media = judge(opened, counts, seed=arguments.seed, note=console.print)
    if "notes" in card:
        card["notes"] = [*card["notes"], *notes_of(arguments)]
    folder = opened.workdir / "evaluation"
    stem = f"step_{opened.step:07d}_{'ema' if opened.ema else 'raw'}"
    if not processes.is_first():
        return 0
    for label, medium in media.items():
        medium.write_each(folder / f"{stem}_{label}")
    what = card.get("metric", "measured").lower().replace(" ", "_")
    path = folder / f"{stem}_{what}_n{counts.num_clips}.json"
    write_card(path, card)
    if arguments.json:
        print(json.dumps(card, indent=1))
    else:
        kept = bucket.address(arguments.workdir) or arguments.workdir
        _show(card, what, f"{kept} step {opened.step}", console)
        console.print(f"card: {kept}/evaluation/{path.name}; pictures beside it")
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
        console.print(f"for a paper: {markdown(card)}\nin LaTeX:    {latex(card)}")
