"""Progress bars: how many items are done, their rate, and the time left."""

import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dit_video.distributed.processes import is_first

Item = TypeVar("Item")

LINE_EVERY = 10.0


class _Rate(ProgressColumn):
    """Column of a progress bar: units per second."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} {self._unit}/s")


def _stderr() -> Console:
    return Console(stderr=True, quiet=not is_first())


def bar(unit: str, console: Console | None = None) -> Progress:
    """A rich progress display that counts `unit`, such as "clips"; by default on stderr of the first process."""
    return Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console or _stderr(),
    )


def counted(
    items: Iterable[Item],
    title: str,
    *,
    total: int,
    unit: str = "clips",
    size: Callable[[Item], int] = lambda item: 1,
    console: Console | None = None,
) -> Iterator[Item]:
    """Yields `items` under a progress bar; each counts `size(item)` of `total` once the next one is requested.

    Where there is no terminal to draw a bar on, as in a batch job, a line every `LINE_EVERY` seconds says the same.
    """
    console = console or _stderr()
    began = last_print = time.monotonic()
    done = 0
    with bar(unit, console) as progress:
        task = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(task, size(item))
            done += size(item)
            now = time.monotonic()
            if not console.is_terminal and now - last_print > LINE_EVERY and done < total:
                last_print, rate = now, done / (now - began)
                left = datetime.timedelta(seconds=round((total - done) / rate))
                console.print(f"{title}: {done}/{total}, {rate:.1f} {unit}/s, ETA {left}", highlight=False)
