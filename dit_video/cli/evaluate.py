"""dit-video evaluate"""

import argparse
import json

from rich.console import Console
from rich.table import Table

from dit_video import run
from dit_video.cli.arguments import add_weights, command
from dit_video.data.video import write_gif, write_mp4
from dit_video.evaluation.card import table, write_card
from dit_video.evaluation.fvd import FVD
from dit_video.evaluation.i3d import ResizeRule
from dit_video.evaluation.monitor import HeldOutError, Reconstruction, Samples
from dit_video.tasks.autoencode import Autoencode

EXAMPLES = """  dit-video evaluate --workdir=runs/grid_dit
  dit-video evaluate --workdir=runs/grid_dit --num_clips=200 --step=5000 --raw
  dit-video evaluate --workdir=runs/grid_vae --num_clips=200     a codec: PSNR, SSIM and FVD of its reconstructions

Writes RUN/evaluation/step_N_ema_fvd.json (the card: value, yardsticks, protocol, subject) and pictures beside it."""


def add_parser(subparsers) -> None:
    parser = command(
        subparsers, "evaluate", "FVD against held-out clips, with yardsticks and protocol, as a card", EXAMPLES
    )
    add_weights(parser)
    parser.add_argument("--num_clips", type=int, default=2048, help="clips of each set (default 2048)")
    parser.add_argument("--num_frames", type=int, default=16, help="frames of each clip that are judged (default 16)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips at a time (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples' noise (default 0)")
    parser.add_argument("--resize", choices=[rule.value for rule in ResizeRule], default=ResizeRule.TF1.value)
    parser.add_argument("--no_yardsticks", action="store_true", help="judge the samples alone")
    parser.add_argument("--json", action="store_true", help="print the card as JSON and nothing else")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    console = Console(stderr=arguments.json)
    opened = run.open_run(arguments.workdir, step=arguments.step, ema=not arguments.raw, console=console)
    data, subject = run.evaluation_data(opened.experiment), opened.subject()
    codec = isinstance(opened.experiment.task, Autoencode)
    sizes = {"num_clips": arguments.num_clips, "batch_size": arguments.batch_size}
    judges = {
        "held-out error": HeldOutError(every=1, **sizes),
        "pictures": Reconstruction(every=1, **sizes) if codec else Samples(every=1),
        "fvd": FVD(
            every=1,
            num_frames=arguments.num_frames,
            resize=ResizeRule(arguments.resize),
            # A codec's samples are its reconstructions: the yardstick of that name would say the same again.
            yardsticks=not (arguments.no_yardsticks or codec),
            **sizes,
        ),
    }
    folder = arguments.workdir / "evaluation"
    stem = f"step_{opened.step:07d}_{'ema' if opened.ema else 'raw'}"
    measured, cards = {}, {}
    for name, judge in judges.items():
        console.print(f"{name} ...", highlight=False)
        report = judge(subject, data, arguments.seed)
        measured |= report.scalars
        folder.mkdir(exist_ok=True)
        for label, video in report.media.items():
            write_mp4(folder / f"{stem}_{label}.mp4", video, data.fps)
            write_gif(folder / f"{stem}_{label}.gif", video, data.fps)
        cards |= report.cards
    card = {**cards["fvd"], "measured": measured}
    path = folder / f"{stem}_fvd.json"
    write_card(path, card)
    if arguments.json:
        print(json.dumps(card, indent=1))
        return 0
    shown = Table("measured", "value", title=f"{arguments.workdir} step {opened.step}")
    for name, value in measured.items():
        if not name.startswith("fvd"):
            shown.add_row(name, f"{value:.4f}")
    console.print(shown)
    console.print(table([card]))
    console.print(f"card: {path}; pictures beside it", highlight=False)
    return 0
