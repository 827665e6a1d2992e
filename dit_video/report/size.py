"""Parameters and FLOPs of the experiments of runs, from shapes; and what a run was planned to take beside what it took.

Many runs of a page have one network, which is then traced once.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dit_video import experiment as experiments
from dit_video.config.user_file import ExperimentError
from dit_video.nn.module import define
from dit_video.report.recorded_run import RecordedRun
from dit_video.run.workload import step_flops


@dataclasses.dataclass(frozen=True)
class Size:
    """Parameters that are trained, and FLOPs of one training step."""

    num_params: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Compared:
    """A quantity as planned and as measured; None where one of them is not known."""

    name: str
    unit: str
    planned: float | int | None
    measured: float | int | None

    @property
    def ratio(self) -> float | None:
        return self.measured / self.planned if self.measured is not None and self.planned else None


def sizes(runs: Sequence[RecordedRun]) -> list[Size | None]:
    """The size of each run; None where its task or data are made of classes that are not here."""
    return [_size(_what_counts(run)) for run in runs]


def _what_counts(run: RecordedRun) -> str:
    """An experiment, as JSON, of what decides its size, with the plainest of all else: so many runs have one."""
    parts = {"optimizer": {"class": "AdamW"}, "schedule": {"class": "Schedule", "num_steps": 1}}
    kept = {name: run.experiment[name] for name in ("format", "class", "task", "data") if name in run.experiment}
    return json.dumps(kept | parts, sort_keys=True)


@functools.lru_cache(maxsize=128)
def _size(content: str) -> Size | None:
    try:
        experiment = experiments.from_json(json.loads(content))
        return Size(define(experiment.task.init).num_params, step_flops(experiment))
    except (ExperimentError, ValueError, OSError):
        # Of a user's own classes, or of data that are not here any more.
        return None


def against_plan(run: RecordedRun) -> list[Compared]:
    """What `plan` said of a step beside what the run has measured: the median over its rates, of memory the most."""
    plan = run.plan or {}
    best: Mapping[str, Any] = plan.get("best_case") or {}
    rates = [line["rates"] for line in run.lines("rates")]

    def measured(name: str, of_all: Callable = statistics.median) -> float | None:
        values = [rate[name] for rate in rates if name in rate]
        return of_all(values) if values else None

    clips = measured("clips_per_second")
    step = plan["clips"] / clips if clips and plan.get("clips") else None
    rows = [
        Compared("time of a step", "s", best.get("step_seconds"), step),
        Compared("clips a second", "", best.get("clips_per_second"), clips),
        Compared("tokens a second", "", best.get("tokens_per_second"), measured("tokens_per_second")),
        Compared("model FLOPs utilisation", "", best.get("mfu"), measured("mfu")),
        Compared("model FLOPs of a step", "", plan.get("flops"), None),
        Compared(
            "peak memory of a device", "B", plan.get("memory", {}).get("peak"), measured("device_bytes_peak", max)
        ),
    ]
    return [row for row in rows if row.planned is not None or row.measured is not None] if plan else []
