"""`dit-video data`: ingests videos into a set, inspects a set, makes the moving digits."""

import argparse
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from dit_video.cli.data_actions import action_lines, actions_of
from dit_video.cli.data_json import print_set
from dit_video.config.paths import shell_word
from dit_video.data import captions
from dit_video.data.record import Split
from dit_video.data.sources import MovingDigits, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.data.video_set import UNFINISHED, Manifest, read_manifest
from dit_video.ingest.action_files import ActionFiles, Leads
from dit_video.ingest.extend import extend
from dit_video.ingest.ingest import Progress, ingest
from dit_video.ingest.label_table import LabelTable
from dit_video.ingest.transcoding import SAID_EVERY, Transcoding
from dit_video.ingest.unfinished import finish
from dit_video.progress import Terminal, bar, shown
from dit_video.video.encode import grid

_SHEET_ROWS, _SHEET_FRAMES, _SHEET_HEIGHT = 8, 6, 96
_MOST_REASONS = 20
_PICTURES = (".png", ".jpg")
_HELD_OUT_FRACTION = 0.1
# Of a file beside the bar.
_LONGEST_NAME = 32


def run_ingest(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
    with _progress(console) as show, _kept(console, arguments.out):
        manifest = _extended(arguments, show, console) if arguments.add else _ingested(arguments, show)
    if arguments.json:
        print_set(arguments.out, manifest)
        return 0
    for line in _warnings(manifest):
        console.print(f"warning: {line}", style="yellow")
    _print_skipped(console, manifest)
    _print_notes(console, manifest)
    counts = ", ".join(f"{len(manifest.stored(split))} {split}" for split in Split)
    out = arguments.out
    console.print(f"{out}: {counts}; look at it with: dit-video data inspect {shell_word(out)}")
    return 0


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar with the file that is waited for; where there is no terminal to draw it on, a line now and then."""
    with bar("files", console) as progress:
        bars: dict[str, TaskID] = {}
        last_print = time.monotonic()

        def show(stage: str, done: int, total: int, file: str) -> None:
            nonlocal last_print
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            at = f"{stage} {_short(shown(file))}".rstrip()
            progress.update(bars[stage], completed=done, description=at)
            if not console.is_terminal and file and time.monotonic() - last_print >= SAID_EVERY:
                last_print = time.monotonic()
                console.print(f"{stage}: {done}/{total}, at {file}")

        yield show


def _short(name: str) -> str:
    """The end of a long name, which tells files of one folder apart."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}"


def _ingested(arguments: argparse.Namespace, show: Progress) -> Manifest:
    fraction = arguments.held_out_fraction
    return ingest(
        arguments.sources,
        arguments.out,
        labels=_label_table(arguments, {}),
        actions=_action_files(arguments),
        group=arguments.group,
        held_out_fraction=_HELD_OUT_FRACTION if fraction is None else fraction,
        transcoding=Transcoding(
            max_size=arguments.max_size, images=bool(arguments.images), num_workers=arguments.num_workers
        ),
        progress=show,
    )


def _extended(arguments: argparse.Namespace, show: Progress, console: Console) -> Manifest:
    """The set with what is added; says what has changed of what it had."""
    finish(arguments.out)
    if arguments.actions is not None:
        raise ValueError("--actions: a set with actions is not extended; make a new set of all sources")
    old = read_manifest(arguments.out, remedy="--add extends a set; make one without it")
    new = extend(
        arguments.sources,
        arguments.out,
        labels=_label_table(arguments, old.settings.get("columns") or {}),
        asked={name: getattr(arguments, name) for name in ("group", "held_out_fraction", "max_size", "images")},
        num_workers=arguments.num_workers,
        progress=show,
    )
    sides = {entry.sha256: entry.split for entry in new.entries if entry.split}
    moved = [entry for entry in old.entries if entry.split and sides.get(entry.sha256) != entry.split]
    if moved:
        entry = moved[0]
        console.print(
            f"warning: {len(moved)} videos of before are on the other side of the split, such as {entry.file}, "
            f"now {sides[entry.sha256]}: scores of before and after are of other videos",
            style="yellow",
        )
    if new.class_names[: len(old.class_names)] != old.class_names:
        console.print(
            "warning: classes have other numbers than before: runs on the old set do not go on", style="yellow"
        )
    return new


@contextlib.contextmanager
def _kept(console: Console, out: Path) -> Iterator[None]:
    """Says, where an ingest fails, what is kept of it."""
    try:
        yield
    except BaseException:
        if (out / UNFINISHED).is_dir():
            console.print(f"what was decoded is kept in {out / UNFINISHED}: the same command goes on from there")
        raise


def _warnings(manifest: Manifest) -> list[str]:
    warnings = manifest.settings.get("warnings", {})
    # Of a set of before a list.
    return [line for lines in warnings.values() for line in lines] if isinstance(warnings, dict) else list(warnings)


def _label_table(arguments: argparse.Namespace, of_set: Mapping[str, str | None]) -> LabelTable | None:
    """The table that is given; what is not said of its columns is as in the set that is extended."""
    columns = {name: getattr(arguments, name) or of_set.get(name) for name in ("label", "caption", "split")}
    if arguments.labels is not None:
        return LabelTable(path=arguments.labels, key=arguments.key or of_set.get("key") or "key", **columns)
    if arguments.label or arguments.caption or arguments.split:
        raise ValueError("--label, --caption and --split name columns of a table; give it with --labels FILE")
    return None


def _action_files(arguments: argparse.Namespace) -> ActionFiles | None:
    if arguments.actions is None:
        if arguments.action_leads or arguments.action_columns:
            raise ValueError("--action_leads and --action_columns are of --actions PATTERN")
        return None
    if arguments.action_leads is None:
        raise ValueError(
            "--actions needs --action_leads: `to` where row f is what led to frame f, `from` where it is what was "
            "done on seeing frame f, as environments record it"
        )
    columns = tuple(filter(None, (arguments.action_columns or "").split(",")))
    return ActionFiles(pattern=arguments.actions, leads=Leads(arguments.action_leads), columns=columns)


def run_inspect(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
    if arguments.out is not None and arguments.out.suffix.lower() not in _PICTURES:
        raise ValueError(f"--out={arguments.out}: must end in {' or '.join(_PICTURES)}")
    source = VideoSet(directory=arguments.directory)
    manifest, digests = source.manifest(), source.info().split_digest
    if arguments.json:
        print_set(arguments.directory, manifest)
    else:
        _show_set(console, manifest, digests, arguments.caption_bytes)
        for line in action_lines(actions_of(source, manifest)):
            console.print(line)
    if arguments.out is not None:
        Image.fromarray(contact_sheet(source)).save(arguments.out)
        console.print(f"contact sheet: {arguments.out}")
    return 0


def _show_set(console: Console, manifest: Manifest, digests: Mapping[Split, str], caption_bytes: int | None) -> None:
    console.print(_overview(manifest))
    if manifest.class_names:
        console.print(_classes(manifest))
    _print_captions(console, manifest, caption_bytes)
    _print_skipped(console, manifest)
    _print_notes(console, manifest)
    for split, digest in digests.items():
        console.print(f"digest of {split}: {digest}")


def run_digits(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
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
    if arguments.json:
        print(json.dumps({"videos": {str(split): count for split, count in info.num_records.items()}}, indent=1))
        return 0
    counts = ", ".join(f"{count} {split}" for split, count in info.num_records.items())
    console.print(f"{arguments.out}: {counts}")
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


def _range(values: Sequence[int] | Sequence[float], show: Callable[[float], str]) -> str:
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
        table.add_row(str(label), name, *(str(counts[split][name]) for split in Split))
    unlabelled = [str(counts[split][None]) for split in Split]
    if any(int(count) for count in unlabelled):
        table.add_row("", "(none)", *unlabelled)
    return table


def _print_captions(console: Console, manifest: Manifest, caption_bytes: int | None) -> None:
    """How long captions are, and which would be cut to `caption_bytes`."""
    texts = {split: [entry.caption for entry in manifest.stored(split)] for split in Split}
    lengths = {
        split: np.array([captions.length_in_bytes(text) for text in of_split], int) for split, of_split in texts.items()
    }
    of_all = np.concatenate(list(lengths.values()))
    if not of_all.any():
        return
    there = of_all[of_all > 0]
    distinct = len({text for of_split in texts.values() for text in of_split if text})
    table = Table(title=f"captions: {len(there)}, {distinct} of them different")
    for column in ("bytes", *texts, "share"):
        table.add_column(column, justify="right")
    bins = {split: captions.length_histogram(of_split) for split, of_split in lengths.items()}
    for row, (low, high, count) in enumerate(captions.length_histogram(of_all)):
        counts = [str(of_split[row][2]) if row < len(of_split) else "0" for of_split in bins.values()]
        table.add_row("none" if high == 0 else f"{low}..{high}", *counts, f"{count / len(of_all):.1%}")
    console.print(table)
    median, longest = int(np.median(there)), int(there.max())
    console.print(f"bytes of a caption: {there.min()} to {longest}, half of them at most {median}")
    if caption_bytes is not None:
        room = captions.room_for(caption_bytes)
        cut = int((there > room).sum())
        console.print(
            f"--caption_bytes={caption_bytes} leaves room for {room}: {cut} of {len(there)} captions are longer and "
            f"would be cut; {longest + 1} would hold them all",
            style="yellow" if cut else "",
        )


def _print_skipped(console: Console, manifest: Manifest) -> None:
    skipped = manifest.skipped()
    if skipped:
        table = Table(title=f"{len(skipped)} file{'s' * (len(skipped) > 1)} skipped")
        table.add_column("file")
        table.add_column("reason")
        for entry in skipped[:_MOST_REASONS]:
            table.add_row(entry.file, entry.reason)
        if len(skipped) > _MOST_REASONS:
            table.add_row(f"{len(skipped) - _MOST_REASONS} more", "in manifest.json")
        console.print(table)
    if rows := manifest.rows_without_file:
        named = ", ".join(rows[:5])
        console.print(f"{len(rows)} rows of the labels file name no file: {named}{' ...' if rows[5:] else ''}")


def _print_notes(console: Console, manifest: Manifest) -> None:
    """What was done to pictures and times of stored files, and whether their rates differ."""
    stored = [entry for entry in manifest.entries if entry.split is not None]
    noted = [entry for entry in stored if entry.notes]
    for entry in noted[:_MOST_REASONS]:
        console.print(f"{entry.file}: {entry.notes}")
    if len(noted) > _MOST_REASONS:
        console.print(f"{len(noted) - _MOST_REASONS} more files were changed or cut: see notes in manifest.json")
    rates = {entry.fps for entry in stored}
    if len(rates) > 1:
        console.print(
            f"videos have {min(rates):.4g} to {max(rates):.4g} frames a second: to train at one rate, "
            "ClipTransform(fps=...)",
            style="yellow",
        )


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
