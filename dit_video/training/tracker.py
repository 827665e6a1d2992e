"""The record of a run: a JSONL file that is the source of truth, TensorBoard, pictures, and the console."""

import collections
import io
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute] (protobuf makes it)

from dit_video import processes
from dit_video.data.video import write_mp4
from dit_video.training import events, goodput
from dit_video.training.events import Event, EventLog
from dit_video.training.goodput import Activity, Ledger
from dit_video.training.watchdog import Pulse

RECORD = "metrics.jsonl"


@runtime_checkable
class Recorder(Protocol):
    """What the loop tells of a run as it goes, and may ask of what went before.

    Attributes:
        events: what went wrong until now.
    """

    events: EventLog

    def now(self, activity: Activity) -> None:
        """From now on the time of the run goes into `activity`."""
        ...

    def steps(self, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None: ...

    def past(self, count: int) -> list[dict[str, float]]:
        """The metrics of the last `count` steps, fewer where there are not so many; all processes ask together."""
        ...

    def rewind(self, step: int) -> None:
        """Forgets all that was recorded of the steps after `step`: the run goes on from there."""
        ...

    def rates(self, step: int, loss: float, rates: Mapping[str, float]) -> None: ...

    def has_evaluation(self, step: int, name: str) -> bool: ...

    def evaluation(self, step: int, name: str, scalars: Mapping[str, float]) -> None: ...

    def media(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None: ...

    def card(self, step: int, name: str, card: Mapping[str, Any]) -> None: ...

    def note(self, message: str) -> None: ...


class Onlooker:
    """Records nothing: where several processes train together one of them writes, and the others have this."""

    def __init__(self, evaluations: Iterable[tuple[int, str]], known: Iterable[Event]):
        """All processes must agree on what is still to do and on what went wrong.

        Args:
            evaluations: those in the record, (step, name).
            known: the events of the run until now.
        """
        self._evaluations = set(evaluations)
        self.events = EventLog(known)
        self.pulse = Pulse()

    def now(self, activity: Activity) -> None:
        self.pulse.now(activity)

    def steps(self, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        pass

    def past(self, count: int) -> list[dict[str, float]]:
        return processes.from_first(list) if count else []

    def rewind(self, step: int) -> None:
        self.events.rewind(step)

    def rates(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        self.pulse.end_window()

    def has_evaluation(self, step: int, name: str) -> bool:
        return (step, name) in self._evaluations

    def evaluation(self, step: int, name: str, scalars: Mapping[str, float]) -> None:
        pass

    def media(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
        pass

    def card(self, step: int, name: str, card: Mapping[str, Any]) -> None:
        pass

    def note(self, message: str) -> None:
        pass


class Tracker:
    """Writes what happens in a run to its folder and shows it.

    `goodput` books where its time goes, `events` says what went wrong, `pulse` how long things usually take.

    `metrics.jsonl` has one line per step with that step's own values (never a mean over a window, so that a
    resumed run writes the same lines), and one per evaluation and per rate measurement, told apart by the keys
    "loss", "evaluation" and "rates". Starting at step s, or going back to it, forgets lines after s: they will be
    written again.
    """

    def __init__(self, workdir: Path, *, start: int, num_steps: int, console: Console, began: float | None = None):
        """`began` is the time of `time.perf_counter` when the session began; now, if left out."""
        self._workdir, self._console = workdir, console
        self.goodput = Ledger(workdir, start=start, began=time.perf_counter() if began is None else began)
        self.goodput.write(start)
        self.events = EventLog(events.read_events(workdir, last=start), workdir / events.FILE)
        self.pulse = Pulse()
        self._num_steps = num_steps
        self._open(start)
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
        """From now on the time of the run goes into `activity`."""
        self.goodput.now(activity)
        self.pulse.now(activity)

    def past(self, count: int) -> list[dict[str, float]]:
        """The metrics of the last `count` steps, fewer where there are not so many; all processes ask together."""
        return processes.from_first(lambda: self._past(count)) if count else []

    def rewind(self, step: int) -> None:
        """Forgets all that was recorded of the steps after `step`: the run goes on from there."""
        self.goodput.rewind(self._step, step)
        self.events.rewind(step)
        self._file.close()
        self._board.close()
        self._open(step)

    def steps(self, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Records the metrics of consecutive steps."""
        step, values = self._step, {}
        for step, values in lines:
            self._write({"step": step, **values})
        self._step = step
        self._scalars(step, "train", values)
        self._file.flush()

    def rates(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """Records speed at `step` and shows it."""
        self._write({"step": step, "rates": dict(rates)})
        self._scalars(step, "rates", rates)
        self.goodput.write(step)
        self.pulse.end_window()
        self._scalars(step, "seconds", {activity.value: s for activity, s in self.goodput.seconds().items()})
        self._file.flush()
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
        """Whether the record that this run goes on with holds what this evaluator measured at this step."""
        return (step, name) in self._evaluations

    def evaluation(self, step: int, name: str, scalars: Mapping[str, float]) -> None:
        """Records what an evaluator measured."""
        self._write({"step": step, "evaluation": name, **scalars})
        self._scalars(step, name, scalars)
        self._file.flush()
        shown = "  ".join(f"{key} {value:.4g}" for key, value in list(scalars.items())[:6])
        if shown:
            self._console.print(f"step {step}  [bold]{name}[/]  {shown}", highlight=False)

    def media(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
        """Saves a video under samples/ and shows it in TensorBoard (as GIF, which TensorBoard plays)."""
        path = self._workdir / "samples" / f"step_{step:07d}_{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_mp4(path, video, fps)
        gif = io.BytesIO()
        frames = [Image.fromarray(frame) for frame in video]
        frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
        image = Summary.Image(
            height=video.shape[1], width=video.shape[2], colorspace=3, encoded_image_string=gif.getvalue()
        )
        writer = self._board.file_writer
        assert writer is not None, "tensorboardX has a writer until it is closed"
        writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def card(self, step: int, name: str, card: Mapping[str, Any]) -> None:
        """Saves a number with its protocol under cards/."""
        path = self._workdir / "cards" / f"step_{step:07d}_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")

    def note(self, message: str) -> None:
        """Says something to the person at the console."""
        self._console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self.goodput.write(self._step)
        self._console.print(f"time of the run so far, {goodput.summary(self.goodput.seconds())}", highlight=False)
        if faults := events.summary(self.events):
            self.note(f"faults of the run so far, {faults}; see {self._workdir / events.FILE}")
        self._file.close()
        self._board.close()

    def _open(self, step: int) -> None:
        """Goes on with the record of the steps up to `step`."""
        self._step = step
        kept = list(read_record(self._workdir, last=step))
        self._evaluations = set(_evaluations(kept))
        # Written beside and moved into place: a kill must not find an empty record.
        path, temporary = self._workdir / RECORD, self._workdir / f"{RECORD}.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        # A file of its own: TensorBoard's are named by the second.
        purge, suffix = step + 1 if step else None, f".{self.goodput.session}"
        self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=purge, filename_suffix=suffix)

    def _past(self, count: int) -> list[dict[str, float]]:
        lines = (line for line in read_record(self._workdir, last=self._step) if "loss" in line)
        last = collections.deque(lines, maxlen=count)
        return [{name: value for name, value in line.items() if name != "step"} for line in last]

    def _scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{prefix}/{name}", value, step)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def _eta(self, step: int) -> str:
        begin, first = self._clock
        done = max(1, step - first)
        seconds = (time.perf_counter() - begin) / done * (self._num_steps - step)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"


def recorded_scores(workdir: Path, evaluator: str, scalar: str) -> dict[int, float]:
    """By step, one of the numbers that an evaluator measured."""
    lines = (line for line in read_record(workdir) if line.get("evaluation") == evaluator)
    return {line["step"]: line[scalar] for line in lines if scalar in line}


def read_record(workdir: Path, *, last: int | None = None) -> Iterable[dict[str, Any]]:
    """Lines of a run's record up to step `last`; a half-written last line, as a kill leaves it, is left out."""
    path = workdir / RECORD
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            return
        if last is None or line["step"] <= last:
            yield line


def recorded_evaluations(workdir: Path, *, last: int) -> list[tuple[int, str]]:
    """(step, name) of each evaluation in a run's record up to step `last`."""
    return _evaluations(read_record(workdir, last=last))


def _evaluations(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    return [(line["step"], line["evaluation"]) for line in lines if "evaluation" in line]
