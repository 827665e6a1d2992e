"""A user's own task and a user's own condition, each one file, go through the ordinary commands as ours do."""

import json
import shutil
import sys
from pathlib import Path

import jax
import pytest

from dit_video.cli.main import main
from dit_video.distributed.sharding import MeshShape
from dit_video.distributed.targets import parse_target
from dit_video.experiment import load
from dit_video.plan.compile import plan
from dit_video.plan.programs import TaskFunction
from dit_video.training.tracker import read_record
from dit_video.verify.sharding import compare_shardings

FILES = {"masked_text": "words.jsonl", "scalar_condition": "speeds.mp4"}
SHORT = ["--config.schedule.num_steps=6", "--config.schedule.save_every=3", "--config.schedule.log_every=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for name in FILES:
        shutil.copy(Path(__file__).parent / f"{name}.py", folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """Both examples trained for some steps, in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        vae = ["--config=scalar_condition.py:vae", "--workdir=vae", "--config.schedule.num_steps=2"]
        assert main(["train", *vae]) == 0
        for name in FILES:
            assert main(["train", f"--config={name}.py", f"--workdir={name}", *SHORT]) == 0
    return folder


@pytest.mark.parametrize("name", FILES)
def test_it_is_short_and_changes_no_file_of_the_package(name):
    text = (Path(__file__).parent / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert "setattr" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_goes_on_from_a_checkpoint_exactly(name, trained, tmp_path, monkeypatch):
    """A run that stopped after three steps records what the other did."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    stopped = [word.replace("num_steps=6", "num_steps=3") for word in SHORT]
    assert main(["train", f"--config={name}.py", "--workdir=again", *stopped]) == 0
    assert main(["train", f"--config={name}.py", "--workdir=again", "--allow_change", *SHORT]) == 0
    steps = [{line["step"]: line for line in read_record(Path(run)) if "loss" in line} for run in (name, "again")]
    assert len(steps[0]) == 6
    assert [line["loss"] for line in steps[0].values()] == [line["loss"] for line in steps[1].values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_is_sampled_judged_and_exported(name, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    where = [f"--config={name}.py", f"--workdir={name}"]
    words = ["--cond", "speed=0.5,2"] if name == "scalar_condition" else []
    assert main(["sample", *where, *words, "--num_clips=2", f"--out={FILES[name]}"]) == 0
    assert Path(FILES[name]).stat().st_size > 0
    if name == "masked_text":
        assert all(isinstance(json.loads(line)["text"], str) for line in Path(FILES[name]).read_text().splitlines())
        assert main(["evaluate", "run", *where, "--num_clips=8"]) == 0
        (card,) = Path(name, "evaluation").glob("*.json")
        assert 0 <= json.loads(card.read_text())["measured"]["words"] <= 1
    assert main(["export", *where, f"--out={name}_exported", "--format=safetensors"]) == 0
    assert "tensors bit-equal" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_computes_the_same_on_eight_devices_and_can_be_planned(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    experiment = load(f"{name}.py")
    comparison = next(compare_shardings(experiment, [MeshShape(data=2, fsdp=4)], num_steps=2))
    assert comparison.refused is None
    assert comparison.equal, comparison
    found = plan(experiment, parse_target("cpu:8"))
    assert found.num_devices == len(jax.devices()) == 8
    assert found.flops > 0


@pytest.mark.parametrize("name", FILES)
def test_all_that_it_can_do_is_planned(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    experiment = load(f"{name}.py")
    functions = experiment.task.functions()
    assert "generate" in functions
    for function in functions:
        found = plan(experiment, parse_target("cpu:8"), TaskFunction(function))
        assert (found.program, found.clips, found.memory.padding) == (function, 16, 0)
        assert found.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_killing_it_loses_nothing(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["verify-resume", f"--config={name}.py", "--kills=2", "--num_steps=12"]) == 0


def test_a_task_and_a_condition_are_defined_at_run_time(folder, monkeypatch):
    """No registry and no file is needed: a class that exists is enough."""
    monkeypatch.chdir(folder)
    experiment = load("masked_text.py")
    module = sys.modules[type(experiment.task).__module__]
    kind = type("Louder", (type(experiment.task),), {"reads": property(lambda self: ("caption",))})
    assert kind().reads == ("caption",)
    assert set(kind().functions()) == set(module.MaskedText().functions())
