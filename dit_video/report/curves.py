"""Curves of runs, grouped so that only what has one meaning shares an axis."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dit_video.report.recorded_run import RecordedRun
from dit_video.training.goodput import Activity

# Of a task: what is compared by a loss, and so does not decide what the loss is of.
_COMPARED = {"network", "vae", "condition", "sampler", "guidance", "precision"}
# Evaluators whose values mean the same whatever task was trained.
_OF_VIDEOS = {"FVD", "Reconstruction"}
# Fields of an evaluator that decide no value.
_NOT_A_PROTOCOL = {"every", "batch_size", "num_shown"}
# What is no measurement.
_CLOCK = {"step", "wall_time"}
_LEVEL = re.compile(r"(.+)/logsnr_([+-]?[\d.]+)")
_NUM_POINTS = 1500
_LEAST_POINTS = 200
_NUM_TIMES = 300

Scale = str
"""Canonical JSON of what must be equal for values to share an axis."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values of one metric of one run by step; those that are not finite are None."""

    run: int
    steps: Sequence[int]
    values: Sequence[float | None]

    @property
    def finite(self) -> list[tuple[int, float]]:
        return [(step, value) for step, value in zip(self.steps, self.values) if value is not None]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves on one axis.

    Attributes:
        kind: "training", "held out" or "speed".
        of: class of the task that was trained.
        scale: what is the same for all of them.
        apart: fields in which the scale differs from that of the first chart of this metric; empty for that one.
    """

    kind: str
    metric: str
    of: str
    scale: Scale
    curves: Sequence[Curve]
    apart: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class LevelChart:
    """A held-out error over noise levels (log of the signal-to-noise ratio), for each run by step."""

    metric: str
    scale: Scale
    levels: Sequence[float]
    runs: Mapping[int, Mapping[int, Sequence[float | None]]]
    apart: Sequence[str] = ()


def charts(runs: Sequence[RecordedRun]) -> list[Chart]:
    """Charts of all metrics, of one kind after the other."""
    grouped: dict[tuple[str, str, Scale], list[Curve]] = {}
    most = max(_LEAST_POINTS, _NUM_POINTS // max(1, len(runs) // 8))
    for index, run in enumerate(runs):
        for (kind, metric, scale), points in _points(run).items():
            if not _LEVEL.fullmatch(metric):
                grouped.setdefault((kind, metric, scale), []).append(_curve(index, points, most))
    ordered = sorted(grouped.items(), key=lambda item: _order(*item[0][:2], item[1][0].run))
    found = [
        Chart(kind, metric, str(runs[curves[0].run].task.get("class")), scale, curves)
        for (kind, metric, scale), curves in ordered
    ]
    return _with_differences(found, lambda chart: (chart.kind, chart.metric))


def clock(run: RecordedRun) -> tuple[list[int], list[float]]:
    """Steps of a run and when they were done, in hours since the first that has a time; pauses are part of it.

    Times are of the lines that measure speed. Between two of them a step is taken to be at their straight line.
    """
    times = {line["step"]: line["rates"].get("wall_time") for line in run.metrics if "rates" in line}
    known = sorted((step, time) for step, time in times.items() if isinstance(time, int | float))
    kept = known[:: max(1, len(known) // _NUM_TIMES)]
    kept += known[-1:] if kept[-1:] != known[-1:] else []
    return [step for step, _ in kept], [round((time - known[0][1]) / 3600, 5) for _, time in kept]


def level_charts(runs: Sequence[RecordedRun]) -> list[LevelChart]:
    """Held-out errors that evaluators report by noise level."""
    grouped: dict[tuple[str, Scale], dict[int, dict[int, dict[float, float]]]] = {}
    for index, run in enumerate(runs):
        for (_, metric, scale), points in _points(run).items():
            if parts := _LEVEL.fullmatch(metric):
                by_step = grouped.setdefault((parts[1], scale), {}).setdefault(index, {})
                for step, value in points:
                    by_step.setdefault(step, {})[float(parts[2])] = value
    found = []
    for (metric, scale), by_run in grouped.items():
        levels = sorted({level for steps in by_run.values() for values in steps.values() for level in values})
        rows = {
            run: {step: [_number(values.get(level, math.nan)) for level in levels] for step, values in steps.items()}
            for run, steps in by_run.items()
        }
        found.append(LevelChart(metric, scale, levels, rows))
    return _with_differences(found, lambda chart: chart.metric)


def task_scale(run: RecordedRun) -> dict[str, Any]:
    """What a loss of this run is of: its task without what is compared, and the clips of its data."""
    task = {name: value for name, value in run.task.items() if name not in _COMPARED}
    return {"task": task, "clips": run.experiment.get("data", {}).get("clips")}


def milestones(curve: Curve) -> list[float]:
    """Values of a curve at the start, at each quarter and at the end, for a table; empty where none is finite."""
    points = curve.finite
    return [points[round(part * (len(points) - 1))][1] for part in (0, 0.25, 0.5, 0.75, 1)] if points else []


def differences(a: Scale, b: Scale) -> list[str]:
    """Dotted names of fields in which two scales differ."""
    left, right = (dict(_leaves(json.loads(scale))) for scale in (a, b))
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most about `most` points, with the least and the greatest of each piece of the curve: no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept: list[tuple[int, float]] = []
    for piece in np.array_split(np.arange(len(points)), most // 2):
        values = np.array([points[i][1] for i in piece])
        broken = np.flatnonzero(~np.isfinite(values))
        ends = {0} if broken.size else set()
        if broken.size < values.size:
            ends = {int(np.nanargmin(values)), int(np.nanargmax(values))}
        kept += [points[piece[i]] for i in sorted(ends | set(broken[:1].tolist()))]
    return kept


def _points(run: RecordedRun) -> dict[tuple[str, str, Scale], list[tuple[int, float]]]:
    """(step, value) by (kind, metric, scale)."""
    found: dict[tuple[str, str, Scale], list[tuple[int, float]]] = {}
    data = run.record.get("data") or {}
    trained_on = _canonical(task_scale(run) | {"data": data.get("source", {}).get("digest")})
    scales: dict[str, Scale] = {}
    for line in run.metrics:
        if "rates" in line:
            kind, scale, values = "speed", "{}", line["rates"]
        elif "evaluation" in line:
            name = line["evaluation"]
            scale = scales.setdefault(name, _evaluation_scale(run, name))
            kind, values = "held out", {k: v for k, v in line.items() if k != "evaluation"}
        else:
            kind, scale, values = "training", trained_on, line
        for name, value in values.items():
            if name not in _CLOCK and not name.startswith("count/") and isinstance(value, int | float):
                found.setdefault((kind, name, scale), []).append((line["step"], float(value)))
    return found


def _evaluation_scale(run: RecordedRun, name: str) -> Scale:
    evaluators = run.experiment.get("evaluators") or {}
    evaluator = evaluators.get(name) or {}
    protocol = {field: value for field, value in evaluator.items() if field not in _NOT_A_PROTOCOL}
    judged = task_scale(run)
    if evaluator.get("class") in _OF_VIDEOS:
        del judged["task"]
    seed = run.experiment.get("seed")
    return _canonical({"evaluator": protocol or name, "held_out": run.held_out, "seed": seed, **judged})


def _curve(run: int, points: Sequence[tuple[int, float]], most: int) -> Curve:
    kept = thinned(points, most)
    return Curve(run, [step for step, _ in kept], [_number(value) for _, value in kept])


def _number(value: float) -> float | None:
    """Six digits, which no eye tells from all; None where JSON has no such number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _order(kind: str, metric: str, run: int) -> tuple[int, bool, int, bool, str]:
    """Those of one task together, its loss first; what is split by noise level last."""
    return ("training", "held out", "speed").index(kind), "/" in metric, run, metric != "loss", metric


def _with_differences(found: list, name) -> list:
    first: dict[Any, Scale] = {}
    return [
        dataclasses.replace(chart, apart=differences(first.setdefault(name(chart), chart.scale), chart.scale))
        for chart in found
    ]


def _canonical(value: Any) -> Scale:
    return json.dumps(value, sort_keys=True)


def _leaves(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    else:
        yield path, json.dumps(value)


def shares(seconds: Mapping[Activity, float]) -> list[tuple[Activity, float, float]]:
    """(activity, seconds, share of all) of a run's wall time; empty where none is booked."""
    total = sum(seconds.values())
    return [(activity, seconds[activity], seconds[activity] / total) for activity in Activity if seconds[activity]]
