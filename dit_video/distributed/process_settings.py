"""Which of several processes this one is: from flags, DIT_VIDEO_* variables, or a cluster that JAX knows.

The variables are set by `dit-video launch`; srun, mpirun and pods of TPUs on GKE are recognised.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

COORDINATOR = "DIT_VIDEO_COORDINATOR"
NUM_PROCESSES = "DIT_VIDEO_NUM_PROCESSES"
PROCESS_ID = "DIT_VIDEO_PROCESS_ID"
INDEX_OF_JOB = "JOB_COMPLETION_INDEX"
"""Where Kubernetes puts the number of a pod of an Indexed Job."""

AUTO = "auto"
"""A coordinator that JAX finds itself, as it can on Cloud TPU VMs, whose environment says nothing."""

JOIN_TIMEOUT = 300
"""Seconds until all processes must have come: hosts of one job may differ by the time it takes to pull an image."""


class JoinError(ValueError):
    """Processes could not join, or their settings contradict each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Coordinator address, number and index of this process; JAX detects what is None.

    Attributes:
        coordinator: HOST:PORT where the first process listens and all others meet.
        local_devices: the devices of this host that are this process's own; all of them, if None.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None


def choose_settings(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> ProcessSettings | None:
    """Process settings from flags, else DIT_VIDEO_* variables, else the cluster; None where the process is alone.

    Raises:
        JoinError: naming the flag or variable that is missing or wrong.
    """
    flags = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if any(value is not None for value in flags.values()):
        return _explicit(flags)
    variables = {name: environment.get(name) for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)}
    if any(variables.values()):
        if not variables[PROCESS_ID] and INDEX_OF_JOB in environment:
            del variables[PROCESS_ID]
            variables[INDEX_OF_JOB] = environment[INDEX_OF_JOB]
        return _explicit(variables)
    return _by_cluster(environment)


def _explicit(variables: Mapping[str, Any]) -> ProcessSettings | None:
    """Process settings from three explicit values."""
    where, count, index = variables
    if variables[where] == AUTO:
        return ProcessSettings()
    missing = [name for name, value in variables.items() if value is None or value == ""]
    present = ", ".join(f"{name}={value}" for name, value in variables.items() if name not in missing)
    if missing:
        raise JoinError(
            f"{present}: {' and '.join(missing)} must be given too, so that each of several processes knows the others"
        )
    num_processes, process_id = (_count(variables, name) for name in (count, index))
    if num_processes < 1:
        raise JoinError(f"{count}={num_processes}: must be at least 1")
    if process_id >= num_processes:
        raise JoinError(f"{index}={process_id}: must be less than {count}={num_processes}; processes count from 0")
    host, _, port = str(variables[where]).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise JoinError(f"{where}={variables[where]}: must be HOST:PORT of process 0, such as 10.0.0.2:8476, or {AUTO}")
    if num_processes == 1:
        return None
    return ProcessSettings(coordinator=str(variables[where]), num_processes=num_processes, process_id=process_id)


def _count(variables: Mapping[str, Any], name: str) -> int:
    text = str(variables[name])
    if not text.isdigit():
        raise JoinError(f"{name}={text}: must be a whole number from 0 on")
    return int(text)


def _by_cluster(environment: Mapping[str, str]) -> ProcessSettings | None:
    """Process settings that JAX detects from a cluster's environment variables."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm) and int(environment["SLURM_NTASKS"]) > 1:
        # JAX gives each task one device, which is not meant where a task has a node to itself.
        alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
        gpus = environment.get("SLURM_GPUS_ON_NODE", "")
        return ProcessSettings(
            local_devices=tuple(range(int(gpus))) if alone and gpus.isdigit() and int(gpus) else None
        )
    if "OMPI_MCA_orte_hnp_uri" in environment and int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return ProcessSettings()
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if hosts and ("," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1):
        return ProcessSettings()
    return None
