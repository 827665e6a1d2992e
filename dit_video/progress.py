"""What a person sees in a terminal: messages, in which names are printed as they are, and progress bars with an ETA."""

import contextlib
import datetime
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.cells import cell_len
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
from rich.table import Table
from rich.text import Text

from dit_video.distributed.processes import is_first

Item = TypeVar("Item")

LINE_EVERY = 10.0
# Of a file or pipe, which has no width: no table of ours is wider.
_UNLIMITED = 10_000


def shown(name: str) -> str:
    """A stranger's text made safe to print: control characters, which could move the cursor, as escapes like \\x1b.

    Line breaks and tabs stay.
    """
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in name)


def _harmless(character: str) -> bool:
    # Spaces of all scripts, and joiners, without which names of some cannot be written.
    return character.isprintable() or character in "\n\t\u200c\u200d" or unicodedata.category(character) == "Zs"


def headed(head: str, style: str, rest: str) -> Text:
    """A line whose first words have a style."""
    return Text.assemble((shown(head), style), shown(rest))


class Terminal(Console):
    """Console that prints text as it is: names are no markup, lines are not broken, control characters are `shown`.

    Styles are given as `style=`, or as a `Text`. What goes to a file or pipe is never cut to a width.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        if not self.is_terminal:
            self.width = _UNLIMITED

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        # A terminal breaks long lines itself, and a path that it broke can still be copied whole.
        as_lines = all(isinstance(item, str | Text) for item in objects) if soft_wrap is None else soft_wrap
        if not self.is_terminal:
            for table in (item for item in objects if isinstance(item, Table)):
                # Rich breaks a title that is wider than its table.
                table.min_width = cell_len(str(table.title or ""))
        super().print(*objects, soft_wrap=as_lines, **options)


class _Rate(ProgressColumn):
    """Column of a progress bar: units per second."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} {self._unit}/s")


def _stderr() -> Console:
    return Terminal(stderr=True, quiet=not is_first())


def bar(unit: str, console: Console | None = None) -> Progress:
    """A rich progress display that counts `unit`, such as "clips"; by default on stderr of the first process."""
    return Progress(
        TextColumn("{task.description:8}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        # Markup is imported when it is first used, which a thread cannot while TFDS is: etils replaces `import` then.
        TextColumn("ETA", markup=False),
        TimeRemainingColumn(),
        console=console or _stderr(),
    )


@contextlib.contextmanager
def progress_of(
    title: str, *, total: int, unit: str, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A progress bar, which is called with how many of `total` are done.

    Where there is no terminal to draw a bar on, as in a batch job, a line every `LINE_EVERY` seconds says the same.
    """
    console = console or _stderr()
    began = last_print = time.monotonic()
    with bar(unit, console) as progress:
        task = progress.add_task(title, total=total)

        def show(done: int) -> None:
            nonlocal last_print
            progress.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - last_print > LINE_EVERY and 0 < done < total:
                last_print, rate = now, done / (now - began)
                left = datetime.timedelta(seconds=round((total - done) / rate))
                console.print(f"{title}: {done}/{total}, {rate:.1f} {unit}/s, ETA {left}")

        yield show


def counted(
    items: Iterable[Item],
    title: str,
    *,
    total: int,
    unit: str = "clips",
    size: Callable[[Item], int] = lambda item: 1,
    console: Console | None = None,
) -> Iterator[Item]:
    """Yields `items` under a progress bar; each counts `size(item)` of `total` once the next one is requested."""
    done = 0
    with progress_of(title, total=total, unit=unit, console=console) as show:
        for item in items:
            yield item
            done += size(item)
            show(done)
