"""`dit-video plan`: numbers for people and for programs, and an exit code that says whether it fits."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video.cli import plan as command
from dit_video.cli.main import main
from dit_video.collectives import Collective, Traffic
from dit_video.plan import Bound, Memory, Part, Plan

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = f"--config={ROOT}/experiments/quickstart.py"
GIB = 2**30

FITS = Plan(
    target="v6e:2x2",
    device_kind="TPU v6 lite",
    mesh={"data": 1, "fsdp": 4, "context": 1, "tensor": 1},
    memory=Memory((Part("parameters", GIB, 0), Part("batch", 10, 4)), 0, 2 * GIB, 4 * GIB, 32 * GIB),
    traffic=Traffic((Collective("all-gather", ("fsdp",), 12, 3 * GIB, 0),), 0),
    flops=10**15,
    clips=8,
    tokens=8000,
    num_steps=900,
    bounds=(Bound("compute", 1.0, "peak"), Bound("memory", 0.5, "once"), Bound("links", 2.0, "all")),
    remedies=(),
    compile_seconds=3.0,
)
TOO_BIG = dataclasses.replace(
    FITS,
    memory=dataclasses.replace(FITS.memory, peak=40 * GIB, temporaries=38 * GIB),
    traffic=None,
    bounds=(),
    remedies=(("--config.num_microbatches=2", "half of it"),),
)
FAKE = dataclasses.replace(FITS, memory=dataclasses.replace(FITS.memory, hbm=None), bounds=())


def dit_video_plan(*words: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "dit_video.cli.main", "plan", QUICKSTART, *words], capture_output=True, text=True
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
    assert command.report(TOO_BIG) == 1
    text = printed(capsys)
    assert "does not fit: 8 GiB more than the 32 GiB of a device" in text
    assert "--config.num_microbatches=2 half of it" in text
    assert command.report(TOO_BIG, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["excess_bytes"] == 8 * GIB


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
        "mfu": 0.5,
        "clips_per_second": 4.0,
        "tokens_per_second": 4000.0,
        "device_hours": 2.0,
        "cost": 6.0,
    }
    assert data["fits"] is True
    assert data["traffic"]["collectives"][0]["count"] == 12


def test_a_price_without_an_accelerator_is_refused(capsys):
    assert main(["plan", QUICKSTART, "--target=cpu:8", "--price_per_hour=2"]) == 1
    assert "--price_per_hour: cpu:8 has no roofline" in capsys.readouterr().err


def test_more_devices_than_this_machine_has():
    code, out, error = dit_video_plan("--target=cpu:16", "--config.mesh.fsdp=4", "--json")
    assert code == 0, error
    data = json.loads(out)
    assert data["num_devices"] == 16
    assert data["mesh"] == {"data": 4, "fsdp": 4, "context": 1, "tensor": 1}
    assert data["fits"] is None
    assert "best_case" not in data
    assert data["memory"]["padding"] == 0
    assert {"all-gather", "all-reduce"} <= {c["kind"] for c in data["traffic"]["collectives"]}


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
