"""dit-video data: make and look at data sets"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dit_video.cli.arguments import command, local_path
from dit_video.data.record import Split
from dit_video.data.sources import MovingDigits, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.data.video_set import Manifest
from dit_video.ingest.ingest import ingest
from dit_video.ingest.labels import LabelTable
from dit_video.ingest.transcoding import Transcoding
from dit_video.progress import bar
from dit_video.video.encode import grid

INGEST = """  dit-video data ingest videos/ --out data/mine
      every video below videos/, in any container and codec; first-level sub-folders are classes

  dit-video data ingest clips.tar more.tar.gz --out data/mine --max_size 256
      tars; videos with a longer short side than 256 pixels are scaled down

  dit-video data ingest grid_train.tar grid_test.tar --out data/grid \\
      --labels grid_labels.tsv --key key --label digit --caption caption --split split
      labels, captions and the split from the columns of a CSV or TSV; the key is a path within the source
      (with or without extension) or a bare file name

Files that are no videos, broken, empty, sound only, or copies of another are named in DIR/manifest.json with
the reason. Without a split column or folders named train/ and test/, files are held out by their sha256: the
same files every time.
"""

INSPECT = """  dit-video data inspect data/mine
  dit-video data inspect data/mine --out contact_sheet.png"""

DIGITS = """  dit-video data digits --out data/moving_digits
  dit-video data digits --out data/digits64 --size 64 --digit_size 40 --num_frames 17"""

_SHEET_ROWS, _SHEET_FRAMES, _SHEET_HEIGHT = 8, 6, 96
_MOST_REASONS = 20


def add_parser(subparsers) -> None:
    parser = command(subparsers, "data", "make and look at data sets", "\n\n".join((INGEST, INSPECT, DIGITS)))
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_ingest(commands)
    _add_inspect(commands)
    _add_digits(commands)


def _add_ingest(commands) -> None:
    parser = command(commands, "ingest", "turn folders and tars of videos into a data set", INGEST)
    parser.add_argument("sources", nargs="+", metavar="FOLDER_OR_TAR")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="new folder for the set")
    parser.add_argument("--labels", metavar="FILE", help="CSV or TSV with a header; its rows describe the files")
    parser.add_argument("--key", default="key", metavar="COL", help="column that names a file (default: key)")
    parser.add_argument("--label", metavar="COL", help="column with the class")
    parser.add_argument("--caption", metavar="COL", help="column with a sentence")
    parser.add_argument("--split", metavar="COL", help="column with train, test, val, validation or held_out")
    parser.add_argument(
        "--held_out_fraction", type=float, default=0.1, metavar="F", help="share held out (default 0.1)"
    )
    parser.add_argument("--max_size", type=int, metavar="PIXELS", help="longest short side (default: keep sizes)")
    parser.add_argument("--num_workers", type=int, metavar="N", help="files decoded at once (default: one per core)")
    parser.set_defaults(run=run_ingest)


def _add_inspect(commands) -> None:
    parser = command(commands, "inspect", "show what a data set holds", INSPECT)
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--out", type=local_path, metavar="FILE.png", help="draw a contact sheet")
    parser.set_defaults(run=run_inspect)


def _add_digits(commands) -> None:
    parser = command(commands, "digits", "make the moving-digits set, which needs no download", DIGITS)
    parser.add_argument("--out", type=local_path, default=Path(MovingDigits.directory), metavar="DIR")
    for name in ("num_train", "num_held_out", "size", "num_frames", "digit_size", "seed"):
        default = getattr(MovingDigits, name)
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.set_defaults(run=run_digits)


def run_ingest(arguments: argparse.Namespace) -> int:
    console = Console()
    with bar("files", console) as progress:
        bars = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done)

        manifest = ingest(
            arguments.sources,
            str(arguments.out),
            labels=_label_table(arguments),
            held_out_fraction=arguments.held_out_fraction,
            transcoding=Transcoding(max_size=arguments.max_size, num_workers=arguments.num_workers),
            progress=show,
        )
    _print_skipped(console, manifest)
    counts = ", ".join(f"{len(manifest.stored(split))} {split}" for split in Split)
    out = escape(str(arguments.out))
    console.print(f"{out}: {counts}; look at it with: dit-video data inspect {out}")
    return 0


def _label_table(arguments: argparse.Namespace) -> LabelTable | None:
    columns = {name: getattr(arguments, name) for name in ("key", "label", "caption", "split")}
    if arguments.labels is not None:
        return LabelTable(path=arguments.labels, **columns)
    if arguments.label or arguments.caption or arguments.split:
        raise ValueError("--label, --caption and --split name columns of a table; give it with --labels FILE")
    return None


def run_inspect(arguments: argparse.Namespace) -> int:
    console = Console()
    source = VideoSet(directory=arguments.directory)
    manifest, info = source.manifest(), source.info()
    console.print(_overview(manifest))
    if manifest.class_names:
        console.print(_classes(manifest))
    _print_skipped(console, manifest)
    for split, digest in info.split_digest.items():
        console.print(f"digest of {split}: {digest}", highlight=False, soft_wrap=True)
    if arguments.out is not None:
        Image.fromarray(contact_sheet(source)).save(arguments.out)
        console.print(f"contact sheet: {escape(str(arguments.out))}")
    return 0


def run_digits(arguments: argparse.Namespace) -> int:
    console = Console()
    source = MovingDigits(
        directory=str(arguments.out),
        num_train=arguments.num_train,
        num_held_out=arguments.num_held_out,
        size=arguments.size,
        num_frames=arguments.num_frames,
        digit_size=arguments.digit_size,
        seed=arguments.seed,
    )
    with console.status("drawing digits"):
        info = source.info()
    counts = ", ".join(f"{count} {split}" for split, count in info.num_records.items())
    console.print(f"{escape(str(arguments.out))}: {counts}")
    return 0


def _overview(manifest: Manifest) -> Table:
    table = Table(title="videos")
    for column in ("split", "videos", "hours", "frames", "fps", "sizes", "MiB"):
        table.add_column(column, justify="left" if column in ("split", "sizes") else "right")
    for split in Split:
        entries = manifest.stored(split)
        if not entries:
            table.add_row(split, "0")
            continue
        frames = [entry.frames for entry in entries]
        sizes = Counter(f"{entry.width}x{entry.height}" for entry in entries)
        table.add_row(
            split,
            str(len(entries)),
            f"{sum(entry.frames / entry.fps for entry in entries) / 3600:.3f}",
            _range(frames, lambda value: f"{value:.0f}"),
            _range([entry.fps for entry in entries], lambda value: f"{value:.4g}"),
            _most(sizes, 3),
            f"{sum(entry.num_bytes for entry in entries) / 2**20:.1f}",
        )
    return table


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low}..{high}"


def _most(counts: Counter, limit: int) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common(limit))
    return shown if len(counts) <= limit else f"{shown}, {len(counts) - limit} more"


def _classes(manifest: Manifest) -> Table:
    table = Table(title="classes")
    table.add_column("label", justify="right")
    table.add_column("name")
    counts = {split: Counter(entry.label for entry in manifest.stored(split)) for split in Split}
    for split in Split:
        table.add_column(split, justify="right")
    for label, name in enumerate(manifest.class_names):
        table.add_row(str(label), escape(name), *(str(counts[split][name]) for split in Split))
    unlabelled = [str(counts[split][None]) for split in Split]
    if any(int(count) for count in unlabelled):
        table.add_row("", "(none)", *unlabelled)
    return table


def _print_skipped(console: Console, manifest: Manifest) -> None:
    skipped = manifest.skipped()
    if skipped:
        table = Table(title=f"{len(skipped)} files skipped")
        table.add_column("file")
        table.add_column("reason")
        for entry in skipped[:_MOST_REASONS]:
            table.add_row(escape(entry.file), escape(entry.reason))
        if len(skipped) > _MOST_REASONS:
            table.add_row(f"{len(skipped) - _MOST_REASONS} more", "in manifest.json")
        console.print(table)
    if rows := manifest.rows_without_file:
        named = ", ".join(rows[:5])
        console.print(f"{len(rows)} rows of the labels file name no file: {escape(named)}{' ...' if rows[5:] else ''}")


def contact_sheet(source: VideoSet) -> np.ndarray:
    """A picture of a set: one video a row, spread over the set, its frames from first to last; training above
    held out.
    """
    manifest = source.manifest()
    rows = []
    for split in Split:
        entries = manifest.stored(split)
        if not entries:
            continue
        examples = source.open(split)
        share = min(len(entries), _SHEET_ROWS // 2)
        for index in np.linspace(0, len(entries) - 1, share).astype(int):
            num_frames = min(_SHEET_FRAMES, entries[index].frames)
            stride = max(1, (entries[index].frames - 1) // max(1, num_frames - 1))
            size = (_SHEET_HEIGHT, _SHEET_HEIGHT * 4 // 3)
            transform = ClipTransform(num_frames=num_frames, stride=stride, size=size)
            video = np.asarray(transform.at(examples[int(index)], 0, np.random.default_rng(0)).video)
            row = grid(video[:, None], num_frames)[0]
            wide = _SHEET_FRAMES * (size[1] + 2) - 2
            rows.append(np.pad(row, ((0, 2), (0, wide - row.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(rows)
