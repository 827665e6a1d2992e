"""Draws the picture that README.md opens with: held-out clips above, samples of the same labels below, moving.

    python tools/draw_samples.py --workdir runs/demo/dit --out docs/samples.gif

Takes the latest picture that `dit-video evaluate` left in the run, and enlarges it.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dit_video.video.decode import read_video
from dit_video.video.encode import write_gif


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs/samples.gif"))
    parser.add_argument("--scale", type=int, default=3, help="times larger (default 3)")
    arguments = parser.parse_args()
    pictures = sorted((arguments.workdir / "evaluation").glob("step_*_samples.mp4"))
    if not pictures:
        parser.error(f"{arguments.workdir} has no evaluation/step_*_samples.mp4: run dit-video evaluate first")
    video, fps = read_video(pictures[-1])
    size = (video.shape[2] * arguments.scale, video.shape[1] * arguments.scale)
    larger = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in video])
    arguments.out.parent.mkdir(exist_ok=True)
    write_gif(arguments.out, larger, fps)
    print(f"{pictures[-1]} -> {arguments.out}")


if __name__ == "__main__":
    main()
