"""Sensitivity of FVD to known corruptions of real clips: the table and the plot of docs/fvd.md.

    python tools/fvd_yardsticks.py --set data/grid --num_clips 50 200 400

Training clips, as they are and spoilt, are measured against held-out clips: other clips, so that the values have the
bias that samples of a model have. (Measured against the very clips they were made of, spoilt clips share their bias,
and the values are many times smaller.) Fewer clips are the first of the many, so features are extracted once.
"""

import argparse
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from dit_video.data.batch import Batch
from dit_video.data.loader import held_out_batches, held_out_digest
from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.evaluation.distance import Distance, measure
from dit_video.evaluation.features import Pool, cached
from dit_video.evaluation.fvd import shuffle_frames
from dit_video.evaluation.i3d import I3DLogits
from dit_video.progress import counted

Video = UInt8[np.ndarray, "n T H W 3"]
# Clips and their numbers -> the same clips, spoilt.
Change = Callable[[Video, range], Video]

NOISE = 16.0
BLUR = 1.0
BATCH_SIZE = 8


def noised(video: Video, clips: range) -> Video:
    """Independent Gaussian noise on every value; that of clip i is a function of i."""
    noise = np.stack([np.random.default_rng(i).normal(scale=NOISE, size=video.shape[1:]) for i in clips])
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def blurred(video: Video, clips: range) -> Video:
    del clips  # the same for all
    blur = ImageFilter.GaussianBlur(BLUR)
    frames = [np.asarray(Image.fromarray(frame).filter(blur)) for frame in video.reshape(-1, *video.shape[2:])]
    return np.stack(frames).reshape(video.shape)


CHANGES: dict[str, Change] = {
    "as they are": lambda video, clips: video,
    "first frame held still": lambda video, clips: np.repeat(video[:, :1], video.shape[1], axis=1),
    "frames shuffled": lambda video, clips: shuffle_frames(video, clips),
    "played backwards": lambda video, clips: video[:, ::-1],
    f"noise of {NOISE:g} grey levels": noised,
    f"blur of {BLUR:g} pixel": blurred,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="data/grid", metavar="DIR", help="what dit-video data ingest wrote")
    parser.add_argument("--num_clips", type=int, nargs="+", default=[50, 200, 400], metavar="N")
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="height and width before I3D's own resize")
    parser.add_argument("--out", type=Path, default=Path("docs/fvd_yardsticks.png"))
    arguments = parser.parse_args()
    cut = ClipTransform(num_frames=arguments.num_frames, stride=arguments.stride, size=(arguments.size, arguments.size))
    most, source = max(arguments.num_clips), VideoSet(directory=arguments.set)
    extractor = I3DLogits()
    pool = Pool(extractor, make_mesh(MeshShape()), num_frames=arguments.num_frames, batch_size=BATCH_SIZE)

    def features(split: Split, name: str, change: Change) -> Float[np.ndarray, "N 400"]:
        examples = source.open(split)
        batches = held_out_batches(examples, cut, num_clips=most, batch_size=BATCH_SIZE, seed=0)
        key = {
            **extractor.protocol(),
            "content": held_out_digest(examples, cut, num_clips=most, seed=0),
            "num_frames": arguments.num_frames,
            "decoder": version("av"),
            "change": name,
        }
        return cached(key, lambda: np.concatenate([pool.features(v) for v in changed(batches, change, name, most)]))

    real = features(Split.HELD_OUT, "as they are", CHANGES["as they are"])
    features_of = {name: features(Split.TRAIN, name, change) for name, change in CHANGES.items()}
    table = {name: {n: measure(rows[:n], real[:n]) for n in arguments.num_clips} for name, rows in features_of.items()}
    print(markdown(table, arguments.num_clips))
    arguments.out.parent.mkdir(exist_ok=True)
    plot(table, arguments.num_clips, arguments.out)
    print(f"plot: {arguments.out}")


def changed(batches: Iterator[tuple[Batch, int]], change: Change, name: str, total: int) -> Iterator[Video]:
    first = 0
    for batch, valid in counted(batches, name, total=total, size=lambda item: item[1]):
        yield np.ascontiguousarray(change(np.asarray(batch.require_video())[:valid], range(first, first + valid)))
        first += valid


def markdown(table: dict[str, dict[int, Distance]], sizes: list[int]) -> str:
    """FVD [interval] at each N, then at the largest N the extrapolated value and the kernel distance."""
    most = max(sizes)
    head = [
        "training clips, against held-out ones",
        *[f"FVD, N={n}" for n in sizes],
        f"N to infinity (from {most})",
        f"KVD, N={most}",
    ]
    lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for name, by_size in table.items():
        values = [with_interval(by_size[n].value, by_size[n].interval) for n in sizes]
        limit = by_size[most].limit
        assert limit is not None, "`measure` extrapolates from NUM_GROUPS clips on, and fewer are not plotted"
        at_infinity = (
            with_interval(limit.value, limit.interval) if limit.settled else f"below {limit.interval.high:.1f}"
        )
        lines.append([name, *values, at_infinity, f"{by_size[most].kernel:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(value: float, interval) -> str:
    return f"{value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def plot(table: dict[str, dict[int, Distance]], sizes: list[int], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, by_size in table.items():
        values = [by_size[n].value for n in sizes]
        intervals = [by_size[n].interval for n in sizes]
        below, above = zip(*[(v - i.low, i.high - v) if i else (0, 0) for v, i in zip(values, intervals)])
        axes.errorbar(sizes, values, yerr=(below, above), marker="o", capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="clips of each set", ylabel="FVD", xticks=sizes, xticklabels=sizes)
    axes.minorticks_off()
    axes.legend(fontsize="small")
    axes.set_title("Training clips, as they are and spoilt, against held-out clips", fontsize="medium")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
