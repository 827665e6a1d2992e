"""Laws of training by several processes: real ones, on CPU, that one experiment is trained by.

tests/training_processes.py says how they are compared.
"""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import small_mesh
from trained_by_processes import get_config
from training_processes import (
    ALONG_FSDP,
    EXPERIMENT,
    LOSS_TOLERANCE,
    MINUTE,
    assert_same_training,
    finish,
    lines,
    start,
    steps,
    until_step,
)

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.run.open_run import program_of

# Minutes of real processes.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs `one`, by one process with four devices, and `two`, by two with two each.

    Each has a mesh (4, 1): along data, where all devices hold the same parameters, and along fsdp, where none do.
    """
    folder = tmp_path_factory.mktemp("processes_train")
    (folder / "tokens.py").write_text(EXPERIMENT)
    one, two = start(folder, "one"), start(folder, "two", *ALONG_FSDP, num_processes=2)
    _, *said = finish(one + two, 0, 0, 0)
    (folder / "said.json").write_text(json.dumps(said))
    return folder


def test_two_processes_train_as_one_does_with_the_same_global_batch(folder):
    assert_same_training(folder / "two", folder / "one")
    assert list(steps(folder / "two")) == list(range(1, 13))
    evaluated = steps(folder / "two", "error")
    assert evaluated == pytest.approx(steps(folder / "one", "error"), rel=LOSS_TOLERANCE)
    assert list(evaluated) == [6, 12]


def test_one_process_writes_and_speaks(folder):
    one, two = folder / "one", folder / "two"
    names = [[(line["step"], "loss" in line, "evaluation" in line) for line in lines(run)] for run in (one, two)]
    assert names[0] == names[1]
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert len(list((two / "tensorboard").iterdir())) == 1
    assert {json.loads(line)["session"] for line in (two / "goodput.jsonl").read_text().split("\n") if line} == {1}
    said = json.loads((folder / "said.json").read_text())
    assert "done: step 12" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize(
    ("num_devices", "axes"),
    [(1, {}), (4, {"data": 2, "fsdp": 2}), (8, {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}), (8, {"fsdp": 8})],
)
@pytest.mark.parametrize("written_by", ["one", "two"])
def test_a_checkpoint_restores_bit_equal_wherever_it_is_read(folder, written_by, num_devices, axes):
    """It was written on a mesh (4, 1) by one process or two; tests below read some in two processes."""

    def read(num_devices: int, **axes: int):
        with Checkpoints(folder / written_by) as checkpoints:
            return checkpoints.restore(program_of(get_config(), small_mesh(num_devices, **axes)).shapes)

    here, as_written = read(num_devices, **axes), read(4, data=4)
    assert (here.step, here.next_batch) == (12, 12)
    jax.tree.map(np.testing.assert_array_equal, here.state, as_written.state)


def test_two_processes_go_on_from_one_and_one_from_two_that_were_stopped(folder):
    """SIGTERM to either of two ends both at one step, which is saved. Across processes lie context and tensor."""
    slow = {"SECONDS_PER_RECORD": "0.04"}
    axes = ("--config.mesh.data=1", "--config.mesh.fsdp=1", "--config.mesh.context=2", "--config.mesh.tensor=2")
    words = [*axes, "--config.schedule.save_every=1000"]
    started = start(folder, "stopped", *words, num_processes=2, **slow)
    until_step(folder / "stopped", 2)
    started[1].send_signal(signal.SIGTERM)
    said = finish(started, 3, 3)
    last = max(steps(folder / "stopped"))
    assert 2 <= last < 12, "it was over before it could be stopped"
    assert f"stopped at step {last} and saved" in said[0]
    with Checkpoints(folder / "stopped") as checkpoints:
        assert checkpoints.steps == [last]
    (said,) = finish(start(folder, "stopped", num_devices=1), 0)
    assert f"going on from step {last}, batch {last}" in said
    assert_same_training(folder / "stopped", folder / "one")
    assert list(steps(folder / "stopped")) == list(range(1, 13))


def damage(run: Path, copy: Path) -> None:
    """Copies a run and cuts off what the second process has written of the parameters of its last step."""
    shutil.copytree(run, copy)
    (cut,) = (copy / "checkpoints" / "12" / "params" / "ocdbt.process_1" / "d").iterdir()
    os.truncate(cut, cut.stat().st_size // 2)


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, list[str]]:
    """What was said in runs with something wrong; side by side, for some only wait until they miss a heartbeat."""
    killed = start(folder, "killed", num_processes=2, SECONDS_PER_RECORD="0.04")
    until_step(folder / "killed", 2)
    killed[1].kill()
    began = time.monotonic()
    unreadable = start(folder, "unreadable", num_processes=2, UNREADABLE="7")
    refused = start(folder, "two", "--config.optimizer.learning_rate=0.5", num_processes=2)
    damage(folder / "two", folder / "damaged")
    damaged = start(folder, "damaged", *ALONG_FSDP, num_processes=2)
    absent, lonely = start(folder, "lonely", "--join_timeout=2", num_processes=2)
    absent.kill()
    absent.communicate()
    said = {"lonely": finish([lonely], 1), "refused": finish(refused, 1, 1)}
    # Which of the two comes first is a matter of what the process waits for: an error, or the end by JAX.
    said["killed"] = finish(killed, {1, -signal.SIGABRT}, -signal.SIGKILL, timeout=MINUTE)
    assert time.monotonic() - began < MINUTE
    said["unreadable"] = finish(unreadable, {1, -signal.SIGABRT}, 1, timeout=MINUTE)
    said["damaged"] = finish(damaged, 0, 0)
    return said


def test_a_process_that_is_killed_ends_the_other_with_a_message(ended):
    assert re.search(r"stopped sending heartbeats|process 0 of 2: error: .*Did another one end\?", ended["killed"][0])


def test_a_process_that_fails_says_why_and_ends_the_other(ended):
    other, failed = ended["unreadable"]
    assert "process 1 of 2: error: record 7 is damaged" in failed
    assert re.search(r"stopped sending heartbeats|process 0 of 2: error: .*Did another one end\?", other)


def test_what_one_process_refuses_ends_all_with_its_message(ended, folder):
    for index, said in enumerate(ended["refused"]):
        assert f"process {index} of 2: error: two was started with another experiment" in said
        assert "optimizer.learning_rate: 0.01 -> 0.5" in said
    assert not (folder / "two" / "lock.json").exists()


def test_a_process_that_finds_nobody_gives_up(ended, folder):
    assert "process 1 of 2: error: not all processes met at 127.0.0.1:" in ended["lonely"][0]
    assert not (folder / "lonely").exists()


def test_a_step_that_one_process_cannot_read_is_left_by_all(ended, folder):
    said, other = ended["damaged"]
    assert "damaged checkpoint set aside" in said
    assert "checkpoints/12: " in said
    assert "going on from step 6, batch 6" in said
    assert other == ""
    assert (folder / "damaged" / "checkpoints_damaged" / "12").is_dir()
    assert_same_training(folder / "damaged", folder / "one")
    assert max(steps(folder / "damaged")) == 12


def test_two_processes_start_from_the_weights_of_another_run_as_one_does(folder):
    words = ("--init_from=one", "--config.schedule.num_steps=3")
    runs = {1: "from_one", 2: "from_one_by_two"}
    started = {number: start(folder, run, *words, num_processes=number) for number, run in runs.items()}
    for number, processes in started.items():
        assert "starting from the averaged weights of one" in finish(processes, *[0] * number)[0]
    assert_same_training(folder / runs[2], folder / runs[1])
    assert steps(folder / runs[1])[1] < steps(folder / "one")[1]


def test_where_one_process_cannot_save_all_go_on_and_save_later(folder):
    """The disk of the second has no room until a save has failed; the first learns of it before its own timeout."""
    started = start(folder, "full", *ALONG_FSDP, num_processes=2, FULL_UNTIL="full/saves.jsonl")
    said, _ = finish(started, 0, 0)
    failed, written = map(json.loads, (folder / "full" / "saves.jsonl").read_text().splitlines())
    assert (failed["step"], written["step"]) == (6, 12)
    assert "checkpoints/6: not written" in said
    assert "raise the limit of the size of files" in said
    assert "checkpoints/12: is written; nothing before it is at risk any more" in said
    with Checkpoints(folder / "full") as checkpoints:
        assert checkpoints.steps == [12]
    assert_same_training(folder / "full", folder / "one")
    assert list(steps(folder / "full")) == list(range(1, 13))
