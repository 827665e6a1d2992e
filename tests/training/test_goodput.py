import pytest

from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training.goodput import FILE, Activity, Ledger, read_goodput, summary


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def session(tmp_path):
    """A session that goes on from `start`, and does `script`: (activity, seconds) or a step to write down."""

    def play(start: int, *script) -> Ledger:
        clock = Clock()
        ledger = Ledger(RetryingFiles(print).file(tmp_path / FILE), start=start, began=clock.time, clock=clock)
        ledger.write(start)
        for item in script:
            if isinstance(item, int):
                ledger.write(item)
            else:
                activity, seconds = item
                ledger.now(activity)
                clock.time += seconds
        return ledger

    return play


STEP, DATA, SAVE = Activity.STEP, Activity.DATA, Activity.CHECKPOINT


def test_every_second_is_booked_once(session, tmp_path):
    ledger = session(0, (Activity.COMPILE, 5), (DATA, 1), (STEP, 10), 10, (SAVE, 2), (STEP, 3), 13)
    booked = ledger.seconds()
    assert sum(booked.values()) == 21
    assert booked[STEP] == 13
    assert booked[DATA] == 1
    assert read_goodput(tmp_path) == booked


def test_steps_that_are_done_again_are_lost_and_the_rest_is_kept(session):
    """Killed after step 20, going on from the checkpoint of step 10."""
    session(0, (STEP, 10), 10, (SAVE, 1), (STEP, 8), (DATA, 2), 20)
    booked = session(10, (STEP, 9), 20).seconds()
    assert booked[Activity.LOST] == 8 + 2
    assert booked[STEP] == 10 + 9
    assert booked[SAVE] == 1
    assert sum(booked.values()) == 10 + 1 + 8 + 2 + 9


def test_a_run_that_stopped_at_its_checkpoint_lost_nothing(session, tmp_path):
    session(0, (STEP, 10), 10)
    session(10, (STEP, 10), 20)
    session(20, (STEP, 5), 25)
    assert read_goodput(tmp_path)[Activity.LOST] == 0
    assert read_goodput(tmp_path)[STEP] == 25


def test_a_session_that_saved_nothing_is_lost_whole(session):
    session(0, (STEP, 10), 10)
    booked = session(0, (STEP, 4), 4).seconds()
    assert booked[Activity.LOST] == 10
    assert booked[STEP] == 4


def test_a_last_line_cut_short_by_a_kill_is_no_harm(session, tmp_path):
    session(0, (STEP, 10), 10, (STEP, 5), 15)
    file = tmp_path / FILE
    file.write_text(file.read_text()[:-20])
    assert read_goodput(tmp_path)[STEP] == 10
    session(10, (STEP, 1), 11)
    assert read_goodput(tmp_path)[STEP] == 11


def test_the_largest_share_is_named_first(session):
    text = summary(session(0, (SAVE, 1), (STEP, 3)).seconds())
    assert text == "4 s: step 75.0%, checkpoint 25.0%"


def test_steps_that_were_rolled_back_are_lost_at_once_and_after_a_kill(session, tmp_path):
    """At step 20 back to the checkpoint of step 10; killed at 15, to go on from 10 again."""
    ledger = session(0, (STEP, 10), 10, (SAVE, 1), (STEP, 8), (DATA, 2))
    ledger.rewind(20, 10)
    assert ledger.seconds()[Activity.LOST] == 8 + 2
    ledger.write(15)
    booked = session(10, (STEP, 9), 20).seconds()
    assert (booked[STEP], booked[SAVE], booked[Activity.LOST]) == (10 + 9, 1, 8 + 2)
    assert read_goodput(tmp_path) == booked
