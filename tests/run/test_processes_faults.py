"""Faults of training in two real processes: found, dealt with and written down as by one."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from test_processes_train import finish, start, steps
from trained_by_processes import get_config

from dit_video.data.batch import Batch

# Minutes of real processes.
pytestmark = pytest.mark.slow

FAULTS = """
import dataclasses
import trained_by_processes
from dit_video.training.fault_policy import Faults, RollBack

def get_config(arg=""):
    faults = Faults(not_finite=RollBack(limit=1), undecodable_share=0.5)
    return dataclasses.replace(trained_by_processes.get_config(), faults=faults)
"""


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "tokens.py").write_text(FAULTS)
    return tmp_path


def test_two_processes_replace_the_records_that_one_would_and_all_are_written_down(folder, monkeypatch):
    monkeypatch.setenv("UNREADABLE", "7")
    finish(start(folder, "run", num_processes=2), 0, 0)
    config = get_config()
    with contextlib.closing(config.data.train(config.seed, 0, replace=True)) as batches:
        rows = [exact(next(batches)) for _ in range(config.schedule.num_steps)]
        replaced = batches.take_replaced()
    assert list(steps(folder / "run", "rows").values()) == rows
    assert [(event["batch"], event["what"]) for event in events(folder / "run")] == [
        (batch, ["record 7 is damaged"]) for batch, _, _ in replaced
    ]
    # Every epoch of 24 records, which is three batches, has the damaged one once.
    assert [batch // 3 for batch, _, _ in replaced] == [0, 1, 2, 3]


def exact(batch: Batch) -> int:
    """The metric `rows` of this batch."""
    sums = batch.require_video().astype(int).sum((1, 2, 3, 4)) % 1000
    return int((sums * (1 + np.arange(len(sums)))).sum())


def test_two_processes_roll_back_together_and_stop_together(folder):
    """Steps of such a size end in what is not a number, whichever batches they are made with."""
    words = ("--config.optimizer.learning_rate=1e38", "--config.optimizer.warmup_steps=0")
    outputs = finish(start(folder, "run", *words, num_processes=2), 1, 1)
    found = events(folder / "run")
    assert [(event["done"], event.get("to")) for event in found] == [("rolled back", 0), ("stopped", None)]
    assert found[1]["batch"] > found[0]["batch"]
    assert all("roll-backs to one step as config.faults.not_finite.limit=1 allows" in text for text in outputs)
