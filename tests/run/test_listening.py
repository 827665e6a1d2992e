"""What listens while processes of `launch local` train: nothing but what this machine itself can reach.

The name of the host is made one that resolves to another address, as on most machines of a network it does.
"""

import os
import subprocess
import sys
from pathlib import Path

from dit_video.launch.local import Local

# The host gets its name first. Before a process reads what it listens on, and after, arrays are exchanged.
PROGRAM = """
import contextlib, ctypes, os, socket
from pathlib import Path
libc, new_name, new_user = ctypes.CDLL(None, use_errno=True), 0x04000000, 0x10000000
# Who is not root becomes it for himself.
if libc.unshare(new_name if os.geteuid() == 0 else new_name | new_user) or libc.sethostname(b"127.0.0.2", 9):
    raise OSError(ctypes.get_errno(), "the host cannot be given another name")
from dit_video.distributed import processes
from dit_video.distributed.process_settings import choose_settings
assert socket.gethostname() == "127.0.0.2"
processes.start(choose_settings(None, None, None, os.environ), join_timeout=60, stops_together=False)
assert len(set(processes.gather(str(os.getpid())))) == 2
opened = set()
for number in os.listdir("/proc/self/fd"):
    with contextlib.suppress(FileNotFoundError):
        opened.add(os.readlink(f"/proc/self/fd/{number}"))
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in opened:
            print("listens on", words[1].partition(":")[0])
processes.gather("read")
processes.finish()
"""
# As Linux writes them: 127.0.0.1, by itself and within IPv6.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def outputs(environments: list[dict[str, str]]) -> list[str]:
    """What processes print that run the program together."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        for environment in environments
    ]
    texts = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return texts


def test_processes_of_one_machine_listen_on_loopback_alone():
    lines = "".join(outputs(Local(num_processes=2, fake_devices=1).environments())).splitlines()
    addresses = [line.removeprefix("listens on ") for line in lines if line.startswith("listens on ")]
    assert len(addresses) >= 3, "the coordinator, and Gloo in each process"
    assert set(addresses) <= LOOPBACK
