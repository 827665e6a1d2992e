"""`dit-video plan`: numbers for people and for programs, and an exit code that says whether it fits."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video.cli import plan as command
from dit_video.cli.main import main
from dit_video.distributed.collectives import Collective, Traffic
from dit_video.plan.compile import Memory, MemoryPart, Plan
from dit_video.plan.programs import Job
from dit_video.plan.roofline import Bound
from dit_video.plan.search import Remedy, Trial

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = f"--config={ROOT}/experiments/quickstart.py"
GIB = 2**30

FITS = Plan(
    program="train",
    unit="step",
    target="v6e:2x2",
    device_kind="TPU v6 lite",
    mesh={"data": 1, "fsdp": 4, "context": 1, "tensor": 1},
    memory=Memory((MemoryPart("parameters", GIB, 0), MemoryPart("batch", 10, 4)), 0, 2 * GIB, 4 * GIB, 32 * GIB),
    traffic=Traffic((Collective("all-gather", ("fsdp",), 12, 3 * GIB, 0),), 0),
    flops=10**15,
    clips=8,
    tokens=8000,
    job=Job("900 steps", 900),
    bounds=(Bound("compute", 1.0, "peak"), Bound("memory", 0.5, "once"), Bound("links", 2.0, "all")),
    recomputed_flops=0,
    compile_seconds=3.0,
)
TOO_BIG = dataclasses.replace(
    FITS,
    memory=dataclasses.replace(FITS.memory, peak=40 * GIB, temporaries=38 * GIB),
    traffic=None,
    bounds=(),
)
CURES = (
    Remedy(("--config.task.network.remat=full",), "keeps less", 39 * GIB, False),
    Remedy(("--config.num_microbatches=2",), "half of it", 20 * GIB, True),
    Remedy(("--target=v6e:2x4", "--config.mesh.fsdp=8"), "more devices"),
)
CALL = {"program": "generate", "unit": "call", "tokens": None, "job": Job("1,000 clips", 125.0)}
FAKE = dataclasses.replace(FITS, memory=dataclasses.replace(FITS.memory, hbm=None), bounds=())


def dit_video_plan(*words: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "dit_video", "plan", QUICKSTART, *words], capture_output=True, text=True
    )
    return result.returncode, result.stdout, result.stderr


def printed(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_what_fits_exits_with_0_and_says_time_and_cost(capsys):
    assert command.report(FITS, price=3.0) == 0
    text = printed(capsys)
    assert "fits, 28 GiB to spare" in text
    assert "2000 ms a step, MFU 50.0%, 4.0 clips/s, 4,000 tokens/s" in text
    assert "900 steps: 2.00 device-hours at best; 6.00 at 3 a device-hour" in text


def test_what_does_not_fit_exits_with_1_and_says_by_how_much(capsys):
    assert command.report(TOO_BIG, CURES) == 1
    text = printed(capsys)
    assert "does not fit: 8 GiB more than the 32 GiB of a device" in text
    assert "--config.task.network.remat=full keeps less (peak 39 GiB: does not fit either)" in text
    assert "--config.num_microbatches=2 half of it (peak 20 GiB: fits)" in text
    assert "--target=v6e:2x4 --config.mesh.fsdp=8 more devices (not compiled)" in text
    assert "--fit" not in text
    assert command.report(TOO_BIG, CURES, as_json=True) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["excess_bytes"] == 8 * GIB
    assert [cure["fits"] for cure in data["remedies"]] == [False, True, None]


def test_where_no_single_change_fits_the_search_is_named(capsys):
    assert command.report(TOO_BIG, CURES[:1]) == 1
    assert "--fit looks for them" in printed(capsys)


def test_the_fastest_way_that_fits_is_printed_as_overrides(capsys):
    words = ("--config.mesh.data=1", "--config.mesh.fsdp=4")
    trials = (Trial((), TOO_BIG), Trial(("--config.mesh.tensor=3",), None, "does not divide"), Trial(words, FITS))
    assert command.report_fit(trials, price=3.0) == 0
    text = printed(capsys)
    assert "2. --config.mesh.tensor=3 cannot be: does not divide" in text
    assert text.endswith(f"the fastest of these that fits: {' '.join(words)}")
    assert command.report_fit(trials, price=3.0, as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best"] == 2
    assert [one["overrides"] for one in data["compiled"]] == [[], ["--config.mesh.tensor=3"], list(words)]
    assert data["compiled"][2]["plan"]["best_case"]["cost"] == 6.0


def test_a_search_that_finds_nothing_exits_with_1(capsys):
    assert command.report_fit((Trial((), TOO_BIG),)) == 1
    assert "none of these fits" in printed(capsys)
    assert command.report_fit((Trial((), TOO_BIG),), as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["best"] is None


def test_fake_devices_are_called_so(capsys):
    assert command.report(FAKE) == 0
    text = printed(capsys)
    assert "an estimate on fake devices" in text
    assert "fits" not in text
    assert "MFU" not in text


def test_json_has_every_number(capsys):
    assert command.report(FITS, price=3.0, as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best_case"] == {
        "binding": "links",
        "step_seconds": 2.0,
        "seconds_in_turn": 3.5,
        "mfu": 0.5,
        "clips_per_second": 4.0,
        "tokens_per_second": 4000.0,
        "device_hours": 2.0,
        "cost": 6.0,
    }
    assert data["fits"] is True
    assert data["traffic"]["collectives"][0]["count"] == 12


def test_a_plan_on_file_is_what_json_prints(capsys, tmp_path):
    assert command.report(FITS, price=3.0, as_json=True, out=tmp_path / "run" / "plan.json") == 0
    printed_plan = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert written == {name: value for name, value in printed_plan.items() if name != "remedies"}


def test_a_call_has_a_time_and_a_cost_of_a_thousand_clips(capsys):
    call = dataclasses.replace(FITS, **CALL)
    assert command.report(call, price=3.6) == 0
    text = printed(capsys)
    assert text.startswith("generate of 8 clips on v6e:2x2: 4 x TPU v6 lite, mesh fsdp=4")
    assert "2000 ms a call, MFU 50.0%, 4.0 clips/s; one after the other they take 3500 ms" in text
    assert "1,000 clips: 0.28 device-hours at best; 1.00 at 3.6 a device-hour" in text
    quick = dataclasses.replace(call, bounds=(Bound("compute", 0.002, "peak"),))
    assert command.report(quick, price=3.6) == 0
    assert "1,000 clips: 0.00028 device-hours at best; 0.001 at 3.6 a device-hour" in printed(capsys)
    assert command.report(call, price=3.6, as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["program"], data["job"]["name"]) == ("generate", "1,000 clips")
    assert (data["best_case"]["call_seconds"], data["best_case"]["cost"]) == (2.0, 1.0)


def test_a_call_that_does_not_fit_exits_with_1_and_names_no_search(capsys):
    call = dataclasses.replace(TOO_BIG, **CALL)
    assert command.report(call, (Remedy(("--batch_size=4",), "fewer clips at a time"),)) == 1
    text = printed(capsys)
    assert "does not fit: 8 GiB more than the 32 GiB of a device. What would change that, one by one:" in text
    assert "--batch_size=4 fewer clips at a time (not compiled)" in text
    assert "--fit" not in text
    assert command.report(call) == 1
    assert "8 GiB more than the 32 GiB of a device. No smaller batch and no other mesh" in printed(capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--target=cpu:8", "--price_per_hour=2"], "--price_per_hour: cpu:8 has no roofline"),
        (["--target=cpu:8", "--fit"], "--fit: cpu:8 has no memory and no roofline"),
        (["--target=v6e:2x2", "--fit=2", "--dump=there"], "--dump is of one program"),
        (["--target=v6e:2x2", "--fit=2", "--out=there"], "--out is of one plan"),
        (["--target=v6e:2x2", "--fit", "--program=generate"], "--fit: looks for the fastest train step"),
        (["--target=cpu:8", "--batch_size=4"], "--batch_size=4: a train step has the batch of its experiment"),
        (["--target=cpu:8", "--program=rollout"], "it has train, validate, generate, reconstruct"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(capsys, words, named):
    assert main(["plan", QUICKSTART, *words]) == 1
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_more_devices_than_this_machine_has(tmp_path):
    code, out, error = dit_video_plan("--target=cpu:16", "--config.mesh.fsdp=4", "--json", f"--dump={tmp_path}")
    assert code == 0, error
    data = json.loads(out)
    assert data["num_devices"] == 16
    assert data["mesh"] == {"data": 4, "fsdp": 4, "context": 1, "tensor": 1}
    assert data["fits"] is None
    assert "best_case" not in data
    assert data["memory"]["padding"] == 0
    assert {"all-gather", "all-reduce"} <= {c["kind"] for c in data["traffic"]["collectives"]}
    assert list(tmp_path.glob("*buffer-assignment.txt"))


def test_what_a_task_can_do_on_more_devices_than_this_machine_has():
    small = ["--config.task.network.depth=1", "--config.task.sampler.num_steps=2"]
    code, out, error = dit_video_plan("--target=cpu:16", "--program=generate", "--batch_size=17", "--json", *small)
    assert code == 0, error
    data = json.loads(out)
    assert (data["program"], data["num_devices"], data["clips"]) == ("generate", 16, 32)
    assert [part["name"] for part in data["memory"]["parts"]] == ["parameters", "frozen parts", "batch"]
    assert data["memory"]["padding"] == 0


def test_a_tpu_that_is_not_there():
    pytest.importorskip("libtpu")
    code, out, error = dit_video_plan(
        "--target=v6e:2x2", "--config.mesh.fsdp=4", "--config.task.network.depth=2", "--json"
    )
    assert code == 0, error
    data = json.loads(out)
    assert data["device_kind"] == "TPU v6 lite"
    assert data["fits"] is True
    assert [c for c in data["traffic"]["collectives"] if c["axes"] == ["fsdp"] and c["kind"] == "all-gather"]
    assert {"compute", "memory", "links"} == {bound["name"] for bound in data["bounds"]}


def test_gpus_that_are_not_there():
    pytest.importorskip("jax_cuda13_plugin")
    code, out, error = dit_video_plan(
        "--target=h100:2x2", "--config.mesh.fsdp=2", "--config.task.network.depth=2", "--json"
    )
    assert code == 0, error
    data = json.loads(out)
    assert data["device_kind"] == "NVIDIA H100"
    assert data["fits"] is True
    # Parameters are gathered inside a node; gradients are summed between the two.
    found = {(tuple(c["axes"]), c["kind"]): c for c in data["traffic"]["collectives"]}
    assert found[("fsdp",), "all-gather"]["outer_bytes"] == 0
    assert found[("data",), "all-reduce"]["outer_bytes"] > 0
    assert {"compute", "memory", "links", "network"} == {bound["name"] for bound in data["bounds"]}


def test_kernels_of_gpus_take_text_and_odd_numbers_of_tokens():
    """cuDNN's attention, forward and backward, of three video tokens to captions; quickstart's is XLA's, in float32."""
    pytest.importorskip("jax_cuda13_plugin")
    code, out, error = dit_video_plan("--config=experiments/video_1b.py:tiny", "--target=h100:1x2", "--json")
    assert code == 0, error
    assert json.loads(out)["tokens"] == 16 * 3


SHAPES = """
import dataclasses
from dit_video import BatchShape, DiTConfig
from experiments import any_frames

def get_config(arg=""):
    experiment = any_frames.get_config()
    shapes = (BatchShape(num_frames=1, size=(32, 32)), BatchShape(num_frames=21, size=(24, 40)))
    network = DiTConfig(hidden_size=32, depth=1, num_heads=2, patch_size=(1, 1, 1))
    task = dataclasses.replace(experiment.task, network=network)
    data = dataclasses.replace(experiment.data, shapes=shapes, batch_multiple=2)
    return dataclasses.replace(experiment, task=task, data=data)
"""


@pytest.mark.slow
def test_every_shape_of_batches_is_planned(tmp_path, capsys):
    (tmp_path / "shapes.py").write_text(SHAPES)
    assert main(["plan", f"--config={tmp_path / 'shapes.py'}", "--target=cpu:2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["shape"] for one in found["shapes"]] == ["1x32x32", "21x24x40"]
    flops = [one["flops"] for one in found["shapes"]]
    assert max(flops) / min(flops) < 1.2
    assert found["memory"]["peak"] == max(one["memory"]["peak"] for one in found["shapes"])
