"""Training of lines in a folder, a matter of moments: what the tests of the loop and of faults have in common."""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from toys import FitLines, judged_by, line_batch, small_mesh

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.data.batch import Batch
from dit_video.data.loader import Replaced
from dit_video.storage.retrying_files import RetryingFiles
from dit_video.tasks.evaluator import Evaluator
from dit_video.tasks.subject import Subject
from dit_video.training import loop
from dit_video.training.evaluation import Evaluation
from dit_video.training.events import Event, read_events
from dit_video.training.fault_policy import Faults
from dit_video.training.intervals import Schedule
from dit_video.training.learner import Learner
from dit_video.training.observers import Observers
from dit_video.training.optimizer import EMA, AdamW
from dit_video.training.preemption import StopSignal
from dit_video.training.profiler import Profile
from dit_video.training.step import Program, TrainState, make_program
from dit_video.training.throughput import Work
from dit_video.training.tracker import Tracker, read_record

MESH = small_mesh()
NUM_STEPS = 6


class Killed(Exception):
    """Nothing after it is done in an orderly way."""


class LineBatches:
    """Batch n is a function of n. `before` is called with the number of each batch that is asked for."""

    def __init__(self, start: int, before: Callable[[int], Batch | None], replaced: Mapping[int, str]):
        self.next_batch, self.wait_seconds, self._before = start, 0.0, before
        self._all_replaced, self._replaced = replaced, []

    def __next__(self) -> Batch:
        index = self.next_batch
        self.next_batch += 1
        if index in self._all_replaced:
            self._replaced.append(Replaced(index, 0, self._all_replaced[index]))
        return self._before(index) or line_batch(index)

    def seek(self, next_batch: int) -> None:
        self.next_batch, self._replaced = next_batch, []

    def take_replaced(self) -> list[Replaced]:
        replaced, self._replaced = self._replaced, []
        return replaced


@dataclasses.dataclass
class Run:
    """How a call of the loop ended."""

    step: int
    state: TrainState
    saved: list[int]
    record: list[dict]
    events: list[Event]


def line_program(num_steps: int = NUM_STEPS, *, skip_not_finite: bool = False) -> Program:
    return make_program(
        FitLines(noise=0.5),
        AdamW(learning_rate=0.01),
        EMA(decay=0.5),
        num_steps=num_steps,
        num_microbatches=1,
        mesh=MESH,
        skip_not_finite=skip_not_finite,
    )


def train_lines(
    program: Program,
    workdir: Path,
    *,
    num_steps: int = NUM_STEPS,
    evaluators: Mapping[str, Evaluator] | None = None,
    stop: StopSignal | None = None,
    before: Callable[[int], Batch | None] = lambda index: None,
    replaced: Mapping[int, str] | None = None,
    faults: Faults | None = None,
    log_every: int = 3,
    save_every: int = 2,
    profile: Profile | None = None,
    shapes: Sequence[Batch] = (line_batch(0),),
) -> Run:
    """Trains in a folder, from its last checkpoint on where it has one, as run.train does.

    `replaced` names records that their batches replaced, by the number of the batch; `shapes` are those of batches.
    """
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir, experiment={})
    state, next_batch = program.init(0), 0
    if checkpoints.latest is not None:
        saved = checkpoints.restore(program.shapes)
        state, next_batch = saved.state, saved.next_batch
    console = Console(file=io.StringIO())
    tracker = Tracker(workdir, RetryingFiles(print), start=int(state.step), num_steps=num_steps, console=console)
    try:
        batches = LineBatches(next_batch, before, replaced or {})
        subject = Subject(FitLines(), program.definition, None, MESH, {})
        evaluation = Evaluation(evaluators=evaluators or {}, subject=subject, data=judged_by(line_batch(0)), seed=0)
        works = [Work(clips=batch.moments.shape[0], tokens=None, flops=100, peak=None) for batch in shapes]
        state, step = loop.train(
            Learner(program=program, batches=batches, frozen=None, seed=0, shapes=list(zip(shapes, works))),
            state,
            schedule=Schedule(num_steps=num_steps, log_every=log_every, save_every=save_every),
            faults=faults or Faults(),
            observers=Observers(recorder=tracker, evaluation=evaluation, profile=profile),
            saver=checkpoints,
            stop=stop or StopSignal(),
        )
        checkpoints.wait()
        return Run(step, state, checkpoints.steps, list(read_record(workdir)), read_events(workdir))
    finally:
        checkpoints.close()
        tracker.close()


def without_rates(record: list[dict]) -> list[dict]:
    return [line for line in record if "rates" not in line]
