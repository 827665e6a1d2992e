"""The watchdog warns once of an activity that takes far longer than usual, dumps all stacks, and else is silent."""

import threading
import time
from pathlib import Path

import pytest

from dit_video.training.goodput import Activity
from dit_video.training.watchdog import HangTimeouts, Heartbeat, Watchdog

DATA, STEP, EVALUATE = Activity.DATA, Activity.STEP, Activity.EVALUATE


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heartbeat(clock) -> Heartbeat:
    return Heartbeat(clock)


@pytest.fixture
def printed(heartbeat, tmp_path, capsys):
    """What the watchdog says when it looks now."""
    watchdog = Watchdog(heartbeat, tmp_path, waits_for={DATA: lambda: "batch 7: record 3"})

    def look() -> str:
        watchdog.look()
        return capsys.readouterr().err

    return look


def train(heartbeat: Heartbeat, clock: Clock, printed, stretches: int) -> None:
    """Stretches of ten steps of two seconds, which are waited for at their end."""
    for _ in range(stretches):
        for _ in range(10):
            heartbeat.now(DATA)
            clock.time += 0.1
            heartbeat.now(STEP)
            assert printed() == ""
        clock.time += 20
        assert printed() == ""
        heartbeat.end_window()


def test_a_usual_run_is_not_reported(heartbeat, clock, printed, tmp_path):
    train(heartbeat, clock, printed, 10)
    heartbeat.now(EVALUATE)
    clock.time += 900  # for the first time, with all its compilation
    assert printed() == ""
    train(heartbeat, clock, printed, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_hangs_is_reported_once(heartbeat, clock, printed, tmp_path):
    train(heartbeat, clock, printed, 5)
    heartbeat.now(STEP)
    clock.time += 199
    assert printed() == ""
    clock.time += 2
    text = printed()
    assert "warning: at step since 201 s, which usually takes at most 20.0 s" in text
    [file] = tmp_path.glob("stacks_*.txt")
    assert str(file) in text
    assert "test_a_step_that_hangs_is_reported_once" in file.read_text()
    clock.time += 1000
    assert printed() == ""
    # It went on, and hangs again: another incident.
    heartbeat.now(STEP)
    clock.time += 1000
    assert "at step since 1000 s" in printed()


def test_what_is_waited_for_is_named_from_the_first_minute_on(heartbeat, clock, printed):
    heartbeat.now(DATA)
    clock.time += 59
    assert printed() == ""
    clock.time += 2
    assert printed().endswith("waiting for batch 7: record 3\n")


def test_a_folder_that_is_gone_is_no_harm(heartbeat, clock, printed, tmp_path):
    tmp_path.rmdir()
    heartbeat.now(DATA)
    clock.time += 61
    assert "it cannot be written" in printed()


def test_a_thread_looks_while_one_watches(tmp_path, capfd):
    """The stacks show the thread that hangs, wherever it is."""
    heartbeat, timeouts = Heartbeat(), HangTimeouts(least=0.2)
    release, threads = threading.Event(), threading.active_count()

    def stuck_in_a_store() -> None:
        release.wait(30)

    worker = threading.Thread(target=stuck_in_a_store)
    worker.start()
    with Watchdog(heartbeat, tmp_path, waits_for={DATA: lambda: "the store"}, timeouts=timeouts).watch():
        heartbeat.now(DATA)
        deadline = time.monotonic() + 20
        while not has_stacks(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
    release.set()
    worker.join()
    assert has_stacks(tmp_path)
    assert "waiting for the store" in capfd.readouterr().err
    assert threading.active_count() == threads


def has_stacks(folder: Path) -> bool:
    return any("stuck_in_a_store" in file.read_text() for file in folder.glob("stacks_*.txt"))
