import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from line_training import NUM_STEPS, Killed, Run, line_program, train_lines, without_rates
from toys import line_batch

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.data.batch import Batch
from dit_video.tasks.evaluator import EvaluationData, Evaluator, Report
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.training.fault_policy import NotFinite
from dit_video.training.goodput import Activity, read_goodput
from dit_video.training.intervals import Schedule
from dit_video.training.preemption import StopSignal
from dit_video.training.profiler import Profile
from dit_video.training.step import Program
from dit_video.training.throughput import Work
from dit_video.training.tracker import METRICS_FILE, read_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(Evaluator):
    """The norm of the weights in hand, and the first pixel of a sample; `then` is called when all is measured."""

    then: Callable[[], None] = lambda: None

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        kernel = np.asarray(subject.params["line.kernel"])
        self.then()
        return Report(
            scalars={"norm": float(np.linalg.norm(kernel)), "is_ema": float(subject.ema)},
            media={"clip": Video(np.zeros((2, 16, 16, 3), np.uint8), 8.0)},
            cards={"norm": {"step": subject.step}},
        )


@pytest.fixture(scope="module")
def program() -> Program:
    return line_program()


@pytest.fixture
def train(program, tmp_path):
    """Trains in a folder, from its last checkpoint on where it has one, as run.train does."""
    return lambda name="run", **options: train_lines(program, tmp_path / name, **options)


def evaluations(record: list[dict], name: str) -> dict[int, dict]:
    return {line["step"]: line for line in record if line.get("evaluation") == name}


@pytest.fixture
def straight(train) -> Run:
    """What an uninterrupted run comes to."""
    return train("straight", evaluators={"norm": Norm(every=2)})


def test_a_run_records_every_step_and_saves_the_last(train):
    run = train(save_every=4)
    losses = [line for line in run.record if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5, 6]
    assert len({line["loss"] for line in losses}) == 6
    assert run.step == 6
    assert run.saved == [4, 6]
    # Where metrics were fetched; what is compiled is compiled before the first step.
    rates = {line["step"]: line["rates"] for line in run.record if "rates" in line}
    assert list(rates) == [3, 4, 6]
    assert {of_step["learning_rate"] for of_step in rates.values()} == {0.01}
    assert {of_step["compiled_later"] for of_step in rates.values()} == {0.0}


def test_batches_of_several_shapes_are_compiled_before_the_first_step_and_resume(train):
    """Each step says which shape it had; after two, the run is stopped and goes on."""
    wide = line_batch(0, size=4)
    wide = wide._replace(moments=np.repeat(wide.moments, 2, axis=1))
    stop, shapes = StopSignal(), (line_batch(0), wide)

    def before(index: int, stop_at: int | None = None) -> Batch | None:
        stop.requested = index == stop_at
        return wide if index in (1, 3, 4) else None

    straight = train("straight", before=before, shapes=shapes)
    train("stopped", before=lambda index: before(index, 1), stop=stop, shapes=shapes)
    stop.requested = False
    resumed = train("stopped", before=before, shapes=shapes)
    assert [line["shape"] for line in resumed.record if "loss" in line] == [0, 1, 0, 1, 1, 0]
    assert {line["rates"]["compiled_later"] for line in straight.record if "rates" in line} == {0.0}
    assert without_rates(resumed.record) == without_rates(straight.record)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, straight.state)
    tall = wide._replace(moments=np.repeat(wide.moments, 2, axis=1))
    unknown = train("unknown", before=lambda index: tall if index > 1 else None)
    assert max(line["rates"]["compiled_later"] for line in unknown.record if "rates" in line) == 1.0


def test_evaluators_are_called_at_their_steps_and_at_the_last_with_averaged_weights(train):
    run = train(evaluators={"often": Norm(every=2), "once": Norm(every=1000), "odd": Norm(every=5)})
    assert {name: list(evaluations(run.record, name)) for name in ("often", "once", "odd")} == {
        "often": [2, 4, 6],
        "once": [6],
        "odd": [5, 6],
    }
    last = evaluations(run.record, "once")[6]
    assert last["norm"] == pytest.approx(float(np.linalg.norm(run.state.ema["line.kernel"])), rel=1e-6)
    assert last["norm"] != pytest.approx(float(np.linalg.norm(run.state.params["line.kernel"])), rel=1e-6)
    assert last["is_ema"] == 1.0


def test_what_evaluators_make_is_in_the_folder(train, tmp_path):
    train(evaluators={"norm": Norm(every=3)})
    assert sorted(p.name for p in (tmp_path / "run").glob("*/step_*")) == [
        "step_0000003_clip.mp4",
        "step_0000003_norm.json",
        "step_0000006_clip.mp4",
        "step_0000006_norm.json",
    ]


@pytest.mark.parametrize("stop_at", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4))])
def test_a_run_that_was_stopped_goes_on_to_the_same_record(train, straight, stop_at):
    """Value for value; at a step where evaluators were due as well."""
    stop, evaluators = StopSignal(), {"norm": Norm(every=2)}

    def before(index: int) -> None:
        stop.requested = index == stop_at - 1

    first = train(evaluators=evaluators, stop=stop, before=before)
    assert first.step == stop_at
    assert first.saved[-1] == stop_at
    assert evaluations(first.record, "norm").keys() == {s for s in (2, 4, 6) if s < stop_at}
    second = train(evaluators=evaluators)
    assert second.step == NUM_STEPS
    assert without_rates(second.record) == without_rates(straight.record)
    jax.tree.map(np.testing.assert_array_equal, second.state, straight.state)


@pytest.mark.parametrize("save_every", [2, 1000])
def test_a_run_that_was_killed_goes_on_to_the_same_record(train, straight, tmp_path, save_every):
    """Its record is ahead of its last checkpoint, if it has one, and its last line is half written."""

    def kill(index: int) -> None:
        if index == 5:
            raise Killed

    evaluators = {"norm": Norm(every=2)}
    with pytest.raises(Killed):
        train(evaluators=evaluators, before=kill, save_every=save_every)
    with open(tmp_path / "run" / METRICS_FILE, "a") as record:
        record.write('{"step": 5, "lo')
    second = train(evaluators=evaluators)
    assert without_rates(second.record) == without_rates(straight.record)
    jax.tree.map(np.testing.assert_array_equal, second.state, straight.state)


def test_a_signal_during_an_evaluation_loses_nothing(train, straight):
    stop = StopSignal()

    def ask() -> None:
        stop.requested = True

    first = train(evaluators={"norm": Norm(every=3, then=ask)}, stop=stop, save_every=1000)
    # The step after the evaluation is the last, and everything up to it is there.
    assert first.step == 4
    assert first.saved == [4]
    assert [line["step"] for line in first.record if "loss" in line] == [1, 2, 3, 4]
    losses = [line for line in straight.record if "loss" in line]
    assert [line for line in first.record if "loss" in line] == losses[:4]


def test_a_finished_run_that_is_started_again_does_nothing(train, straight):
    again = train("straight", evaluators={"norm": Norm(every=2)})
    assert again.step == NUM_STEPS
    assert without_rates(again.record) == without_rates(straight.record)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(train, tmp_path):
    def poison(index: int) -> Batch | None:
        return line_batch(index)._replace(moments=np.full((8, 1, 1, 1, 16), np.inf, np.float32)) if index == 4 else None

    with pytest.raises(NotFinite, match=r"not finite at step 5, batch 4: lower config.optimizer.learning_rate"):
        train(before=poison)
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.steps == [2, 4]
    checkpoints.close()
    losses = {line["step"]: line["loss"] for line in read_record(tmp_path / "run") if "loss" in line}
    assert list(losses) == [1, 2, 3, 4, 5]
    assert not np.isfinite(losses[5])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_ask_to_stop_while_one_listens(number):
    before, stop = signal.getsignal(number), StopSignal()
    with stop.listen():
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_rates_are_work_over_time():
    five = Work(clips=8, tokens=100, flops=10**9, peak=4e9) + Work(clips=32, tokens=400, flops=4 * 10**9, peak=4e9)
    assert five.rates(2.0, 0.5) == {
        "clips_per_second": 20.0,
        "flops_per_second": 2.5e9,
        "data_wait_share": 0.25,
        "tokens_per_second": 250.0,
        "mfu": 0.625,
    }
    assert Work(clips=8, tokens=None, flops=1, peak=None).rates(1.0, 0.0).keys() == {
        "clips_per_second",
        "flops_per_second",
        "data_wait_share",
    }


def test_a_profile_leaves_a_trace_and_changes_nothing(train, straight, tmp_path):
    folder = tmp_path / "profile"
    run = train(evaluators={"norm": Norm(every=2)}, profile=Profile(folder=str(folder), first=2, num_steps=1))
    assert without_rates(run.record) == without_rates(straight.record)
    assert [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size]


TRACED = """
import sys
from pathlib import Path
from line_training import line_program, train_lines
from dit_video.training.profiler import Profile
folder = Path(sys.argv[1])
(folder / "file").touch()
print(train_lines(line_program(), folder / "run", profile=Profile(folder=str(folder / "file" / "trace"))).step)
"""


@pytest.mark.slow
def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path):
    """In a process of its own: JAX's profiler starts no second time after that."""
    places = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])}
    command = (sys.executable, "-c", TRACED, str(tmp_path))
    ended = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
    assert ended.stdout.split() == [str(NUM_STEPS)], ended.stderr


@pytest.mark.parametrize("field", ["num_steps", "log_every", "save_every"])
def test_schedules_count_from_one(field):
    with pytest.raises(ValueError, match=rf"Schedule\.{field}=0: must be at least 1"):
        Schedule(**{"num_steps": 1, field: 0})


def test_a_profile_of_no_steps_is_refused():
    with pytest.raises(ValueError, match=r"Profile\.num_steps=0: must be at least 1"):
        Profile(folder="profile", num_steps=0)


def test_the_time_of_a_run_is_booked_over_its_sessions(train, tmp_path):
    """Stopped after step 3, which is saved: nothing is lost. Killed after it, to go on from step 2: step 3 is."""
    stop = StopSignal()

    def ask(index: int) -> None:
        stop.requested = stop.requested or index == 2

    train("stopped", stop=stop, before=ask)
    train("stopped")
    booked = read_goodput(tmp_path / "stopped")
    assert booked[Activity.LOST] == 0
    assert all(booked[a] > 0 for a in (Activity.INITIALISE, Activity.STEP, Activity.DATA, Activity.CHECKPOINT))

    def fail(index: int) -> None:
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("killed", before=fail)
    train("killed")
    assert read_goodput(tmp_path / "killed")[Activity.LOST] > 0
