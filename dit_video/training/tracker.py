"""Experiment tracking: metrics.jsonl (the source of truth), trackers beside it, sample videos and the console."""

import collections
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dit_video.config.json_file import check_kinds
from dit_video.distributed import processes
from dit_video.progress import headed
from dit_video.storage.json_lines import LinesFile, parse_lines, read_lines
from dit_video.storage.retrying_files import PICTURES_LIMIT, RetryingFile, RetryingFiles
from dit_video.tasks.media import Media, Video
from dit_video.training import events, goodput
from dit_video.training.events import Event, EventLog
from dit_video.training.goodput import Activity, Ledger
from dit_video.training.trackers import OpenTracker
from dit_video.training.watchdog import Heartbeat

METRICS_FILE = "metrics.jsonl"


@runtime_checkable
class Recorder(Protocol):
    """Interface of an experiment tracker, as the training loop uses it.

    Attributes:
        events: training faults of the run so far.
    """

    events: EventLog

    def now(self, activity: Activity) -> None:
        """Books wall time under `activity` from now on (goodput)."""
        ...

    def steps(self, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None: ...

    def past(self, count: int) -> list[dict[str, float]]:
        """Metrics of the last `count` steps, or fewer; a collective call of all processes."""
        ...

    def rewind(self, step: int) -> None:
        """Drops the records of the steps after `step`: the run continues from there."""
        ...

    def rates(self, step: int, loss: float, rates: Mapping[str, float]) -> None: ...

    def has_evaluation(self, step: int, name: str) -> bool: ...

    def evaluation(self, step: int, name: str, scalars: Mapping[str, float]) -> None: ...

    def media(self, step: int, name: str, medium: Media) -> None: ...

    def card(self, step: int, name: str, card: Mapping[str, Any]) -> None: ...

    def note(self, message: str) -> None: ...


class NullTracker:
    """Tracker that records nothing, for all processes of a run but the first, which writes."""

    def __init__(self, evaluations: Iterable[tuple[int, str]], known: Iterable[Event]):
        """All processes must agree on which evaluations and faults are on record.

        Args:
            evaluations: those in the record, (step, name).
            known: the faults of the run so far.
        """
        self._evaluations = set(evaluations)
        self.events = EventLog(known)
        self.heartbeat = Heartbeat()

    def now(self, activity: Activity) -> None:
        self.heartbeat.now(activity)

    def steps(self, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        pass

    def past(self, count: int) -> list[dict[str, float]]:
        return processes.from_first(list) if count else []

    def rewind(self, step: int) -> None:
        self.events.rewind(step)

    def rates(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        self.heartbeat.end_window()

    def has_evaluation(self, step: int, name: str) -> bool:
        return (step, name) in self._evaluations

    def evaluation(self, step: int, name: str, scalars: Mapping[str, float]) -> None:
        pass

    def media(self, step: int, name: str, medium: Media) -> None:
        pass

    def card(self, step: int, name: str, card: Mapping[str, Any]) -> None:
        pass

    def note(self, message: str) -> None:
        pass


class Tracker:
    """Tracker that writes to the run folder and the console. A folder that cannot be written ends no run.

    `goodput` books where its time goes, `events` says what went wrong, `heartbeat` how long things usually take.

    `metrics.jsonl` has one line per step with that step's own values (never a mean over a window, so that a
    resumed run writes the same lines), and one per evaluation and per rate measurement, distinguished by the keys
    "loss", "evaluation" and "rates". Starting at step s, or going back to it, forgets lines after s: they will be
    written again.
    """

    def __init__(
        self,
        workdir: Path,
        files: RetryingFiles,
        *,
        start: int,
        num_steps: int,
        console: Console,
        trackers: Sequence[OpenTracker] = (),
        began: float | None = None,
    ):
        """`began` is the time of `time.perf_counter` when the session began; now, if left out.

        `trackers` show elsewhere what is recorded; who opened them closes them.

        Whoever made `files` waits until they are written.
        """
        self._workdir, self._files, self._console, self._trackers = workdir, files, console, trackers
        self._record = LinesFile(files.file(workdir / METRICS_FILE), metrics_line)
        began = time.perf_counter() if began is None else began
        self.goodput = Ledger(files.file(workdir / goodput.FILE), start=start, began=began)
        self.goodput.write(start)
        log = LinesFile(files.file(workdir / events.FILE), Event.from_json)
        self.events = EventLog((event for event in log.lines() if event.belongs_to <= start), log)
        self.heartbeat = Heartbeat()
        self._num_steps = num_steps
        self._open(start)
        recorded = {line["step"] for line in self._record.lines() if "loss" in line}
        if missing := set(range(min(recorded, default=start + 1), start + 1)) - recorded:
            self.note(
                f"{workdir / METRICS_FILE}: {len(missing)} steps from {min(missing)} to {max(missing)} have no line; "
                f"the run was killed while they could not be written, or they are in {METRICS_FILE}.bad"
            )
        self._progress: Progress | None = None
        self._printed = -math.inf
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar = self._progress.add_task("train", total=num_steps, completed=start, status="")
            self._progress.start()
        self._clock = (time.perf_counter(), start)

    def now(self, activity: Activity) -> None:
        """Books wall time under `activity` from now on (goodput)."""
        self.goodput.now(activity)
        self.heartbeat.now(activity)
        if activity is Activity.CHECKPOINT:
            self._files.retry()  # who goes on from there should find the record of the way there

    def past(self, count: int) -> list[dict[str, float]]:
        """Metrics of the last `count` steps, or fewer; a collective call of all processes."""
        return processes.from_first(lambda: self._past(count)) if count else []

    def rewind(self, step: int) -> None:
        """Drops the records of the steps after `step`: the run continues from there."""
        self.goodput.rewind(self._step, step)
        self.events.rewind(step)
        self._open(step)
        for tracker in self._trackers:
            tracker.rewind(step)

    def steps(self, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Records the metrics of consecutive steps."""
        if steps := list(lines):
            self._record.append(*({"step": step, **values} for step, values in steps))
            self._step, values = steps[-1]
            self._show(self._step, "train", values)

    def rates(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """Records throughput at `step` and prints it."""
        self._record.append({"step": step, "rates": dict(rates)})
        self._show(step, "rates", rates)
        self.goodput.write(step)
        self.heartbeat.end_window()
        self._show(step, "seconds", {activity.value: s for activity, s in self.goodput.seconds().items()})
        status = f"loss {loss:.4f}  {rates['clips_per_second']:.1f} clips/s"
        if "tokens_per_second" in rates:
            status += f"  {rates['tokens_per_second']:.0f} tokens/s"
        if "mfu" in rates:
            status += f"  MFU {rates['mfu']:.1%}"
        status += f"  waiting for data {rates['data_wait_share']:.0%}"
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, status=status)
        elif time.monotonic() - self._printed > 10 or step == self._num_steps:
            self._printed = time.monotonic()
            self._console.print(f"step {step}/{self._num_steps}  {status}  ETA {self._eta(step)}", highlight=False)

    def has_evaluation(self, step: int, name: str) -> bool:
        """Whether the record has the result of this evaluator at this step."""
        return (step, name) in self._evaluations

    def evaluation(self, step: int, name: str, scalars: Mapping[str, float]) -> None:
        """Records the scalars of an evaluation."""
        self._record.append({"step": step, "evaluation": name, **scalars})
        self._show(step, name, scalars)
        values = "  ".join(f"{key} {value:.4g}" for key, value in list(scalars.items())[:6])
        if values:
            self._console.print(headed(f"step {step}  {name}", "bold", f"  {values}"))

    def media(self, step: int, name: str, medium: Media) -> None:
        """Saves a video, picture or text under samples/, and shows videos in the other trackers."""
        suffix = medium.suffixes[0]
        path = self._workdir / "samples" / f"step_{step:07d}_{name}{suffix}"
        self._files.file(path, limit=PICTURES_LIMIT).replace(medium.encode(suffix))
        if isinstance(medium, Video):
            for tracker in self._trackers:
                tracker.video(step, name, medium.frames, medium.fps)
        for line in medium.lines():
            self.note(f"step {step}  {name}  {line}")

    def card(self, step: int, name: str, card: Mapping[str, Any]) -> None:
        """Saves an evaluation card under cards/."""
        path = self._workdir / "cards" / f"step_{step:07d}_{name}.json"
        self._files.file(path).replace((json.dumps(card, indent=1) + "\n").encode())

    def note(self, message: str) -> None:
        """Prints a message to the console."""
        self._console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self.goodput.write(self._step)
        self._console.print(f"time of the run so far, {goodput.summary(self.goodput.seconds())}", highlight=False)
        if faults := events.summary(self.events):
            self.note(f"faults of the run so far, {faults}; see {self._workdir / events.FILE}")

    def _open(self, step: int) -> None:
        """Opens the record for appending after `step`."""
        self._step = step
        kept = [line for line in self._record.lines() if line["step"] <= step]
        self._evaluations = set(_evaluations(kept))
        self._record.replace(kept)

    def _show(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.scalars(step, prefix, values)

    def _past(self, count: int) -> list[dict[str, float]]:
        last = collections.deque((line for line in self._record.lines() if "loss" in line), maxlen=count)
        return [{name: value for name, value in line.items() if name != "step"} for line in last]

    def _eta(self, step: int) -> str:
        begin, first = self._clock
        done = max(1, step - first)
        seconds = (time.perf_counter() - begin) / done * (self._num_steps - step)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"


def recorded_scores(record: RetryingFile, evaluator: str, scalar: str) -> dict[int, float]:
    """One scalar of an evaluator by step."""
    lines = (line for line in parse_lines(record.read(), metrics_line).good if line.get("evaluation") == evaluator)
    return {line["step"]: line[scalar] for line in lines if scalar in line}


def read_record(workdir: Path, *, last: int | None = None) -> Iterable[dict[str, Any]]:
    """Lines of the record in a run's folder, up to step `last`."""
    lines = read_lines(workdir / METRICS_FILE, metrics_line)
    return (line for line in lines if last is None or line["step"] <= last)


def metrics_line(content: dict[str, Any]) -> dict[str, Any]:
    """Checks a line of metrics.jsonl, of one of its three kinds; numbers may be not finite, as losses are at times.

    Raises:
        ValueError: it is none; names the field.
    """
    kinds: dict[str, Any] = dict.fromkeys(content, float) | {"step": int}
    if "rates" in content:
        check_kinds(content, {"step": int, "rates": dict})
        check_kinds(content["rates"], dict.fromkeys(content["rates"], float) | {"clips_per_second": float})
    elif "evaluation" in content:
        check_kinds(content, kinds | {"evaluation": str})
    else:
        check_kinds(content, kinds | {"loss": float})
    return content


def recorded_evaluations(workdir: Path, *, last: int) -> list[tuple[int, str]]:
    """(step, name) of each evaluation in a run's record up to step `last`."""
    return _evaluations(read_record(workdir, last=last))


def _evaluations(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    return [(line["step"], line["evaluation"]) for line in lines if "evaluation" in line]
