"""Options of `dit-video sample`."""

import argparse
import enum

from dit_video.cli.usage.arguments import add_weights, command, local_path, path, whole

EXAMPLES = """  dit-video sample --workdir=runs/quickstart_dit --label=3 --num_clips=8 --out=threes.mp4
  dit-video sample --workdir=runs/quickstart_dit --label=all --out=digits.gif
  dit-video sample --workdir=runs/grid_dit --label=two --seed=7 --out=two.mp4 --guidance=1
  dit-video sample --workdir=runs/grid_dit --out=any.mp4 --sampler=unipc --num_steps=20
  dit-video sample --workdir=runs/grid_dit --label=two --num_frames=33 --size=96,96 --out=long.mp4
  dit-video sample --workdir=runs/text_dit --text="a seven moving up" --text="an eight moving up" --out=up.mp4
  dit-video sample --workdir=runs/text_dit --text="a seven moving up" --negative_prompt="moving down" --out=up.mp4
  dit-video sample --workdir=runs/wan_i2v --image=seven.png --text="a seven moving up" --out=up.mp4
  dit-video sample --workdir=runs/any_frames --video=a.mp4 --extend=48 --out=after.mp4     (--extend=-48: before)
  dit-video sample --workdir=runs/any_frames --video=a.mp4 --to=b.mp4 --between=8 --out=joined.mp4
  dit-video sample --workdir=runs/any_frames --video=a.mp4 --mask=hole.png --out=painted.mp4
  dit-video sample --workdir=runs/any_frames --video=a.mp4 --strength=0.6 --label=three --out=three.mp4
  dit-video sample --workdir=runs/any_frames --loop --label=two --out=loop.gif

--sampler, --num_steps, --guidance and what they leave, --config.task.sampler... and --config.task.guidance..., change
how this run is sampled. Clip i depends on seed and i
alone, so the same seed with another label, text or guidance is the same noise seen differently."""


class SamplerName(enum.StrEnum):
    """What is typed after --sampler."""

    EULER = "euler"
    HEUN = "heun"
    DDIM = "ddim"
    ANCESTRAL = "ancestral"
    DPM_SOLVER = "dpm_solver"
    UNIPC = "unipc"


def add_parser(subparsers) -> None:
    parser = command(subparsers, "sample", "make clips with a trained run", EXAMPLES)
    add_weights(parser)
    parser.add_argument("--label", metavar="NAME", help='class by name or number, or "all": one row per class')
    parser.add_argument(
        "--text", action="append", metavar="TEXT", help="what is to be seen; repeated, one row per text"
    )
    parser.add_argument(
        "--cond",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="any other signal that the run is conditioned on, by its name in config.data.signals: one row a value",
    )
    parser.add_argument("--num_clips", type=whole(1), default=8, help="clips, or clips per class or text (default 8)")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument(
        "--sampler", choices=[name.value for name in SamplerName], help="way from noise to data (default: the run's)"
    )
    parser.add_argument("--num_steps", type=whole(1), help="steps of the sampler (default: the run's)")
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="how strongly label or text is followed; 1 is off"
    )
    parser.add_argument(
        "--history", type=float, metavar="SCALE", help="how strongly known frames are followed; 1 is off (the default)"
    )
    parser.add_argument(
        "--steps_apart",
        type=whole(0),
        metavar="N",
        help="steps that each latent frame begins after the one before; 0 is all at once, --num_steps one by one",
    )
    parser.add_argument("--negative_prompt", metavar="TEXT", help="what guidance leads away from (default: no text)")
    parser.add_argument("--image", type=path, metavar="FILE", help="the first frame, which the clips continue")
    parser.add_argument("--video", type=path, metavar="FILE", help="a video to begin with; say what is made of it:")
    parser.add_argument("--extend", type=int, metavar="N", help="N frames after it, or with --extend=-N before it")
    parser.add_argument("--to", type=path, metavar="FILE", help="led to this video, by --between frames")
    parser.add_argument("--between", type=int, metavar="N", help="frames between --video and --to")
    parser.add_argument("--loop", action="store_true", help="led back to its beginning; without --video, of a new clip")
    parser.add_argument(
        "--strength", type=float, metavar="S", help="made anew towards label or text, from a noise level in (0, 1] on"
    )
    parser.add_argument("--mask", type=path, metavar="FILE", help="made anew where a picture or video is white")
    parser.add_argument(
        "--num_frames", type=whole(1), help="length of a clip (default: as trained); more, where a run can extend"
    )
    parser.add_argument("--size", metavar="H,W", help="height and width (default: as trained)")
    parser.add_argument(
        "--out",
        type=local_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".mp4 or .gif, or both: a grid of the clips",
    )
    parser.add_argument("--npy", type=local_path, metavar="FILE", help="also save the clips, uint8 [N T H W 3]")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.sample import main

    return main(arguments)
