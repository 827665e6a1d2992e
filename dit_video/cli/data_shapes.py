"""`dit-video data shapes`: shapes of clips for a set, and where one video goes and why."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table

from dit_video.cli.arguments import experiment_of
from dit_video.data.record import Split
from dit_video.data.shape_choice import Loss
from dit_video.data.shapes import BatchShape, Extents, assigned, losses
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.data.video_set import Entry
from dit_video.progress import Terminal
from dit_video.run.shapes import FEW_CLIPS, MOST_SPREAD, Choice, choice

_DEFAULT_NUM = 8


def run_shapes(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
    source, experiment = VideoSet(directory=arguments.directory), experiment_of(arguments)
    entries = source.manifest().stored(Split.TRAIN)
    extents = Extents.of(source.open(Split.TRAIN))
    place = None if arguments.explain is None else _place(entries, arguments.explain)
    num = arguments.num
    if num is None and not experiment.data.shapes:
        num = _DEFAULT_NUM
    with console.status("counting FLOPs"):
        found = choice(experiment, extents, num)
    shapes, clips = [use.shape for use in found.uses], experiment.data.clips
    if place is not None:
        one = Extents(*(values[place : place + 1] for values in extents))
        reasons = explained(one, shapes, clips)
        if arguments.json:
            print(json.dumps({"file": entries[place].file, **reasons}, indent=1))
        else:
            _show_reasons(console, entries[place], reasons, clips)
        return 0
    if arguments.json:
        print(json.dumps(to_json(found), indent=1))
    else:
        _show(console, found)
    return 0


def to_json(found: Choice) -> dict[str, Any]:
    """All numbers of a choice; shares are of area-time."""

    def of(loss: Loss) -> dict[str, float]:
        return dataclasses.asdict(loss) | {"total": loss.total}

    uses = [
        dataclasses.asdict(use) | {"shape": list(use.shape.clip), "batch_size": use.shape.batch_size}
        for use in found.uses
    ]
    return {
        "shapes": uses,
        "programs": len(uses),
        "too_short": found.too_short,
        "lost": of(found.loss),
        "best_single_shape": of(found.single),
        "grid_by_hand": of(found.grid),
        "spread": found.spread,
        "batch_size_for_small_spread": found.enough,
    }


def explained(one: Extents, shapes: Sequence[BatchShape], clips: ClipTransform) -> dict[str, Any]:
    """Where the one record of `one` goes, and what it would lose in each shape, as JSON; None: too short for it."""
    lost, goes = losses(one, shapes, clips), int(assigned(one, shapes, clips)[0])
    fits = [bool(total < float("inf")) for total in lost.total[0]]
    return {
        "frames": int(one.num_frames[0]),
        "fps": float(one.fps[0]),
        "size": one.sizes[0].tolist(),
        "clip_frames": int(one.clip_frames(clips)[0]),
        "goes_to": None if goes < 0 else list(shapes[goes].clip),
        "shapes": [
            {
                "shape": list(shape.clip),
                "cut": float(lost.cut[0, number]) if fits[number] else None,
                "filled": float(lost.filled[0, number]) if fits[number] else None,
            }
            for number, shape in enumerate(shapes)
        ],
    }


def _place(entries: Sequence[Entry], name: str) -> int:
    """Position of the one training video of this name: its path within its source, or the end of it."""
    ends = [n for n, entry in enumerate(entries) if PurePosixPath(f"/{entry.file}").match(name.rstrip("/"))]
    exact = [n for n in ends if entries[n].file == name] or ends
    if len(exact) != 1:
        known = "; ".join(entries[n].file for n in exact[:5]) or ", ".join(entry.file for entry in entries[:5])
        what = f"{len(exact)} training videos have that name" if exact else "no training video has that name; there are"
        raise ValueError(f"--explain={name}: {what}: {known}")
    return exact[0]


def _show(console: Console, found: Choice) -> None:
    table = Table(title=f"shapes of {sum(use.clips for use in found.uses)} videos")
    for column in ("frames x height x width", "videos", "cut off", "filled up", "tokens", "batch", "FLOPs of a step"):
        table.add_column(column, justify="right")
    for use in found.uses:
        tokens = "" if use.tokens is None else f"{use.tokens:,}"
        shares = (f"{use.cut:.1%}", f"{use.filled:.1%}")
        table.add_row(str(use.shape), str(use.clips), *shares, tokens, str(use.shape.batch_size), f"{use.flops:.4g}")
    console.print(table)
    if found.too_short:
        console.print(f"{found.too_short} videos are too short for every shape, and are never seen", style="yellow")
    compared = Table(title="area-time that is lost")
    for column in ("", "cut off", "filled up", "left out", "idle", "all"):
        compared.add_column(column, justify="right" if column else "left")
    for name, loss in (
        ("these shapes", found.loss),
        ("the best single shape", found.single),
        (f"a grid of {len(found.uses)} by hand", found.grid),
    ):
        compared.add_row(
            name, *(f"{share:.1%}" for share in (loss.cut, loss.filled, loss.left_out, loss.idle, loss.total))
        )
    console.print(compared)
    console.print(f"FLOPs of steps are {found.spread:.1%} apart; programs to compile: {len(found.uses)}")
    if found.enough is not None:
        few = min(use.shape.batch_size or 1 for use in found.uses)
        why = f"{few} clips are too few to be cut finer; " if few < FEW_CLIPS else ""
        console.print(f"{why}config.data.batch_size={found.enough} brings them below {MOST_SPREAD:.0%}", style="yellow")
    console.print("in an experiment:")
    for use in found.uses:
        T, H, W = use.shape.clip
        console.print(
            f"    BatchShape(num_frames={T}, size=({H}, {W}), batch_size={use.shape.batch_size}),", highlight=False
        )


def _show_reasons(console: Console, entry: Entry, reasons: dict[str, Any], clips: ClipTransform) -> None:
    pace = f"{clips.fps:g} frames a second" if clips.fps is not None else f"every {clips.stride}. frame"
    console.print(
        f"{entry.file}: {entry.frames} frames of {entry.height}x{entry.width} at {entry.fps:.4g} a second; taken as "
        f"{pace.replace('every 1. frame', 'they are')}, {reasons['clip_frames']} frames",
        markup=False,
        highlight=False,
    )
    table = Table()
    for column in ("shape", "cut off", "filled up", ""):
        table.add_column(column, justify="right" if column else "left")
    for row in reasons["shapes"]:
        name = "x".join(map(str, row["shape"]))
        if row["cut"] is None:
            table.add_row(name, "", "", f"too short: {row['shape'][0]} frames are more than {reasons['clip_frames']}")
        else:
            goes = "goes here: loses least" if row["shape"] == reasons["goes_to"] else ""
            table.add_row(name, f"{row['cut']:.1%}", f"{row['filled']:.1%}", goes)
    console.print(table)
    if reasons["goes_to"] is None:
        console.print("too short for every shape: it is left out", style="yellow")
