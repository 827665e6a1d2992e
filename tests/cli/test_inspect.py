"""What a run folder holds is listed as it is, damage is named, and whoever only looks moves nothing."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from test_whole_way import EXPERIMENT

from dit_video import experiment as experiments
from dit_video.checkpoint.checkpoints import Checkpoints, DamagedCheckpoint
from dit_video.checkpoint.folder import DAMAGED_FOLDER, FOLDER
from dit_video.cli.main import main
from dit_video.config.components import to_json
from dit_video.nn.module import define
from dit_video.run.folder import EXPERIMENT_FILE, record
from dit_video.run.open_run import open_run
from dit_video.storage.json_lines import LinesFile
from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training.events import FILE, Done, Event, EventLog, Kind
from dit_video.training.step import TrainState
from dit_video.weights.digest import weights_digest

CODEC = "--config=tiny.py:vae"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The run of a codec with the steps 4 and 8; its weights are the number of the step, averages half of it."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "tiny.py").write_text(EXPERIMENT)
    experiment = experiments.load(f"{folder / 'tiny.py'}:vae")
    record(experiment, folder / "vae", [], allow_change=False)
    with Checkpoints(folder / "vae", experiment=to_json(experiment)) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, state_at(step, experiment), next_batch=step)
            checkpoints.wait()
    return folder / "vae"


def state_at(step: int, experiment: experiments.Experiment) -> TrainState:
    shapes = define(experiment.task.init).shapes
    raw = {n: jnp.asarray(np.full(s.shape, step, s.dtype)) for n, s in shapes.items()}
    # Numbers that do not compress: a flipped bit must change one of them, not break the compression.
    raw["noise"] = jnp.asarray(np.random.default_rng(step).normal(size=(64, 64)), jnp.float32)
    ema = {name: jnp.asarray(np.asarray(value) / 2) for name, value in raw.items() if name in shapes}
    return TrainState(jnp.int32(step), raw, ema, {"count": jnp.int32(step)})


@pytest.fixture
def folder(template, tmp_path) -> Path:
    return shutil.copytree(template, tmp_path / "vae")


def inspect(capsys, folder: Path, *words: str, code: int = 0) -> dict:
    assert main(["inspect", str(folder), "--json", *words]) == code
    return json.loads(capsys.readouterr().out)


def flip_a_bit_of_the_noise(step: Path) -> None:
    file = max((path for path in (step / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(bytes(data))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_every_step_is_listed_with_what_is_in_it(capsys, folder, verify):
    before = files(folder)
    found = inspect(capsys, folder, *verify)
    experiment = experiments.load(f"{write_experiment(folder.parent)}:vae")
    assert (found["task"], found["fingerprint"]) == ("Autoencode", experiments.fingerprint(experiment))
    assert [step["step"] for step in found["steps"]] == [4, 8]
    for step in found["steps"]:
        state = state_at(step["step"], experiment)
        assert step["state"] == ("good" if verify else "looks good")
        assert step["next_batch"] == step["step"]
        assert step["fingerprint"] == found["fingerprint"]
        on_disk = files(folder / FOLDER / str(step["step"]))
        assert step["bytes"] == sum(map(len, on_disk.values()))
        assert list(step["items"]) == ["params", "ema", "opt_state"]
        for name, item in step["items"].items():
            leaves = jax.tree.leaves(getattr(state, name))
            assert (item["arrays"], item["bytes"]) == (len(leaves), sum(leaf.nbytes for leaf in leaves))
        assert step["items"]["ema"]["digest"] == weights_digest(state.ema)
        assert step["items"]["params"]["digest"] == weights_digest(state.params)
    assert files(folder) == before


def write_experiment(folder: Path) -> Path:
    path = folder / "tiny.py"
    path.write_text(EXPERIMENT)
    return path


def test_a_flipped_bit_of_an_array_is_found_by_reading_it(capsys, folder):
    flip_a_bit_of_the_noise(folder / FOLDER / "4")
    assert {step["state"] for step in inspect(capsys, folder)["steps"]} == {"looks good"}
    found = inspect(capsys, folder, "--verify", code=1)["steps"]
    assert [step["state"] for step in found] == ["damaged", "good"]
    assert found[0]["damage"].endswith("4: params is damaged in noise")
    assert main(["inspect", str(folder), "--verify"]) == 1
    assert "4: params is damaged in noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file", ["_CHECKPOINT_METADATA", "ema/_METADATA", pytest.param("opt_state/manifest.ocdbt", marks=pytest.mark.slow)]
)
def test_a_missing_index_is_found_without_reading_arrays(capsys, folder, file):
    (folder / FOLDER / "8" / file).unlink()
    found = inspect(capsys, folder, code=1)["steps"]
    assert [step["state"] for step in found] == ["looks good", "damaged"]
    assert f"{FOLDER}/8: " in found[1]["damage"]


def test_what_was_set_aside_is_listed_with_the_reason(capsys, folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.set_aside("8", "the reason")
    found = inspect(capsys, folder)
    assert [step["step"] for step in found["steps"]] == [4]
    assert [(Path(line["folder"]).name, line["why"]) for line in found["set_aside"]] == [("8", "the reason")]


def test_what_went_wrong_and_other_data_are_shown(capsys, folder):
    events = [Event(step=s, batch=s, kind=Kind.SPIKE, done=Done.NOTED, what=(f"high {s}",)) for s in range(1, 13)]
    back = {"kind": Kind.NOT_FINITE, "done": Done.ROLLED_BACK, "to": 12, "next_batch": 15}
    events.append(Event(step=14, batch=14, what=("loss",), **back))
    log = EventLog([], LinesFile(RetryingFiles(print).file(folder / FILE), Event.from_json))
    for event in events:
        log.add(event)
    record = json.loads((folder / EXPERIMENT_FILE).read_text())
    old, new = ({"source": identity(number), "cache": None} for number in (40, 42))
    (folder / EXPERIMENT_FILE).write_text(
        json.dumps(record | {"data": new, "data_changes": [{"batch": 9, "old": old, "new": new}]})
    )
    found = inspect(capsys, folder)
    assert [Event.from_json(event) for event in found["events"]] == events
    assert [change["batch"] for change in found["data_changes"]] == [9]
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "other data from batch 9 on:\n  config.data.source: 40 train (40), manifest 40 -> 42 train (42), manifest 42",
        "faults so far, spike: 12 x noted, not finite: 1 x rolled back\n  3 more before, in events.jsonl",
        "step 12, batch 12: spike, noted: high 12",
        "step 14, batch 14: not finite, rolled back to step 12, on with batch 15: loss",
    ):
        assert part in shown
    assert "high 3" not in shown


def identity(number: int) -> dict:
    digest = str(number)
    return {"digest": digest, "split_digest": {"train": digest}, "num_records": {"train": number}, "class_names": []}


def test_a_run_without_checkpoints_and_a_folder_that_is_no_run(capsys, folder):
    shutil.rmtree(folder / FOLDER)
    before = files(folder)
    assert inspect(capsys, folder)["steps"] == []
    assert files(folder) == before
    assert not (folder / FOLDER).exists()
    assert main(["inspect", str(folder.parent)]) == 1
    assert "not a run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_that_only_read_use_the_last_good_step_and_move_nothing(capsys, folder, monkeypatch):
    (folder / FOLDER / "8" / "ema" / "manifest.ocdbt").unlink()
    before = files(folder)
    opened = open_run(folder, console=Console())
    assert opened.step == 4
    assert all(float(value.max()) == 2 for value in opened.params.values())
    out = " ".join(capsys.readouterr().out.split())
    assert f"{FOLDER}/8: " in out
    assert "using step 4" in out
    with pytest.raises(DamagedCheckpoint, match="/8: cannot be read"):
        open_run(folder, step=8)
    assert files(folder) == before
    assert not (folder / DAMAGED_FOLDER).exists()
