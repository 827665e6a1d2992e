"""Storage failures while saving (full, read-only, gone): training goes on with a warning, no checkpoint is lost."""

import contextlib
import errno
import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from stores import Limited

from dit_video.checkpoint import checkpoints as checkpoint
from dit_video.checkpoint import folder as folder_module
from dit_video.checkpoint import writer
from dit_video.checkpoint.checkpoints import Checkpoints, NotSaved
from dit_video.checkpoint.folder import FOLDER
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.orbax import quiet
from dit_video.checkpoint.retention import Best, Keep, Retention
from dit_video.storage import failures
from dit_video.training.step import TrainState

NUMBERS = np.random.default_rng(0).normal(size=(400, 256)).astype(np.float32)
STATE = TrainState(
    step=jnp.int32(1),
    params={"kernel": jnp.asarray(NUMBERS)},
    ema={"kernel": jnp.asarray(NUMBERS + 1)},
    opt_state=({"count": jnp.int32(7)},),
)
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


@pytest.fixture
def checkpoints(store, messages, monkeypatch):
    monkeypatch.setattr(writer, "RETRY_PAUSES", (0.0,))
    opened = Checkpoints(
        store.folder, retention=Retention(Keep(latest=1)), experiment={}, listener=SaveListener(warn=messages.append)
    )
    yield opened
    opened.close()


def saved(checkpoints: Checkpoints, step: int) -> list[int]:
    checkpoints.save(step, STATE, next_batch=step)
    checkpoints.wait()
    return checkpoints.steps


def files(store) -> list[str]:
    return sorted(path.name for path in (store.folder / FOLDER).iterdir())


def test_a_store_that_fails_costs_no_earlier_checkpoint_and_is_tried_again(store, checkpoints, messages):
    assert saved(checkpoints, 1) == [1]
    for step, failing in ((2, store.full), (4, store.locked)):
        with failing():
            assert saved(checkpoints, step) == [step - 1]
            assert len(messages) == 1
            assert f"the last checkpoint is of step {step - 1}, so 1 steps and those to come are at risk" in messages[0]
            assert checkpoints.overdue()
            # Old ones are deleted when the new one is complete, and what is half-written is taken away.
            assert files(store) == [str(step - 1)]
        assert checkpoints.restore(SHAPES).step == step - 1
        assert saved(checkpoints, step + 1) == [step + 1]
        assert files(store) == [str(step + 1)]
        assert "nothing before it is at risk any more" in messages[1]
        assert not checkpoints.overdue()
        messages.clear()


def test_an_old_step_that_cannot_be_deleted_does_not_make_the_new_one_a_failure(store, checkpoints, messages):
    saved(checkpoints, 1)
    with store.undeletable(store.folder / FOLDER / "1" / "params"):
        assert saved(checkpoints, 2) == [1, 2]
    assert ["old checkpoints could not be deleted" in message for message in messages] == [True]
    assert checkpoints.restore(SHAPES).step == 2
    assert saved(checkpoints, 3) == [3]


@pytest.mark.parametrize(
    ("failing", "advice"),
    [("full", "free space there|raise the limit of the size of files"), ("locked", "make the folder writable again")],
)
def test_the_warning_names_the_remedy(store, checkpoints, messages, failing, advice):
    with getattr(store, failing)():
        saved(checkpoints, 3)
    (message,) = messages
    assert any(text in message for text in advice.split("|"))
    assert "there is no checkpoint yet, so 3 steps and those to come are at risk" in message


def test_a_file_larger_than_allowed_is_a_failure_of_the_store(tmp_path, messages):
    """What `Limited` rests on, whoever runs this."""
    limited = Limited(tmp_path / "limited")
    with Checkpoints(limited.folder, listener=SaveListener(warn=messages.append)) as checkpoints:
        with limited.full():
            assert saved(checkpoints, 1) == []
        assert saved(checkpoints, 2) == [2]
    assert "raise the limit of the size of files" in messages[0]


@pytest.mark.slow
def test_the_last_checkpoint_is_tried_until_there_is_space(store, checkpoints, messages, monkeypatch):
    monkeypatch.setattr(checkpoint, "LAST_PAUSES", (0.01, 0.01))
    saved(checkpoints, 1)
    with store.full():
        with pytest.raises(NotSaved, match="step 2 could not be saved in 3 attempts; the last checkpoint is of step 1"):
            checkpoints.finish(2, STATE, 2)
        monkeypatch.setattr(checkpoint, "LAST_PAUSES", (0.5,) * 20)
        finishing = threading.Thread(target=checkpoints.finish, args=(2, STATE, 2))
        finishing.start()
    finishing.join()
    assert checkpoints.steps == [2]
    assert checkpoints.restore(SHAPES).next_batch == 2


def test_a_folder_that_is_gone_is_not_made_anew(store, checkpoints, messages):
    saved(checkpoints, 1)
    away = store.folder / "away"
    (store.folder / FOLDER).rename(away)
    saved(checkpoints, 2)
    assert "is gone" in messages[0]
    assert not (store.folder / FOLDER).exists()
    away.rename(store.folder / FOLDER)
    assert saved(checkpoints, 3) == [3]


def test_a_folder_that_comes_back_is_waited_for_and_not_taken_for_damaged(store, checkpoints, messages, monkeypatch):
    monkeypatch.setattr(failures, "READ_PAUSES", (0.2,) * 50)
    saved(checkpoints, 1)
    away = store.folder / "away"
    (store.folder / FOLDER).rename(away)
    back = threading.Timer(0.5, away.rename, [store.folder / FOLDER])
    back.start()
    assert checkpoints.resume(SHAPES, messages.append).step == 1
    assert all("is gone" in message and "trying again" in message for message in messages)
    assert len(messages) > 1


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (OSError(errno.ESTALE, "stale"), True),
        (OSError(errno.EACCES, "denied"), True),
        (TimeoutError(), True),
        (failures.Unreadable("/runs/checkpoints/3: words that nobody knows"), True),
        (FileNotFoundError("/runs/checkpoints/3"), False),
        (ValueError("/runs/checkpoints/3: params is damaged"), False),
    ],
)
def test_a_store_that_fails_is_waited_for_and_damage_is_not(error, waits, messages, monkeypatch):
    monkeypatch.setattr(failures, "READ_PAUSES", (0.0, 0.0))

    def read() -> None:
        raise error

    with pytest.raises(type(error)):
        failures.read_patiently(read, messages.append)
    assert len(messages) == (2 if waits else 0)


def test_a_mistake_in_a_program_is_no_failure_of_the_store(checkpoints, messages):
    with pytest.raises(TypeError):
        checkpoints.save(1, STATE._replace(params={"kernel": object()}), 1)
    assert failures.fault(ValueError("wrong")) is None
    assert failures.fault(RuntimeError("wrong")) is None
    assert messages == []


def test_every_save_is_on_record_with_what_it_cost(store, messages):
    lines: list[Mapping[str, Any]] = []
    with Checkpoints(
        store.folder, experiment={}, listener=SaveListener(warn=messages.append, record=lines.append)
    ) as checkpoints:
        saved(checkpoints, 1)
        with store.full():
            saved(checkpoints, 2)
        saved(checkpoints, 3)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert ["failed" in line for line in lines] == [False, True, False]
    cost = lines[0]
    assert cost["bytes"] == sum(x.nbytes for x in jax.tree.leaves((STATE.params, STATE.ema, STATE.opt_state)))
    assert 0 < cost["digest_seconds"] < cost["blocking_seconds"] < cost["digest_seconds"] + cost["written_seconds"]
    assert cost["read_seconds"] > 0


# --- read again ---


@contextlib.contextmanager
def before_it_is_read_again(checkpoints: Checkpoints, step: int):
    """Saves; the block finds the step written, and the background thread that reads it again waits for its end."""
    done = threading.Event()
    checkpoints._writer._waiter.submit(done.wait)
    checkpoints.save(step, STATE, next_batch=step)
    while not checkpoints._folder.has(step):
        time.sleep(0.01)
    yield checkpoints._folder.path / str(step)
    done.set()
    checkpoints.wait()


@pytest.fixture
def lines() -> list[Mapping[str, Any]]:
    return []


@pytest.fixture
def recorded(tmp_path, messages, lines, monkeypatch):
    """Keeps one step."""
    monkeypatch.setattr(failures, "READ_PAUSES", (0.0,))
    monkeypatch.setattr(checkpoint, "LAST_PAUSES", (0.0,))
    listener = SaveListener(warn=messages.append, record=lines.append)
    opened = Checkpoints(tmp_path / "run", retention=Retention(Keep(latest=1)), experiment={}, listener=listener)
    yield opened
    opened.close()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_save_that_cannot_be_read_is_none_and_costs_no_earlier_one(recorded, messages, lines):
    assert saved(recorded, 1) == [1]
    with before_it_is_read_again(recorded, 2) as folder:
        (folder / "params" / "manifest.ocdbt").write_bytes(b"")
    assert recorded.steps == [1]
    assert recorded.restore(SHAPES).step == 1
    assert "checkpoints/2: written, but not readable: " in messages[-1]
    assert "the last checkpoint is of step 1" in messages[-1]
    assert "failed" in lines[-1]
    assert saved(recorded, 3) == [3]


def test_of_the_first_save_of_a_run_all_arrays_are_read_again(recorded, messages):
    """A flipped bit among the numbers is not in the index."""
    with before_it_is_read_again(recorded, 1) as folder:
        flip(max((folder / "ema" / "d").iterdir(), key=lambda file: file.stat().st_size))
    assert recorded.steps == []
    assert "ema" in messages[-1]
    assert saved(recorded, 2) == [2]


@pytest.mark.slow
def test_a_save_that_cannot_be_read_now_stays_and_is_read_later(recorded, messages, lines):
    """The file leads in a circle: an error of the store that is none of the file."""
    saved(recorded, 1)
    with before_it_is_read_again(recorded, 2) as folder:
        file = folder / "params" / "_METADATA"
        file.rename(folder.parent / "elsewhere")
        file.symlink_to(file)
    assert recorded.steps == [1, 2]
    assert "checkpoints/2: written, but could not be read again: OSError: [Errno 40]" in messages[-1]
    with pytest.raises(NotSaved):
        recorded.finish(2, STATE, next_batch=2)
    (folder.parent / "elsewhere").replace(file)
    recorded.finish(2, STATE, next_batch=2)
    assert recorded.steps == [2]
    assert ["failed" in line for line in lines] == [False, True, True, True, False]


def test_a_save_is_on_record_as_soon_as_it_counts(recorded, lines):
    """Not only when the next one begins: the loop asks after each step."""
    recorded.save(1, STATE, next_batch=1)
    while not lines:
        assert not recorded.overdue()
        time.sleep(0.01)
    assert lines[0]["step"] == 1
    recorded.wait()
    assert len(lines) == 1


def test_silence_ends_with_the_last_who_asked_for_it():
    """Whichever thread came first."""
    level, hook, filters = logging.getLogger("absl").level, sys.unraisablehook, warnings.filters[:]
    with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
        one.enter_context(quiet())
        other.enter_context(quiet())
        one.close()
        assert logging.getLogger("absl").level == logging.CRITICAL
    assert (logging.getLogger("absl").level, sys.unraisablehook, warnings.filters) == (level, hook, filters)


def test_a_path_that_orbax_takes_for_a_pattern_is_refused_and_would_be_found_out(tmp_path, messages, monkeypatch):
    """By what is read again, as any other path would that a library takes for something else."""
    for name in ("a[b]", "a*", "a?", "a[b]/c"):
        with pytest.raises(ValueError, match=r"stands for a pattern to Orbax, .*rename the folder"):
            Checkpoints(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "[1]")
    with pytest.raises(ValueError, match="stands for a pattern"):
        Checkpoints(tmp_path / "link")
    monkeypatch.setattr(folder_module, "_PATTERN", "")
    with Checkpoints(tmp_path / "a[b]", experiment={}, listener=SaveListener(warn=messages.append)) as checkpoints:
        assert saved(checkpoints, 1) == []
    assert "written, but not readable" in messages[0]


@pytest.mark.parametrize("name", ["a b", "a]b", "50%", "a#b", "{a}", "run@2", "a:b", "x.orbax-checkpoint-tmp", "ä\nb"])
def test_other_paths_are_no_patterns(tmp_path, messages, name):
    with Checkpoints(tmp_path / name, experiment={}, listener=SaveListener(warn=messages.append)) as checkpoints:
        assert saved(checkpoints, 1) == [1]
        assert checkpoints.restore(SHAPES).step == 1
    assert messages == []


def test_a_listener_is_called_when_a_save_begins_and_when_it_has_ended(tmp_path):
    calls = []
    listener = SaveListener(prepare=lambda: calls.append("begin"), record=lambda line: calls.append(line["step"]))
    with Checkpoints(tmp_path, listener=listener) as checkpoints:
        for step in (1, 2, 2):  # a step that is there is not saved again
            saved(checkpoints, step)
    assert calls == ["begin", 1, "begin", 2]


def test_what_is_shown_on_a_full_disk_ends_nothing(tmp_path):
    limited = Limited(tmp_path / "limited")
    path = limited.folder / "log"
    with open(path, "w", encoding="utf-8") as log:
        console = Console(file=failures.Unfailing(log))
        console.print("before")
        with limited.full(spare=8):
            for _ in range(100):
                console.print("during")
        console.print("after")
    assert path.read_text().startswith("before\n")
    assert path.read_text().endswith("after\n")


# --- which stay ---


def test_a_checkpoint_stays_while_anything_wants_it():
    steps = range(100, 1001, 100)
    scores = {step: abs(step - 450.0) for step in steps} | {900: float("nan")}
    best = Best(evaluator="fvd", scalar="fvd", num=2)
    for keep, expected in (
        (Keep(latest=2), {900, 1000}),
        (Keep(latest=1, every=300), {300, 600, 900, 1000}),
        (Keep(latest=1, best=best), {400, 500, 1000}),
        (Keep(latest=1, best=Best(evaluator="fvd", scalar="fvd", higher=True)), {1000}),
        (Keep(latest=1, every=500, best=best), {400, 500, 1000}),
    ):
        assert set(steps) - keep.to_delete(steps, scores) == expected
    assert Keep(latest=3).to_delete([1, 2], {}) == set()


@pytest.mark.parametrize(("field", "value"), [("latest", 0), ("every", 0)])
def test_keeping_nothing_is_refused(field, value):
    with pytest.raises(ValueError, match=f"Keep.{field}={value}: must be at least 1"):
        Keep(**{field: value})


def test_the_best_stays_once_it_is_judged(tmp_path):
    """A step is saved, then judged, then the next one is saved."""
    scores, keep = {}, Keep(latest=1, best=Best(evaluator="fvd", scalar="fvd"))
    with Checkpoints(tmp_path, retention=Retention(keep, lambda best: scores)) as checkpoints:
        for step, score in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 6.0)):
            saved(checkpoints, step)
            scores[step] = score
        assert checkpoints.steps == [2, 4]
        (tmp_path / FOLDER / "4").stat()
    # Who does not know the scores deletes nothing.
    unreadable = Retention(keep, lambda best: json.loads((tmp_path / "none").read_text()))
    with Checkpoints(tmp_path, retention=unreadable) as checkpoints:
        assert saved(checkpoints, 5) == [2, 4, 5]


def test_the_last_checkpoint_of_a_run_is_saved_once_where_it_can_be(store, checkpoints, messages):
    checkpoints.finish(2, STATE, 2)
    assert checkpoints.steps == [2]
    assert messages == []
