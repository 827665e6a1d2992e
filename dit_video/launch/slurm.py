"""Slurm jobs: the batch script for sbatch."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from dit_video.config.bounds import at_least
from dit_video.launch.submission import Submission

_UNITS = (86400, 3600, 60, 1)
# A process that failed has been waited for long enough; those that stop and save end within a moment of each other.
_WAIT_SECONDS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """Slurm job on GPU nodes, with one process for each GPU.

    That is what JAX takes a Slurm task to be (`jax.distributed.initialize`: under Slurm `local_device_ids` "will
    default to a single device per process"), and it finds coordinator and index by Slurm's variables.

    Attributes:
        time: limit of the job, as Slurm writes it: minutes, hours:minutes:seconds, days-hours, ...
        grace_seconds: before the limit, processes get SIGTERM, on which they save and stop.
        requeue: a job that stopped early and saved goes back into the queue, where the same command goes on.
        setup: shell lines that run first, on the first node; processes inherit what they export.
        options: further options of sbatch, each `--name` or `--name=value`.
    """

    nodes: int
    gpus_per_node: int
    time: str
    job_name: str = "dit-video"
    partition: str | None = None
    account: str | None = None
    cpus_per_task: int | None = None
    grace_seconds: int = 300
    requeue: bool = False
    setup: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self):
        at_least(self, 1, "nodes", "gpus_per_node", "cpus_per_task", "grace_seconds")
        for name in ("job_name", "partition", "account"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.,+@:/-]+", value):
                raise ValueError(f"{name}={value}: sbatch takes letters, digits and . , + @ : / - _ here")
        for option in self.options:
            if not re.fullmatch(r"--[a-z][a-z-]*(=\S+)?", option):
                raise ValueError(f"option={option}: must be an option of sbatch in one word, such as --qos=high")
        limit = seconds_of(self.time)
        if limit <= self.grace_seconds:
            raise ValueError(
                f"grace_seconds={self.grace_seconds}: nothing is left of time={self.time}, which is {limit} seconds"
            )

    def submission(self, command: Sequence[str]) -> Submission:
        """A script that runs the command in every process."""
        return Submission(text=self._script(command), program=("sbatch",), tool="sbatch")

    def _script(self, command: Sequence[str]) -> str:
        asked = {
            "job-name": self.job_name,
            "nodes": self.nodes,
            "ntasks-per-node": self.gpus_per_node,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "output": "%x-%j.out",
            "signal": f"TERM@{self.grace_seconds}",
        }
        options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
        if self.requeue:
            options += ["--requeue", "--open-mode=append"]
        # Since Slurm 22.05 srun does not take --cpus-per-task from the job.
        step = ["srun", "--label", "--kill-on-bad-exit=0", f"--wait={_WAIT_SECONDS}"]
        step += [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task is not None else []
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in (*options, *self.options)),
            "",
            "set -e",
            *([self.setup] if self.setup else []),
            "code=0",
            f"{shlex.join([*step, *command])} || code=$?",
        ]
        if self.requeue:
            lines += [
                "# 3: stopped early and saved. The same command goes on.",
                'if [ "$code" -eq 3 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            ]
        return "\n".join([*lines, 'exit "$code"', ""])


def seconds_of(time: str) -> int:
    """Parses a Slurm time limit into seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: it is none of these.
    """
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", time):
        raise ValueError(f"time={time}: must be as Slurm writes it: 90 (minutes), 12:00:00, 2-00 or 1-12:30:00")
    parts = [int(part) for part in re.split("[-:]", time)]
    first = 0 if "-" in time else {1: 2, 2: 2, 3: 1}[len(parts)]
    return sum(part * unit for part, unit in zip(parts, _UNITS[first:]))
