"""The same value on one device, on eight, and on eight of two processes: features are pooled, never averaged."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Minutes of real processes.
pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "judged_by_processes.py"


def start(folder: Path, address: str, num_devices: int, num_processes: int, index: int) -> subprocess.Popen:
    words = [sys.executable, str(PROGRAM), address, str(num_processes), str(index)]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices // num_processes}",
        "XDG_CACHE_HOME": str(folder / f"cache_{num_devices}_{num_processes}_{index}"),
        # Of this checkout, wherever the package is installed from.
        "PYTHONPATH": os.pathsep.join(map(str, PROGRAM.parents[1:3])),
    }
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = {"one device": (1, 1, 0), "eight": (8, 1, 0), "first of two": (8, 2, 0), "second of two": (8, 2, 1)}
    folder = tmp_path_factory.mktemp("processes")
    started = {name: start(folder, address, *sizes) for name, sizes in runs.items()}
    results = {}
    for name, process in started.items():
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        results[name] = json.loads(out.splitlines()[-1])
    return results


def test_processes_and_devices_are_what_they_should_be(runs):
    assert {name: (run["devices"], run["processes"]) for name, run in runs.items()} == {
        "one device": (1, 1),
        "eight": (8, 1),
        "first of two": (8, 2),
        "second of two": (8, 2),
    }


def test_two_processes_agree_with_one_on_as_many_devices(runs):
    assert runs["first of two"]["scalars"] == runs["second of two"]["scalars"]
    for ours, theirs in zip(runs["first of two"]["scalars"], runs["eight"]["scalars"]):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_real_clips_measure_alike_on_one_device_and_on_eight(runs):
    for ours, theirs in zip(runs["one device"]["scalars"], runs["eight"]["scalars"]):
        for name in ("fbd training clips, first frame held still", "fbd training clips"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9)


def test_samples_measure_alike_on_one_device_and_on_eight(runs):
    """Sample i comes from noise f(seed, i), wherever it is made; rounding may tip a grey level over."""
    for ours, theirs in zip(runs["one device"]["scalars"], runs["eight"]["scalars"]):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-9)
    first, other = (seed["fbd"] for seed in runs["eight"]["scalars"])
    assert abs(first - other) > 0.01 * first, "another seed is other noise"
