"""A real Weights & Biases, offline: what it keeps of a run, in one run over all sessions."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training.trackers import TrackedRun, WeightsAndBiases

# Its file is a log of LevelDB after seven bytes of its own: checksum, length and kind before each record.
_HEADER, _FRAME, _WHOLE = 7, struct.Struct("<IHB"), 1


def records(path: Path) -> Iterator:
    from wandb.proto.wandb_internal_pb2 import Record  # pyrefly: ignore[missing-import]

    data = path.read_bytes()[_HEADER:]
    while data:
        _, length, kind = _FRAME.unpack_from(data)
        assert kind == _WHOLE
        yield Record.FromString(data[_FRAME.size : _FRAME.size + length])
        data = data[_FRAME.size + length :]


def lines(path: Path) -> list[dict]:
    """Those of the history of a run, without what W&B adds."""
    histories = [record.history for record in records(path) if record.WhichOneof("record_type") == "history"]
    items = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in h.item} for h in histories]
    return [{name: value for name, value in line.items() if not name.startswith("_")} for line in items]


@pytest.mark.slow
def test_wandb_keeps_curves_and_videos_of_a_run_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker, config = WeightsAndBiases(project="videos"), {"task": {"class": "Denoise"}}
    tracker.check()
    for start, losses in ((0, [4.0, 3.0]), (1, [3.5, 2.0])):
        opened = tracker.open(TrackedRun(tmp_path, "0123abcd", config, start), RetryingFiles(print), pytest.fail)
        for number, loss in enumerate(losses):
            opened.scalars(start + number + 1, "train", {"loss": loss})
        opened.video(3, "samples", np.zeros((2, 16, 16, 3), np.uint8), 8.0)
        opened.close()
    first, second = sorted(tmp_path.glob("wandb/offline-run-*-0123abcd/*.wandb"))
    (run,) = (record.run for record in records(first) if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project, run.display_name) == ("0123abcd", "videos", tmp_path.name)
    assert [json.loads(item.value_json) for item in run.config.update if item.key == "task"] == [config["task"]]
    *curve, video = lines(first)
    assert curve == [{"train/loss": 4.0, "step": 1}, {"train/loss": 3.0, "step": 2}]
    assert video["step"] == 3
    assert len(list(first.parent.glob("files/media/videos/*.mp4"))) == 1
    # What was done again is there again, at its own step.
    assert lines(second)[:2] == [{"train/loss": 3.5, "step": 2}, {"train/loss": 2.0, "step": 3}]


def test_where_it_is_not_installed_a_run_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs wandb: pip install -e '\.\[wandb\]'"):
        WeightsAndBiases(project="videos").check()
