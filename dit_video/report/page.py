"""The page of a report: everything about some runs as one HTML text, by a template that escapes every name in it."""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

import dit_video
from dit_video.report.card_panels import panels
from dit_video.report.curves import Chart, LevelChart, charts, clock, level_charts, milestones, shares
from dit_video.report.media_choice import Shown, base64_of, choose, data_type, media_id, poster
from dit_video.report.recorded_run import Medium, RecordedRun
from dit_video.report.size import Size, against_plan, sizes

_FILES = importlib.resources.files("dit_video.report") / "files"
_NUM_COLOURS = 7
"""Of runs, in report.css; further runs have the same colours and dashed lines."""


@dataclasses.dataclass(frozen=True)
class RunView:
    """A run with what is computed from its record."""

    index: int
    run: RecordedRun
    size: Size | None

    @property
    def colour(self) -> int:
        return self.index % _NUM_COLOURS

    @property
    def planned_steps(self) -> int | None:
        return (self.run.experiment.get("schedule") or {}).get("num_steps")


def render(runs: Sequence[RecordedRun], *, title: str = "dit_video report", live: str | None = None) -> str:
    """The page of some runs: no request leaves it, whatever is in their names, captions and records.

    Args:
        live: version of what it shows, where a server has it (`report/live.py`): then pictures are asked for there, and
            not embedded.
    """
    views = [RunView(index, run, size) for index, (run, size) in enumerate(zip(runs, sizes(runs)))]
    drawn, levels, shown = charts(runs), level_charts(runs), choose(runs)
    ids = {medium.path: media_id(medium) for medium in _media(shown)}
    scripts = [_text("uPlot.iife.min.js"), _text("report.js")]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": short, "bytes": _bytes, "duration": _duration, "json": _shown_json}
    return environment.from_string(_text("page.html.j2")).render(
        title=title,
        version=dit_video.__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        policy=_policy(scripts, asks=live is not None),
        styles=markupsafe.Markup(_text("uPlot.min.css") + _text("report.css")),
        scripts=[markupsafe.Markup(script) for script in scripts],
        data=_embedded(
            {"live": live, "runs": [_run_data(view) for view in views], **_curve_data(drawn, levels, shown, ids)}
        ),
        views=views,
        groups=_groups(views),
        charts=[(n, chart, _rows(chart)) for n, chart in enumerate(drawn)],
        levels=list(enumerate(levels)),
        panels=panels(runs),
        shown=[(n, item) for n, item in enumerate(shown)],
        posters={medium.path: _poster(medium) for medium in _last(shown)},
        media=[] if live else [(ids[m.path], data_type(m), base64_of(m)) for m in _media(shown)],
        seeds=len({view.run.experiment.get("seed") for view in views}),
        time=[(view, shares(view.run.seconds)) for view in views],
        plans=[(view, rows) for view in views if (rows := against_plan(view.run))],
        differences=lambda group: differing(group),
    )


def differing(views: Sequence[RunView]) -> list[tuple[str, list[Any]]]:
    """Fields in which experiments differ, each with its value in every run; None where a run has no such field."""
    fields = [view.run.fields for view in views]
    names = dict.fromkeys(name for of_run in fields for name in of_run)
    rows = [(name, [of_run.get(name) for of_run in fields]) for name in names]
    return [(name, values) for name, values in rows if len({json.dumps(value) for value in values}) > 1]


def short(value: float | int | None) -> str:
    """A number in four digits, large ones with k, M, G, T and so on."""
    if value is None:
        return "–"
    size = abs(value)
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if size >= scale:
            divisor = 1e3 if unit == "k" else scale
            return f"{value / divisor:.4g} {unit}"
    return f"{value:.4g}"


def _groups(views: Sequence[RunView]) -> list[tuple[str, list[RunView]]]:
    """Runs by the class of their task: experiments of unlike tasks differ in nearly everything."""
    groups: dict[str, list[RunView]] = {}
    for view in views:
        groups.setdefault(str(view.run.task.get("class", "Task")), []).append(view)
    return list(groups.items())


def _run_data(view: RunView) -> dict[str, Any]:
    return {
        "name": view.run.name,
        "colour": view.colour,
        "dash": view.index // _NUM_COLOURS,
        "clock": clock(view.run),
    }


def _curve_data(
    drawn: Sequence[Chart], levels: Sequence[LevelChart], shown: Sequence[Shown], ids: Mapping[Path, str]
) -> dict[str, Any]:
    return {
        "charts": [
            {"smooth": chart.kind == "training", "curves": [[c.run, c.steps, c.values] for c in chart.curves]}
            for chart in drawn
        ],
        "levels": [{"levels": chart.levels, "runs": chart.runs} for chart in levels],
        "shown": [
            {run: {step: ids[m.path] for step, m in media.items()} for run, media in item.by_run.items()}
            for item in shown
        ],
    }


def _rows(chart: Chart) -> list[tuple[int, list[float]]]:
    return [(curve.run, values) for curve in chart.curves if (values := milestones(curve))]


def _media(shown: Sequence[Shown]) -> list[Medium]:
    return [medium for item in shown for media in item.by_run.values() for medium in media.values()]


def _last(shown: Sequence[Shown]) -> list[Medium]:
    return [media[max(media)] for item in shown for media in item.by_run.values()]


def _poster(medium: Medium) -> tuple[str, int, int] | None:
    return poster(medium) if medium.suffix == ".mp4" else None


def _embedded(data: Any) -> markupsafe.Markup:
    """JSON inside a script element: without a character that could end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def _policy(scripts: Sequence[str], *, asks: bool) -> str:
    """What the page may do, for the browser to enforce: run its own scripts, and ask nobody for anything.

    Args:
        asks: its own server, for what is new.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    own, nobody = ("'self' " if asks else ""), "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src {own}data: blob:; "
        f"media-src {own}blob:; connect-src {own or nobody}; base-uri 'none'; form-action 'none'"
    )


def _text(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _bytes(number: float | int) -> str:
    unit, scale = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if number >= s), ("B", 1))
    return f"{number / scale:.4g} {unit}"


def _duration(seconds: float | int) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _shown_json(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False)
