"""`dit-video train` of tests/trained_by_processes.py in processes of its own, and what they wrote.

Losses are compared with LOSS_TOLERANCE, since sums over a mesh are made in another order; batches are compared exactly.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXPERIMENT = "from trained_by_processes import get_config"
ALONG_FSDP = ("--config.mesh.data=1", "--config.mesh.fsdp=4")
LOSS_TOLERANCE = 1e-5
TESTS = Path(__file__).parent
# What a process that was left alone must not take longer than.
MINUTE = 60


# Ports given out by this process: a coordinator takes seconds to take its own, and until then it would be free again.
_given: set[int] = set()


def _free_port() -> int:
    """A port that nobody has, and that was not given out before."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


def start(
    folder: Path,
    workdir: str,
    *words: str,
    num_processes: int = 1,
    num_devices: int = 4,
    homes: Path | None = None,
    **variables: str,
) -> list[subprocess.Popen]:
    """`dit-video train` in `num_processes` processes, which have `num_devices` together.

    With `homes` each keeps what is its own in a folder there, as on a machine of its own. `variables` are set for the
    last of them alone.
    """
    port, started = _free_port(), []
    devices = f"--xla_force_host_platform_device_count={num_devices // num_processes}"
    for index in range(num_processes):
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
            # Of this checkout, wherever the package is installed from.
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if homes is not None:
            environment["XDG_CACHE_HOME"] = str(homes / str(index))
        if num_processes > 1:
            environment |= {
                "DIT_VIDEO_COORDINATOR": f"127.0.0.1:{port}",
                "DIT_VIDEO_NUM_PROCESSES": str(num_processes),
                "DIT_VIDEO_PROCESS_ID": str(index),
            }
        if index == num_processes - 1:
            environment |= variables
        command = (sys.executable, "-m", "dit_video", "train", "--config=tokens.py", f"--workdir={workdir}")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen((*command, *words), cwd=folder, env=environment, text=True, **streams))
    return started


def finish(started: list[subprocess.Popen], *codes: int | set[int], timeout: float = 150) -> list[str]:
    """What each process printed to both streams; they must end with these codes."""
    outputs = []
    for process in started:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        # A library of XLA prints to stdout who is connected to whom.
        # Threads of Gloo write over each other, so a line of theirs may be torn.
        lines = [line for line in (out + err).splitlines(True) if "[Gloo]" not in line and "peer ranks" not in line]
        outputs.append("".join(lines))
    for process, code in zip(started, codes, strict=True):
        assert process.returncode in (code if isinstance(code, set) else {code}), "\n".join(outputs)
    return outputs


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run: Path, key: str = "loss") -> dict[int, float]:
    return {line["step"]: line[key] for line in lines(run) if key in line}


def until_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 2 * MINUTE
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if any(line["step"] >= step for line in lines(run)):
                return
        time.sleep(0.02)
    raise AssertionError(f"{run} never came to step {step}")


def assert_same_training(run: Path, reference: Path) -> None:
    """Up to where `run` came: the same batches exactly, losses to the tolerance."""
    losses, expected = steps(run), steps(reference)
    assert losses
    assert losses == pytest.approx({step: expected[step] for step in losses}, rel=LOSS_TOLERANCE)
    assert steps(run, "rows").items() <= steps(reference, "rows").items()
