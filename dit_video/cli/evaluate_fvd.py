"""`dit-video evaluate fvd`: FVD of two folders or sets of videos, made by any program."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dit_video.cli.arguments import extractor_of, parse_size
from dit_video.cli.evaluate_protocol import notes_of, settle
from dit_video.data.record import Split
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.evaluation.card import table, write_card
from dit_video.evaluation.citation import latex, markdown
from dit_video.evaluation.fvd import FVD
from dit_video.evaluation.protocol import USUAL_NUM_CLIPS
from dit_video.evaluation.video_sets import StoredSamples, clip_transform, described, num_videos
from dit_video.ingest.video_folder import OpenedVideos, open_videos
from dit_video.progress import Terminal, bar
from dit_video.run.folder import environment
from dit_video.tasks.evaluator import EvaluationData


def main(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
    settle(arguments, num_clips=None)
    size = None if arguments.size is None else parse_size("--size", arguments.size)
    if arguments.clip_fps is not None and (arguments.stride, arguments.fake_stride) != (1, 1):
        raise ValueError(f"--clip_fps={arguments.clip_fps}: goes without --stride and --fake_stride")
    path = arguments.out or Path(f"fvd_{_stem(arguments.real)}_{_stem(arguments.fake)}.json")
    if path.is_dir():
        raise ValueError(f"--out={path}: is a folder; name a file in it, such as {path / 'fvd.json'}")
    path.parent.mkdir(parents=True, exist_ok=True)  # an error before anything is measured
    extractor = extractor_of(arguments)
    sets = {Split.HELD_OUT: _open(arguments.real, arguments.fps, console)}
    if arguments.train is not None:
        sets[Split.TRAIN] = _open(arguments.train, arguments.fps, console)
    fake = _open(arguments.fake, arguments.fps, console)
    cut = {"num_frames": arguments.num_frames, "size": size, "fps": arguments.clip_fps}
    transforms = {split: clip_transform(videos, stride=arguments.stride, **cut) for split, videos in sets.items()}
    fake_cut = clip_transform(fake, stride=arguments.fake_stride, **cut)
    sides = [("fake", fake, fake_cut)]
    sides += [("real" if split is Split.HELD_OUT else "train", sets[split], transforms[split]) for split in sets]
    fvd = FVD(
        every=1,
        num_clips=_num_clips(arguments.num_clips, sides, console),
        num_frames=arguments.num_frames,
        batch_size=arguments.batch_size,
        extractor=extractor,
        yardsticks=not arguments.no_yardsticks,
    )
    real = EvaluationData.of(
        {split: videos.examples for split, videos in sets.items()},
        transforms,
        seed=arguments.seed,
        references={name: described(videos, cut) for name, videos, cut in sides if name != "fake"},
    )
    judged = StoredSamples(fake, fake_cut, environment(), seed=arguments.seed)
    report = fvd.judge(judged, real, make_mesh(MeshShape()))
    card = dict(report.cards["fvd"])
    card["notes"] = [*card["notes"], *notes_of(arguments)]
    write_card(path, card)
    for name, medium in report.media.items():
        medium.write_each(path.with_name(f"{path.stem}_{name}"))
    if arguments.json:
        print(json.dumps(card, indent=1))
        return 0
    console.print(table([card]))
    console.print(f"for a paper: {markdown(card)}\nin LaTeX:    {latex(card)}")
    console.print(f"card: {path}")
    return 0


def _num_clips(wanted: int | None, sides: Sequence[tuple[str, OpenedVideos, ClipTransform]], console: Console) -> int:
    """As many clips of each side as are asked for, or one of each video of the smallest side."""
    counts = {name: num_videos(videos, cut) for name, videos, cut in sides}
    judged = wanted or min(USUAL_NUM_CLIPS, *counts.values())
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    if judged < 2:
        raise ValueError(
            f"{said} videos that are long enough: each side needs two clips at least, and 2048 to be quoted"
        )
    console.print(f"judging {judged} clips of each side, of {said} videos")
    if judged > min(counts.values()):
        console.print(
            "several clips of one video count as fewer than they are: the intervals will be too narrow", style="yellow"
        )
    return judged


def _stem(name: str) -> str:
    return Path(name).name.partition(":")[0].partition(".")[0]


def _open(name: str, fps: float, console: Console) -> OpenedVideos:
    """A folder, array or set; DIR:train and DIR:held_out choose a split of a set."""
    text, _, suffix = name.rpartition(":")
    chosen = Split(suffix) if text and suffix in list(Split) else Split.HELD_OUT
    path = Path(text if text and suffix in list(Split) else name)
    with bar("files", console) as progress:
        task = progress.add_task("probing", total=None, visible=False)

        def show(stage: str, done: int, total: int, file: str) -> None:
            del file
            progress.update(task, description=stage, completed=done, total=total, visible=True)

        videos = open_videos(path, chosen, fps=fps, progress=show)
    if path != Path(name) and videos.description["kind"] != "set":
        raise ValueError(f"{name}: {path} is no video set and has no splits; name it without :{suffix}")
    for file, reason in videos.description["skipped"].items():
        console.print(f"{path}: {file} is left out: {reason}", style="yellow")
    for file, note in videos.description.get("notes", {}).items():
        console.print(f"{path}: {file}: {note}", style="yellow")
    return videos
