"""Laws of how a process finds its settings among others; tests/run/test_processes_train.py seats real ones."""

import os
import subprocess
import sys

import pytest

from dit_video.distributed.process_settings import JoinError, ProcessSettings, choose_settings
from dit_video.distributed.processes import from_first, gather, is_first, joined, name

OURS = {
    "DIT_VIDEO_COORDINATOR": "host-0:8476",
    "DIT_VIDEO_NUM_PROCESSES": "4",
    "DIT_VIDEO_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def by_environment(**environment: str) -> ProcessSettings | None:
    return choose_settings(None, None, None, environment)


def test_a_process_without_settings_is_alone():
    assert by_environment() is None
    assert by_environment(SLURM_JOB_ID="7", TPU_WORKER_HOSTNAMES="localhost") is None
    assert by_environment(**SLURM | {"SLURM_NTASKS": "1"}) is None
    assert by_environment(JOB_COMPLETION_INDEX="0") is None
    assert choose_settings("host:1", 1, 0, {}) is None


def test_flags_go_before_variables_and_variables_before_the_cluster():
    assert choose_settings("a:1", 2, 1, OURS | SLURM) == ProcessSettings(
        coordinator="a:1", num_processes=2, process_id=1
    )
    assert by_environment(**OURS | SLURM) == ProcessSettings(coordinator="host-0:8476", num_processes=4, process_id=3)
    assert by_environment(**SLURM) == ProcessSettings()


def test_the_index_of_a_pod_stands_in_for_the_number_of_its_process():
    environment = {name: value for name, value in OURS.items() if name != "DIT_VIDEO_PROCESS_ID"}
    settings = by_environment(**environment, JOB_COMPLETION_INDEX="2")
    assert settings == ProcessSettings(coordinator="host-0:8476", num_processes=4, process_id=2)
    assert by_environment(**OURS, JOB_COMPLETION_INDEX="2") == ProcessSettings(
        coordinator="host-0:8476", num_processes=4, process_id=3
    )


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({"DIT_VIDEO_COORDINATOR": "auto"}, ProcessSettings()),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ProcessSettings()),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, ProcessSettings()),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, None),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "2"}, ProcessSettings()),
        # A task that has its node to itself has all of its devices; of several, JAX gives each its own.
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"},
            ProcessSettings(local_devices=(0, 1, 2, 3)),
        ),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "4"}, ProcessSettings()),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1"}, ProcessSettings()),
    ],
)
def test_clusters_that_jax_knows_are_recognised(environment, settings):
    assert by_environment(**environment) == settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, None), "--coordinator=a:1: --num_processes and --process_id must be given too"),
        ((None, 2, 0), "--num_processes=2, --process_id=0: --coordinator must be given too"),
        (("a:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("a:1", 2, 2), "--process_id=2: must be less than --num_processes=2"),
        (("a:1", 2, -1), "--process_id=-1: must be a whole number from 0 on"),
        (("a", 2, 1), "--coordinator=a: must be HOST:PORT of process 0"),
        (("a:123456", 2, 1), "--coordinator=a:123456: must be HOST:PORT"),
    ],
)
def test_flags_that_make_no_seat_are_named(flags, message):
    with pytest.raises(JoinError, match=f"^{message}"):
        choose_settings(*flags, {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"DIT_VIDEO_PROCESS_ID": ""}, "DIT_VIDEO_PROCESS_ID must be given too"),
        ({"DIT_VIDEO_COORDINATOR": ""}, "DIT_VIDEO_COORDINATOR must be given too"),
        ({"DIT_VIDEO_NUM_PROCESSES": "two"}, "DIT_VIDEO_NUM_PROCESSES=two: must be a whole number"),
        ({"DIT_VIDEO_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETION_INDEX=4: must be less than"),
    ],
)
def test_variables_that_make_no_seat_are_named(changed, message):
    with pytest.raises(JoinError, match=message):
        by_environment(**OURS | changed)


def test_who_is_alone_is_the_first_and_asks_nobody():
    """And no device: whoever only wants to know who speaks must not start a backend."""
    program = """
from dit_video.distributed import processes
assert processes.is_first() and processes.name() == ""
assert processes.from_first(lambda: 3) == 3
"""
    # A platform that is not there: to touch a device would be an error.
    environment = os.environ | {"JAX_PLATFORMS": "none"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert (is_first(), joined(), name(), gather("me")) == (True, False, "", ["me"])
    with pytest.raises(OSError, match="full"):
        from_first(lambda: _fail(OSError("full")))


def _fail(error: Exception) -> None:
    raise error
