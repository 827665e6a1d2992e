"""Laws of runs in a bucket: real processes train there, each with a home of its own, and one is really killed."""

import json
import threading
from pathlib import Path

import pytest
from gcs_server import GCS
from training_processes import ALONG_FSDP, EXPERIMENT, assert_same_training, finish, start, steps

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.cli.main import main
from dit_video.storage.mirror import local_copy

# Minutes of real processes.
pytestmark = pytest.mark.slow

WHERE = "gs://bucket/runs/tokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `reference`, which was trained in a folder."""
    folder = tmp_path_factory.mktemp("bucket_train")
    (folder / "tokens.py").write_text(EXPERIMENT)
    finish(start(folder, "reference"), 0)
    return folder


def in_a_save(bucket: GCS, step: int) -> threading.Event:
    """Is set when some of this step is written; what follows is not taken."""
    reached = threading.Event()

    def refuse(method: str, path: str) -> int | None:
        if method in ("POST", "PUT") and len(bucket.names(f"runs/tokens/checkpoints/{step}/")) >= 2:
            reached.set()
            return 503
        return None

    bucket.refuse = refuse
    return reached


def test_a_machine_that_is_killed_in_a_save_is_followed_by_another_that_goes_on_as_if_nothing_had_been(bucket, folder):
    reached = in_a_save(bucket, 8)
    (killed,) = start(folder, WHERE, "--config.schedule.save_every=4", homes=folder / "here")
    assert reached.wait(120)
    killed.kill()
    killed.communicate()
    bucket.refuse = None
    # Nobody here would wait three minutes for a sign of a host that is gone: its lock is removed by hand.
    del bucket.objects["bucket", "runs/tokens/lock.json"]
    (said,) = finish(start(folder, WHERE, "--config.schedule.save_every=4", homes=folder / "there"), 0)
    assert "half-written checkpoint 8 set aside: gs://bucket/runs/tokens/checkpoints_damaged/8" in said
    assert "going on from step 4, batch 4" in said
    assert f"done: step 12; look at {WHERE}/curves.png" in said
    run = local_copy(Path(WHERE), "experiment.json")
    for key in ("loss", "rows", "error"):
        assert steps(run, key) == steps(folder / "reference", key)
    with Checkpoints(run) as ours, Checkpoints(folder / "reference") as theirs:
        assert ours.metadata()["digests"] == theirs.metadata()["digests"]
    assert "runs/tokens/lock.json" not in bucket.names()
    lines = [json.loads(line) for line in (run / "saves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    for (_, name), stored in bucket.objects.items():
        copied = folder / "copied" / name.removeprefix("runs/tokens/")
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(stored.content)
    assert main(["inspect", str(folder / "copied"), "--verify", f"--config={folder / 'tokens.py'}"]) == 0


def test_two_machines_train_in_a_bucket_as_one_does_in_a_folder(bucket, folder, capsys):
    """They have one home here, as processes of one host do; each has one of its own in the test above."""
    two = start(folder, WHERE, *ALONG_FSDP, num_processes=2)
    assert "done: step 12" in finish(two, 0, 0)[0]
    run = local_copy(Path(WHERE), "experiment.json")
    assert_same_training(run, folder / "reference")
    assert list(steps(run)) == list(range(1, 13))
    assert main(["inspect", WHERE, "--verify", "--json", f"--config={folder / 'tokens.py'}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(step["step"], step["state"]) for step in found["steps"]] == [(6, "good"), (12, "good")]
    assert all(step["bytes"] > 1000 for step in found["steps"])
    assert found["run"] == WHERE
