"""Processes on this machine: one output, one end, one exit code."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dit_video.launch.local import ExitStatus, Local, run_together, shared_out, written_out

TWO = Local(num_processes=2).environments()
INDEX = "import os, signal, sys, time; index = int(os.environ['DIT_VIDEO_PROCESS_ID']); "


def run(program: str, grace_seconds: float = 10.0) -> tuple[ExitStatus, list[str]]:
    """Two processes of a Python program."""
    lines: list[str] = []
    outcome = run_together([sys.executable, "-c", program], TWO, grace_seconds=grace_seconds, write=lines.append)
    return outcome, lines


def test_lines_come_with_the_index_of_their_process():
    outcome, lines = run(INDEX + "print('out', index); print('error', index, file=sys.stderr)")
    assert outcome == ExitStatus(0, None)
    assert sorted(lines) == ["[0] error 0\n", "[0] out 0\n", "[1] error 1\n", "[1] out 1\n"]


def test_a_line_comes_when_it_is_written():
    """And not when the pipe's buffer is full or the process has ended."""
    program = INDEX + "print('waiting'); time.sleep(60)"
    arrived: list[str] = []

    def write(line: str) -> None:
        arrived.append(line)
        if "waiting" in line and len(arrived) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = run_together([sys.executable, "-c", program], TWO, grace_seconds=5.0, write=write)
    assert outcome.exit_code == 128 + signal.SIGTERM


def test_they_find_each_other():
    addresses = {environment["DIT_VIDEO_COORDINATOR"] for environment in TWO}
    assert len(addresses) == 1
    assert addresses.pop().startswith("127.0.0.1:")
    assert [e["DIT_VIDEO_PROCESS_ID"] for e in TWO] == ["0", "1"]
    assert [e["DIT_VIDEO_NUM_PROCESSES"] for e in TWO] == ["2", "2"]


def test_one_that_fails_ends_the_others():
    """Even those that do not listen, as processes in a collective operation do not."""
    program = INDEX + (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if index == 0: print('ready'); time.sleep(60)\n"
        "time.sleep(1); print('no such file'); sys.exit(7)"
    )
    start = time.monotonic()
    outcome, lines = run(program, grace_seconds=0.5)
    assert time.monotonic() - start < 20
    assert outcome.exit_code == 7
    assert outcome.message == "process 1 of 2 ended with exit code 7; its last lines:\n  no such file\n"
    assert "process 1 ended with exit code 7; ending the others\n" in lines


def test_one_that_is_killed_ends_the_others():
    program = INDEX + "os.kill(os.getpid(), signal.SIGKILL) if index == 1 else time.sleep(60)"
    outcome, _ = run(program)
    assert outcome.exit_code == 128 + signal.SIGKILL
    assert outcome.message == "process 1 of 2 was ended by SIGKILL; its last lines:\n  (it wrote nothing)\n"


def test_one_that_stopped_and_saved_lets_the_others_do_so():
    outcome, lines = run(INDEX + "time.sleep(index); print('saved'); sys.exit(3)")
    assert outcome == ExitStatus(3, None)
    assert sorted(lines) == ["[0] saved\n", "[1] saved\n"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_every_process_once(number):
    """They are not in the terminal's group, which would send a Ctrl-C a second time: that ends without saving."""
    program = INDEX + (
        "count = 0\n"
        "def stop(*_):\n"
        "    global count; count += 1\n"
        f"signal.signal({int(number)}, stop); print('ready')\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.3); print('signals', count, os.getsid(0) == os.getpid()); sys.exit(3)"
    )
    before = signal.getsignal(number)
    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        if sum("ready" in one for one in lines) == 2 and "ready" in line:
            threading.Thread(target=os.kill, args=(os.getpid(), number)).start()

    outcome = run_together([sys.executable, "-c", program], TWO, grace_seconds=5.0, write=write)
    assert outcome == ExitStatus(3, None)
    assert sorted(line for line in lines if "signals" in line) == ["[0] signals 1 True\n", "[1] signals 1 True\n"]
    assert signal.getsignal(number) == before


def test_a_program_that_cannot_be_started_leaves_none_behind():
    with pytest.raises(FileNotFoundError):
        run_together(["no-such-program"], TWO, grace_seconds=1.0, write=print)


def test_gpus_are_shared_out_in_order(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in Local(num_processes=2).environments()] == ["4,5", "6,7"]
    assert shared_out([], 3) == [[], [], []]
    with pytest.raises(ValueError, match="num_processes=3: the 4 GPUs of this machine"):
        Local(num_processes=3).environments()
    # Fake devices are the CPU's.
    assert "CUDA_VISIBLE_DEVICES" not in Local(num_processes=3, fake_devices=2).environments()[0]


def test_fake_devices_are_those_of_each_process():
    environments = Local(num_processes=1, fake_devices=3).environments()
    lines: list[str] = []
    program = "import jax; print(jax.local_device_count(), jax.default_backend())"
    run_together([sys.executable, "-c", program], environments, grace_seconds=1.0, write=lines.append)
    assert lines == ["[0] 3 cpu\n"]


def test_what_is_written_out_is_what_would_run():
    program = [sys.executable, "-c", "import os, sys; print(os.environ['DIT_VIDEO_PROCESS_ID'], sys.argv[1])"]
    script = written_out([*program, "it's $HOME"], TWO)
    result = subprocess.run(["bash"], input=script, text=True, capture_output=True)
    assert result.stdout == "0 it's $HOME\n1 it's $HOME\n"


@pytest.mark.parametrize("change", [{"num_processes": 0}, {"fake_devices": 0}, {"grace_seconds": -1.0}])
def test_mistakes_name_the_field(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}="):
        Local(**{"num_processes": 1, **change})
