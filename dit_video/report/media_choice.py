"""Which pictures stand in a page while there is room: the last of every run, then the first, then those between."""

import base64
import dataclasses
import hashlib
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dit_video.report.recorded_run import Medium, RecordedRun
from dit_video.video.decode import read_video

BUDGET = 9_000_000
"""Bytes of all pictures of a page; base64 adds a third, and the whole stays below 15 MB."""

_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """Files of one name of all runs, side by side.

    Attributes:
        by_run: index of the run -> its media by step.
        left_out: how many there was no room for.
    """

    name: str
    by_run: dict[int, dict[int, Medium]]
    left_out: int = 0

    @property
    def steps(self) -> list[int]:
        return sorted({step for media in self.by_run.values() for step in media})


def choose(runs: Sequence[RecordedRun], budget: int = BUDGET) -> list[Shown]:
    """What is shown of the media of all runs."""
    series = [list(media) for run in runs for media in _by_name(run).values()]
    chosen = set(_within(series, budget))
    names = dict.fromkeys(medium.name for media in series for medium in media)
    shown = []
    for name in names:
        everything = {index: _by_name(run).get(name, []) for index, run in enumerate(runs)}
        by_run = {i: {m.step: m for m in media if m.path in chosen} for i, media in everything.items()}
        by_run = {index: media for index, media in by_run.items() if media}
        count = sum(map(len, everything.values())) - sum(map(len, by_run.values()))
        if by_run:
            shown.append(Shown(name, by_run, count))
    return shown


def _by_name(run: RecordedRun) -> dict[str, list[Medium]]:
    """Media by name, one for each step: of two, that of `evaluate`, which was made later."""
    found: dict[str, dict[int, Medium]] = {}
    for medium in run.media:
        found.setdefault(medium.name, {})[medium.step] = medium
    return {name: list(media.values()) for name, media in found.items()}


def _within(series: Sequence[Sequence[Medium]], budget: int) -> Iterable[Path]:
    """Takes in turn one of each series until the next would not fit."""
    orders = [spread(len(media)) for media in series]
    for turn in range(max(map(len, orders), default=0)):
        for media, order in zip(series, orders):
            if turn < len(order):
                medium = media[order[turn]]
                size = medium.path.stat().st_size
                if size <= budget:
                    budget -= size
                    yield medium.path


def spread(count: int) -> list[int]:
    """0 .. count - 1 in an order whose every beginning is spread out: the last, the first, then middles of gaps."""
    order = [count - 1, 0] if count > 1 else list(range(count))
    while len(order) < count:
        edges = sorted(order)
        gaps = [(b - a, a, b) for a, b in itertools.pairwise(edges) if b - a > 1]
        _, a, b = max(gaps, key=lambda gap: (gap[0], gap[1]))
        order.append((a + b) // 2)
    return order


def data_type(medium: Medium) -> str:
    """MIME type of a file of samples."""
    return _TYPES.get(medium.suffix, "text/plain")


def media_id(medium: Medium) -> str:
    """Names a file in a page; another one as soon as it was written anew."""
    state = f"{medium.path} {medium.path.stat().st_mtime_ns}"
    return f"m{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def base64_of(medium: Medium) -> str:
    return base64.b64encode(medium.path.read_bytes()).decode()


def poster(medium: Medium) -> tuple[str, int, int]:
    """The middle frame of a video as a data URI, with its width and height: seen before it plays, and printed."""
    frames, _ = read_video(medium.path)
    frame = frames[len(frames) // 2]
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(frame)).save(buffer, format="JPEG", quality=70)
    height, width = frame.shape[:2]
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height
