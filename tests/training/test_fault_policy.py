"""Laws of training faults: detection, reaction, and that neither changes when the run is killed."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from line_training import Killed, Run, line_program, train_lines, without_rates
from toys import line_batch

from dit_video.checkpoint.folder import LocalSteps
from dit_video.data.batch import Batch
from dit_video.storage.json_lines import LinesFile
from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training.events import FILE, Done, Event, EventLog, Kind, read_events, summary
from dit_video.training.fault_policy import (
    FaultDetector,
    Faults,
    Note,
    NotFinite,
    RollBack,
    Skip,
    Spike,
    TrainingFault,
    ruined,
)
from dit_video.training.goodput import Activity, read_goodput
from dit_video.training.optimizer import num_updates
from dit_video.training.step import Program

NUM_STEPS = 10
WHAT = ("loss", "gradient norm")


@pytest.fixture(scope="module")
def program():
    return line_program(NUM_STEPS)


@pytest.fixture(scope="module")
def skipping():
    return line_program(NUM_STEPS, skip_not_finite=True)


def poisoned(*batches: int, by: float = np.inf):
    """Makes these batches all infinite, or other ones `by` which their values are multiplied."""

    def before(index: int) -> Batch | None:
        batch = line_batch(index)
        return batch._replace(moments=batch.moments * np.float32(by)) if index in batches else None

    return before


def killed_at(index: int, before):
    """The run is killed when it asks for this batch for the first time."""
    killed = []

    def ask(batch: int) -> Batch | None:
        if batch == index and not killed:
            killed.append(batch)
            raise Killed
        return before(batch)

    return ask


def assert_same_run(one: Run, other: Run) -> None:
    assert json.dumps(without_rates(one.record)) == json.dumps(without_rates(other.record))
    assert one.events == other.events
    jax.tree.map(np.testing.assert_array_equal, one.state, other.state)


# --- not finite ---


def test_a_finite_loss_with_a_gradient_that_is_not_stops_the_run_and_is_not_saved(program, tmp_path):
    """Squares of errors near the largest number are finite in the loss and not in the norm of the gradient."""
    with pytest.raises(NotFinite, match=r"the gradient norm is not finite at step 4, batch 3: .* be Skip\(\) or Roll"):
        train_lines(program, tmp_path / "run", before=poisoned(3, by=1e18), num_steps=NUM_STEPS)
    saved = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert saved == [2]
    event = Event(step=4, batch=3, kind=Kind.NOT_FINITE, done=Done.STOPPED, what=("gradient norm",))
    assert read_events(tmp_path / "run") == [event]


def test_a_skipped_update_changes_nothing_but_the_step(skipping):
    state = skipping.init(0)
    state, metrics = skipping.step(state, None, line_batch(0), 0)
    assert metrics["skipped"] == 0
    before = jax.device_get(jax.tree.map(jnp.copy, state))
    state, metrics = skipping.step(state, None, poisoned(1)(1), 0)
    assert metrics["skipped"] == 1
    after = jax.device_get(state)
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step), before)


def test_skipping_changes_no_update_that_is_finite(program, skipping):
    """But for roundings: these are two programs, and XLA fuses each in its own way."""
    states = [each.init(0) for each in (program, skipping)]
    for index in range(2):
        states = [each.step(s, None, line_batch(index), 0)[0] for each, s in zip((program, skipping), states)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *states)


def test_so_many_updates_are_skipped_in_a_row_and_no_more(skipping, tmp_path):
    options = {"faults": Faults(not_finite=Skip(limit=2)), "num_steps": NUM_STEPS}
    run = train_lines(skipping, tmp_path / "run", before=poisoned(2, 3, 6), **options)
    assert run.step == NUM_STEPS
    assert [(e.step, e.batch, e.done) for e in run.events] == [(s, s - 1, Done.SKIPPED) for s in (3, 4, 7)]
    assert [line["skipped"] for line in run.record if "loss" in line] == [0, 0, 1, 1, 0, 0, 1, 0, 0, 0]
    # Going on in the middle of the row counts those before.
    before = poisoned(2, 3, 4)
    with pytest.raises(Killed):
        train_lines(skipping, tmp_path / "killed", before=killed_at(4, before), **options)
    with pytest.raises(NotFinite, match=r"step 5, batch 4, after as many updates skipped in a row as .*limit=2 allows"):
        train_lines(skipping, tmp_path / "killed", before=before, **options)


def test_a_roll_back_goes_on_with_the_batch_after_the_bad_one(program, tmp_path):
    """Bad at step 6: back to step 4, and what was to be done with batch 4 is done with batch 6."""
    faults = Faults(not_finite=RollBack())
    run = train_lines(program, tmp_path / "run", before=poisoned(5), faults=faults, num_steps=NUM_STEPS)
    assert run.events == [
        Event(step=6, batch=5, kind=Kind.NOT_FINITE, done=Done.ROLLED_BACK, what=WHAT, to=4, next_batch=6)
    ]
    assert [line["step"] for line in run.record if "loss" in line] == list(range(1, NUM_STEPS + 1))
    by_hand = program.init(0)
    for index in (0, 1, 2, 3, 6, 7, 8, 9, 10, 11):
        by_hand, _ = program.step(by_hand, None, line_batch(index), 0)
    jax.tree.map(np.testing.assert_array_equal, run.state, by_hand)
    assert read_goodput(tmp_path / "run")[Activity.LOST] > 0


@pytest.mark.parametrize("kill", [6, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 7, 9))])
def test_a_kill_around_a_roll_back_changes_nothing(program, tmp_path, kill):
    """Before the bad batch, just after the roll-back, and before and after the next save; nor does when it is found."""
    options = {"faults": Faults(not_finite=RollBack()), "num_steps": NUM_STEPS, "save_every": 3}
    before = poisoned(4)
    straight = train_lines(program, tmp_path / "straight", before=before, log_every=5, **options)
    with pytest.raises(Killed):
        train_lines(program, tmp_path / "killed", before=killed_at(kill, before), log_every=1, **options)
    assert_same_run(train_lines(program, tmp_path / "killed", before=before, log_every=2, **options), straight)


def test_before_the_first_save_a_run_rolls_back_to_its_start(program, tmp_path):
    faults = Faults(not_finite=RollBack())
    run = train_lines(program, tmp_path / "run", before=poisoned(0), faults=faults, num_steps=NUM_STEPS)
    assert [(event.to, event.next_batch) for event in run.events] == [(0, 1)]
    assert run.step == NUM_STEPS


def test_so_many_roll_backs_to_one_step_and_no_more(program, tmp_path):
    options = {"faults": Faults(not_finite=RollBack(limit=2)), "num_steps": NUM_STEPS}
    assert train_lines(program, tmp_path / "two", before=poisoned(2, 4), **options).step == NUM_STEPS
    with pytest.raises(NotFinite, match=r"step 1, batch 3, after as many roll-backs to one step as .*limit=2 allows"):
        train_lines(program, tmp_path / "three", before=poisoned(0, 2, 3), save_every=5, **options)
    assert [(e.done, e.to) for e in read_events(tmp_path / "three")] == [
        (Done.ROLLED_BACK, 0),
        (Done.ROLLED_BACK, 0),
        (Done.STOPPED, None),
    ]


def test_a_run_that_fails_again_and_comes_no_further_goes_one_checkpoint_back(program, tmp_path):
    """Bad at step 5: back to step 4, which is then as bad; back to step 2, whose batches are then others."""
    faults = Faults(not_finite=RollBack())
    run = train_lines(program, tmp_path / "run", before=poisoned(4, 5), faults=faults, num_steps=NUM_STEPS)
    assert [(event.step, event.batch, event.to) for event in run.events] == [(5, 5, 2)]
    assert [line["step"] for line in run.record if "loss" in line] == list(range(1, NUM_STEPS + 1))
    by_hand = program.init(0)
    for index in (0, 1, 6, 7, 8, 9, 10, 11, 12, 13):
        by_hand, _ = program.step(by_hand, None, line_batch(index), 0)
    jax.tree.map(np.testing.assert_array_equal, run.state, by_hand)
    aside = LocalSteps(tmp_path / "run").aside()
    assert [(Path(one.folder).name, one.why) for one in aside] == [("4", "the run has failed again from here on")]


def test_a_run_that_fails_everywhere_ends(program, tmp_path):
    """It goes back from one checkpoint to the other, to the first, and there as often as is allowed."""
    faults = Faults(not_finite=RollBack(limit=2))
    with pytest.raises(NotFinite, match="after as many roll-backs to one step"):
        train_lines(program, tmp_path / "run", before=poisoned(*range(5, 40)), faults=faults, num_steps=NUM_STEPS)
    assert {event.to for event in read_events(tmp_path / "run")} == {0, None}


# --- weights ---


def ruining(program: Program, step: int, by: float) -> Program:
    """The program whose update of this step multiplies the weights, once; loss and gradient are good."""
    done = []

    def ruined_step(state, frozen, batch, seed):
        state, metrics = program.step(state, frozen, batch, seed)
        if int(state.step) == step and not done:
            done.append(step)
            state = state._replace(params={name: x * by for name, x in state.params.items()})
        return state, metrics

    return dataclasses.replace(program, step=ruined_step)


@pytest.mark.parametrize("by", [np.nan, np.inf, 1e3, 1e-3])
def test_weights_that_the_last_update_has_ruined_are_not_saved(program, tmp_path, by):
    with pytest.raises(TrainingFault, match=r"the norm of params is .* at step 4, batch 3: not saved"):
        train_lines(ruining(program, 4, by), tmp_path / "run", num_steps=NUM_STEPS)
    assert LocalSteps(tmp_path / "run").complete() == [2]
    (event,) = read_events(tmp_path / "run")
    assert (event.step, event.kind, event.done) == (4, Kind.WEIGHTS, Done.STOPPED)


def test_from_ruined_weights_the_run_goes_back_to_those_before(program, tmp_path):
    """Found at a save in the middle of an interval of logging, and the same after a kill just after."""
    options = {"faults": Faults(not_finite=RollBack()), "num_steps": NUM_STEPS, "log_every": 5}
    run = train_lines(ruining(program, 4, np.nan), tmp_path / "run", **options)
    assert [(e.step, e.kind, e.to, e.next_batch) for e in run.events] == [(4, Kind.WEIGHTS, 2, 4)]
    assert run.saved[-1] == NUM_STEPS
    with pytest.raises(Killed):
        train_lines(ruining(program, 4, np.nan), tmp_path / "killed", before=killed_at(4, poisoned()), **options)
    assert_same_run(train_lines(program, tmp_path / "killed", **options), run)


def test_weights_may_grow_as_they_learn_and_from_nothing():
    past = {"params": 2.0, "ema": 0.0, "opt_state": 0.0}
    assert ruined({"params": 50.0, "ema": 7.0, "opt_state": 1e6}, past) == []
    assert ruined({"params": 2.0, "ema": 1.0, "opt_state": np.inf}, past) == ["the norm of opt_state is inf"]
    assert len(ruined({"params": 201.0, "ema": np.nan, "opt_state": 0.0}, past)) == 2


# --- spikes ---


def spikes_in(losses, spike: Spike) -> list[int]:
    judge = FaultDetector(Faults(spike=spike), batch_size=8, past=[], events=[])
    values = [{"loss": float(loss), "grad_norm": 1.0} for loss in losses]
    return [number for number, value in enumerate(values) if judge.find(number, number, value, [])]


def test_a_spike_is_found_and_there_is_none_in_noise():
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=2000)
    spike = Spike(window=50, num_deviations=8.0)
    assert spikes_in(noise, spike) == []
    planted = noise.copy()
    planted[[700, 701, 1200]] = 4.0
    assert spikes_in(planted, spike) == [700, 701, 1200]
    # A slow descent is none either, nor is what stands still.
    assert spikes_in(np.linspace(10, 1, 500), spike) == []
    assert spikes_in([1.0] * 100 + [2.0], spike) == []


@pytest.mark.parametrize("action", [Note(), RollBack()])
def test_a_spike_is_noted_or_rolled_back_the_same_after_a_kill(program, tmp_path, action):
    spike = Spike(window=4, num_deviations=20.0, action=action)
    options = {"faults": Faults(spike=spike), "num_steps": NUM_STEPS, "save_every": 2}
    before = poisoned(6, by=30.0)
    straight = train_lines(program, tmp_path / "straight", before=before, **options)
    [event] = straight.events
    assert (event.step, event.batch, event.kind) == (7, 6, Kind.SPIKE)
    assert event.done is (Done.NOTED if action == Note() else Done.ROLLED_BACK)
    with pytest.raises(Killed):
        train_lines(program, tmp_path / "killed", before=killed_at(5, before), **options)
    assert_same_run(train_lines(program, tmp_path / "killed", before=before, **options), straight)


# --- records that do not decode ---


def test_replaced_records_are_counted_over_kills_and_over_the_share_the_run_stops(program, tmp_path):
    replaced = {index: f"record {index} is damaged" for index in range(14)}
    options = {"faults": Faults(undecodable_share=0.01), "num_steps": 14, "replaced": replaced, "log_every": 1}
    with pytest.raises(Killed):
        train_lines(program, tmp_path / "run", before=killed_at(7, poisoned()), **options)
    with pytest.raises(TrainingFault, match=r"(?s)step 11, batch 10: 11 records .*share=0.01.*record 10 is damaged"):
        train_lines(program, tmp_path / "run", **options)
    events = read_events(tmp_path / "run")
    assert [(e.batch, e.done) for e in events] == [(b, Done.REPLACED) for b in range(10)] + [(10, Done.STOPPED)]
    assert summary(events) == "undecodable: 10 x replaced, undecodable: 1 x stopped"


# --- the file ---


def test_events_are_forgotten_with_the_steps_they_belong_to(tmp_path):
    plain = [Event(step=s, batch=s, kind=Kind.SPIKE, done=Done.NOTED, what=("high",)) for s in (2, 5, 8)]
    back = Event(step=7, batch=7, kind=Kind.SPIKE, done=Done.ROLLED_BACK, what=("high",), to=4, next_batch=8)
    log = EventLog([], LinesFile(RetryingFiles(print).file(tmp_path / FILE), Event.from_json))
    for event in (*plain[:2], back, plain[2]):
        log.add(event)
    assert log.next_batch(4) == 8
    log.rewind(4)
    assert list(log) == read_events(tmp_path) == [plain[0], back]
    with open(tmp_path / FILE, "a") as file:
        file.write('{"step": 9, "ba')
    assert read_events(tmp_path) == [plain[0], back]
    assert read_events(tmp_path, last=3) == [plain[0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Skip(limit=0), r"Skip\.limit=0: must be at least 1"),
        (lambda: RollBack(limit=0), r"RollBack\.limit=0: must be at least 1"),
        (lambda: Spike(window=2), r"Spike\.window=2: must be at least 3"),
        (lambda: Spike(num_deviations=0.0), r"Spike\.num_deviations=0\.0"),
        (lambda: Faults(undecodable_share=1.0), r"Faults\.undecodable_share=1\.0"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- the record ---


def test_a_skipped_update_does_not_advance_the_learning_rate(skipping):
    state = skipping.init(0)
    assert skipping.learning_rate(state) == 0.01
    for number, batch in enumerate((line_batch(0), poisoned(1)(1), line_batch(2))):
        state, _ = skipping.step(state, None, batch, 0)
        assert num_updates(state.opt_state) == (1, 1, 2)[number]
