"""Runs in a bucket of Google Cloud Storage, with a server on this machine that can be made to fail."""

import json
import socket
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath
from orbax.checkpoint._src.path.atomicity_defaults import get_default_temporary_path_class
from orbax.checkpoint._src.serialization.tensorstore_utils import build_kvstore_tspec

from dit_video.checkpoint import writer
from dit_video.checkpoint.checkpoints import Checkpoints, DamagedCheckpoint
from dit_video.checkpoint.folder import steps_of
from dit_video.checkpoint.listener import SaveListener
from dit_video.checkpoint.retention import Keep, Retention
from dit_video.cli.main import main
from dit_video.run import lock as run_lock
from dit_video.run.lock import LOCK, RunInUse, acquire
from dit_video.storage import mirror
from dit_video.storage.bucket import BucketLock, address
from dit_video.storage.mirror import BucketRecord, Copying, NotCopied, local_copy, push, record_of
from dit_video.training.step import TrainState

RUN = Path("gs://bucket/some/run")
PREFIX = "some/run/"
NUMBERS = np.random.default_rng(0).normal(size=(40, 25)).astype(np.float32)
STATE = TrainState(
    step=jnp.int32(1),
    params={"kernel": jnp.asarray(NUMBERS)},
    ema={"kernel": jnp.asarray(NUMBERS + 1)},
    opt_state=({"count": jnp.int32(7)},),
)
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


@pytest.fixture
def machine(bucket, tmp_path) -> BucketRecord:
    """The copy of the run on a machine."""
    return BucketRecord("gs://bucket/some/run", tmp_path / "run")


@pytest.fixture
def checkpoints(machine, messages, monkeypatch):
    monkeypatch.setattr(writer, "RETRY_PAUSES", (0.0,))
    opened = Checkpoints(
        machine.folder, retention=Retention(Keep(latest=1)), experiment={}, listener=SaveListener(warn=messages.append)
    )
    yield opened
    opened.close()


def saved(checkpoints: Checkpoints, step: int) -> list[int]:
    checkpoints.save(step, STATE, next_batch=step)
    checkpoints.wait()
    return checkpoints.steps


def test_what_is_saved_in_a_bucket_comes_back_and_leaves_no_file_here(bucket, machine, checkpoints):
    assert [saved(checkpoints, step) for step in (1, 2)] == [[1], [2]]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(SHAPES).state, STATE._replace(step=jnp.int32(2)))
    assert {name.split("/")[3] for name in bucket.names(f"{PREFIX}checkpoints/")} == {"2"}
    assert not machine.folder.exists()


def forbid(*parts: str):
    """Requests whose address has one of these are refused, as where a quota or the rights are at their end."""
    return lambda method, path: 403 if method in ("POST", "PUT") and any(part in path for part in parts) else None


def test_a_bucket_that_refuses_costs_no_earlier_checkpoint_and_is_tried_again(bucket, checkpoints, messages):
    assert saved(checkpoints, 1) == [1]
    with bucket.failing(forbid("checkpoints/2")):
        assert saved(checkpoints, 2) == [1]
    assert len(messages) == 1
    assert "the last checkpoint is of step 1, so 1 steps and those to come are at risk" in messages[0]
    assert "let this machine write to the bucket" in messages[0]
    assert checkpoints.overdue()
    assert checkpoints.restore(SHAPES).step == 1
    assert saved(checkpoints, 3) == [3]
    assert {name.split("/")[3] for name in bucket.names(f"{PREFIX}checkpoints/")} == {"3"}


def test_a_bucket_that_does_not_answer_for_a_moment_costs_nothing(bucket, checkpoints, messages):
    checkpoints.save(1, STATE, next_batch=1)
    with bucket.failing(lambda method, path: 503):
        threading.Event().wait(1.0)
    checkpoints.wait()
    assert (checkpoints.steps, messages) == ([1], [])


def test_a_request_that_the_server_calls_wrong_does_not_end_training(bucket, checkpoints, messages):
    """What TensorStore makes of that has no status in front."""
    with bucket.failing(lambda method, path: 400 if "ocdbt" in path and method == "POST" else None):
        assert saved(checkpoints, 1) == []
    assert "checkpoints/1: not written" in messages[0]
    assert saved(checkpoints, 2) == [2]


def test_steps_of_which_none_is_whole_are_not_taken_for_no_steps(bucket, machine):
    """A kill leaves one such; several were not copied to their end."""
    for step in (1, 2):
        bucket.put("bucket", f"{PREFIX}checkpoints/{step}/_CHECKPOINT_METADATA", b"{}")
    with Checkpoints(machine.folder) as checkpoints, pytest.raises(DamagedCheckpoint, match="1, 2 are half-written"):
        checkpoints.resume(SHAPES, print)
    assert len(bucket.names()) == 2


def test_a_half_written_step_is_set_aside_and_never_taken_for_a_step(bucket, machine, checkpoints, messages):
    saved(checkpoints, 1)
    for name in bucket.names(f"{PREFIX}checkpoints/1/"):
        if not name.endswith("checkpoints/1/commit_success.txt"):
            bucket.put("bucket", name.replace("checkpoints/1/", "checkpoints/2/"), bucket.objects["bucket", name][0])
    with Checkpoints(machine.folder, experiment={}, listener=SaveListener(warn=messages.append)) as again:
        assert again.steps == [1]
        assert again.unfinished == ["2"]
        assert again.resume(SHAPES, messages.append).step == 1
    assert "half-written checkpoint 2 set aside" in messages[0]
    assert bucket.names(f"{PREFIX}checkpoints/2/") == []
    aside = steps_of(machine.folder).aside()
    assert [(one.why, one.bytes > 1000) for one in aside] == [("the save was never finished", True)]


@pytest.mark.slow
def test_a_damaged_step_is_named_and_the_one_before_is_taken(bucket, machine, messages):
    with Checkpoints(machine.folder, experiment={}, listener=SaveListener(warn=messages.append)) as checkpoints:
        saved(checkpoints, 1), saved(checkpoints, 2)
    key = next(name for name in bucket.names(f"{PREFIX}checkpoints/2/params/") if "/d/" in name)
    content = bytearray(bucket.objects["bucket", key].content)
    content[len(content) // 2] ^= 1
    bucket.put("bucket", key, bytes(content))
    with Checkpoints(machine.folder, experiment={}, listener=SaveListener(warn=messages.append)) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match="gs://bucket/some/run/checkpoints/2"):
            checkpoints.restore(SHAPES)
        assert checkpoints.resume(SHAPES, messages.append).step == 1
    assert len(steps_of(machine.folder).aside()) == 1


def test_one_at_a_time(bucket, messages):
    with (
        acquire(RUN, messages.append),
        pytest.raises(RunInUse, match="gs://bucket/some/run: process"),
        acquire(RUN, print),
    ):
        pass
    assert bucket.names() == []
    assert messages == []


def test_a_lock_is_taken_over_only_when_its_host_gives_no_sign(bucket, messages, monkeypatch):
    monkeypatch.setattr(run_lock, "GONE_SECONDS", 3.0)
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.05)
    theirs = {"host": "elsewhere", "pid": 1, "process_started": None, "since": "then", "refresh_seconds": 20}
    bucket.put("bucket", PREFIX + LOCK, json.dumps(theirs).encode())
    touch = threading.Timer(0.5, lambda: bucket.put("bucket", PREFIX + LOCK, json.dumps(theirs).encode()))
    touch.start()
    with pytest.raises(RunInUse, match="process 1 on elsewhere trains here since then"), acquire(RUN, messages.append):
        pass
    touch.join()
    with acquire(RUN, messages.append):
        assert json.loads(bucket.objects["bucket", PREFIX + LOCK].content)["host"] != "elsewhere"
    assert any("taken over from a process that is gone" in line for line in messages)


def test_of_two_that_take_a_free_lock_one_has_it(bucket):
    """The other writes between what this one reads and what it writes, so that only the bucket can tell."""
    lock = BucketLock("gs://bucket/some/run", LOCK)

    def faster(text: bytes):
        def refuse(method: str, path: str) -> None:
            if method == "POST":
                bucket.refuse = None
                bucket.put("bucket", PREFIX + LOCK, text)

        return refuse

    bucket.refuse = faster(b"theirs")
    assert not lock.create("mine")
    assert lock.read() == "theirs"
    bucket.refuse = faster(b"of a third")
    lock.touch()
    assert lock.read() == "of a third"

    def taken_over(method: str, path: str) -> None:
        if method == "DELETE":
            bucket.refuse = None
            bucket.put("bucket", PREFIX + LOCK, b"of a fourth")

    bucket.refuse = taken_over
    assert not lock.remove("of a third")
    assert lock.read() == "of a fourth"
    assert lock.remove("of a fourth")
    assert lock.read() is None


def test_a_lock_whose_answer_was_lost_is_had(bucket, messages):
    def lose(method: str, path: str) -> int | None:
        if method != "POST":
            return None
        bucket.lose = None
        return 503

    bucket.lose = lose
    with acquire(RUN, messages.append):
        assert PREFIX + LOCK in bucket.names()
    assert (bucket.names(), messages) == ([], [])


def test_a_host_of_the_same_name_is_another_host(bucket, messages, monkeypatch):
    """Its process has a number that nobody has here."""
    monkeypatch.setattr(run_lock, "GONE_SECONDS", 0.5)
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.05)
    ours = {"host": socket.gethostname(), "boot": "of another"}
    theirs = {**ours, "pid": 2**30, "process_started": None, "since": "then", "refresh_seconds": 20}
    bucket.put("bucket", PREFIX + LOCK, json.dumps(theirs).encode())
    with acquire(RUN, messages.append):
        pass
    assert "waiting for a sign of life" in messages[0]


def test_the_record_goes_from_machine_to_machine(bucket, tmp_path):
    here, there = (BucketRecord("gs://bucket/some/run", tmp_path / name / "run") for name in ("here", "there"))
    here.pull("experiment.json")
    (here.folder / "experiment.json").write_text("1")
    (here.folder / "metrics.jsonl").write_text("a\n")
    (here.folder / "samples").mkdir()
    (here.folder / "samples" / "a.mp4").write_bytes(b"video")
    here.push()
    assert bucket.names() == [PREFIX + name for name in ("experiment.json", "metrics.jsonl", "samples/a.mp4")]
    there.pull("experiment.json")
    assert (there.folder / "metrics.jsonl").read_text() == "a\n"
    with (there.folder / "metrics.jsonl").open("a") as file:
        file.write("b\n")
    bucket.requests.clear()
    there.push()
    assert [method for method, _ in bucket.requests] == ["POST"]
    # What is newer here stays, unless the bucket has got something since.
    with (there.folder / "metrics.jsonl").open("a") as file:
        file.write("c\n")
    BucketRecord("gs://bucket/some/run", there.folder).pull("experiment.json")
    assert (there.folder / "metrics.jsonl").read_text() == "a\nb\nc\n"
    BucketRecord("gs://bucket/some/run", here.folder).pull("experiment.json")
    assert (here.folder / "metrics.jsonl").read_text() == "a\nb\n"


def test_a_copy_of_a_run_that_is_no_more_is_not_mixed_into_another_of_its_name(bucket, machine, tmp_path):
    machine.pull("experiment.json")
    for name in ("experiment.json", "events.jsonl"):
        (machine.folder / name).write_text("of the first")
    machine.push()
    bucket.objects.clear()
    elsewhere = BucketRecord("gs://bucket/some/run", tmp_path / "elsewhere")
    elsewhere.pull("experiment.json")
    (elsewhere.folder / "experiment.json").write_text("of the second")
    elsewhere.push()
    machine.pull("experiment.json")
    assert sorted(path.name for path in machine.folder.iterdir()) == ["experiment.json", "in_bucket.json"]
    bucket.objects.clear()
    machine.pull("experiment.json")
    assert [path.name for path in machine.folder.iterdir()] == ["in_bucket.json"]


@pytest.mark.parametrize("damaged", ["{", '{"metrics.jsonl": 5}', '{"metrics.jsonl": {"generation": "x"}}'])
def test_a_damaged_list_of_what_is_in_the_bucket_costs_no_line(bucket, machine, damaged, capsys):
    machine.pull("experiment.json")
    for name in ("experiment.json", "metrics.jsonl"):
        (machine.folder / name).write_text("a\n")
    machine.push()
    (machine.folder / "metrics.jsonl").write_text("a\nb\n")
    (machine.folder / "in_bucket.json").write_text(damaged)
    again = BucketRecord("gs://bucket/some/run", machine.folder)
    again.pull("experiment.json")
    assert (again.folder / "metrics.jsonl").read_text() == "a\n"
    aside = machine.folder.with_name("run.bad")
    assert (aside / "metrics.jsonl").read_text() == "a\nb\n"
    assert str(aside) in capsys.readouterr().err


def test_copies_hold_neither_locks_nor_markers_of_folders_nor_each_other(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("", "experiment.json", LOCK, "dit/experiment.json"):
        bucket.put("bucket", PREFIX + name, b"{}")
    outer, inner = (record_of(Path(f"gs://bucket/some/run{below}")) for below in ("", "/dit"))
    for record in (outer, inner):
        record.pull("experiment.json")
    assert sorted(path.name for path in outer.folder.iterdir()) == ["experiment.json", "in_bucket.json"]
    assert not inner.folder.is_relative_to(outer.folder)
    bucket.requests.clear()
    outer.push()
    assert bucket.requests == []


def test_what_is_written_into_a_run_that_is_read_goes_back(bucket):
    bucket.put("bucket", f"{PREFIX}experiment.json", b"{}")
    folder = local_copy(RUN, "experiment.json")
    assert (folder.name, (folder / "experiment.json").read_text()) == ("run", "{}")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "card.json").write_text("1")
    push(folder)
    assert bucket.names() == [f"{PREFIX}evaluation/card.json", f"{PREFIX}experiment.json"]
    (folder / "evaluation" / "card.json").write_text("2")
    with bucket.failing(forbid("card")), pytest.raises(NotCopied, match=f"It is in {folder} instead"):
        push(folder)
    with pytest.raises(FileNotFoundError, match=r"gs://bucket/none: no run"):
        local_copy(Path("gs://bucket/none"), "experiment.json")


def test_what_names_no_run_costs_one_question(bucket):
    bucket.put("bucket", "some/large.tar", bytes(1000))
    bucket.requests.clear()
    with pytest.raises(FileNotFoundError, match="no run"):
        local_copy(Path("gs://bucket/some"), "experiment.json")
    assert len(bucket.requests) == 1


def test_a_record_that_cannot_be_copied_is_said_and_copied_later(bucket, machine, messages, monkeypatch):
    monkeypatch.setattr(mirror, "LAST_PAUSES", (0.0,))
    machine.folder.mkdir()
    (machine.folder / "metrics.jsonl").write_text("a\n")
    failing, raises = (
        bucket.failing(forbid("metrics")),
        pytest.raises(NotCopied, match="the end of the record is there"),
    )
    with failing, raises, Copying(machine, messages.append) as copying:
        copying.start()
    assert [("tried again at the next save" in line, "let this machine write" in line) for line in messages] == [
        (True, True),
        (False, True),
        (False, True),
    ]
    with Copying(machine, messages.append):
        pass
    assert bucket.objects["bucket", f"{PREFIX}metrics.jsonl"].content == b"a\n"
    assert len(messages) == 3


@pytest.mark.parametrize(
    "name",
    [
        *("s3://bucket/run", Path("hf://a/b"), "gs://bucket"),
        # They would lead out of a folder, or be patterns.
        *("gs://bucket/..", Path("gs://bucket/a/../../b"), "gs://bucket/./a", "gs://bucket//a", "gs://bucket/run[1]"),
    ],
)
def test_another_address_is_refused_with_what_to_do(name):
    with pytest.raises(ValueError, match=r"gs://bucket/run"):
        address(name)


@pytest.mark.parametrize("name", ["runs/gs", "C:/runs", "/gs:/run", Path("a:b")])
def test_a_folder_is_none(name):
    assert address(name) is None
    assert record_of(Path(name)).folder == Path(name)


@pytest.mark.parametrize("name", ["gs://bucket/some/run", Path("gs://bucket/some/run"), "GS://bucket/some/run/"])
def test_an_address_is_found_in_a_path_too(name):
    assert address(name) == "gs://bucket/some/run"


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--workdir=run", "--out=gs://bucket/x"],
        ["demo", "--workdir=s3://a/b"],
        ["data", "digits", "--out=gs://bucket/set"],
    ],
)
def test_what_is_written_here_takes_no_address(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "is written here; give a path" in capsys.readouterr().err


def test_orbax_has_no_store_for_s3_which_is_why_it_is_refused():
    """Where this fails Orbax has learnt it: docs/reliability.md says what a run in S3 needs."""
    for where, renamed in (("gs://bucket/run/4", False), ("s3://bucket/run/4", True)):
        kind = get_default_temporary_path_class(epath.Path(where))
        assert (kind is AtomicRenameTemporaryPath) == renamed
    assert build_kvstore_tspec("gs://bucket/run/4", name=None)
    with pytest.raises(ValueError, match="path should be absolute"):
        build_kvstore_tspec("s3://bucket/run/4", name=None)
