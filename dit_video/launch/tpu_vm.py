"""Cloud TPU VM jobs: a script that creates a queued resource, waits for it, and starts the command on every VM."""

import dataclasses
import math
import re
import shlex
from collections.abc import Sequence

from dit_video.distributed.process_settings import AUTO, COORDINATOR
from dit_video.distributed.targets import TPUS, Target
from dit_video.launch.hosts import hosts_of
from dit_video.launch.submission import Submission

# docs.cloud.google.com/tpu/docs/runtimes. TPU7x is not there: the Cloud TPU API does not have it.
_RUNTIMES = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
_POLL_SECONDS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class TPUVM:
    """Queued resource of TPU VMs, each of which runs the command for its chips.

    The VMs know their neighbours from their metadata, which JAX reads. The command goes on when the
    connection is closed; what it writes is in NAME.log on each VM, and its process id in NAME.pid.

    Attributes:
        runtime_version: software of the VMs; None: what goes with the TPU.
        setup: shell lines that run first on every VM, such as activating an environment.
        options: further options of `gcloud compute tpus queued-resources create`, each `--name` or `--name=value`.
    """

    name: str
    zone: str
    target: Target
    project: str | None = None
    runtime_version: str | None = None
    setup: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self):
        if self.target.family in TPUS and self.target.family not in _RUNTIMES:
            raise ValueError(f"{self.target.name}: {self.target.family} is to be had on GKE only; launch gke")
        if self.target.family not in TPUS:
            raise ValueError(f"{self.target.name}: must be a TPU, such as v6e:16x16")
        hosts_of(self.target)
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", self.name):
            raise ValueError(f"name={self.name}: must be small letters, digits and -, and begin with a letter")
        for option in self.options:
            if not option.startswith("--"):
                raise ValueError(f"option={option}: must be an option of gcloud in one word, such as --spot")

    def submission(self, command: Sequence[str]) -> Submission:
        """A script that leaves the command running on every VM. A resource that is there already is used."""
        return Submission(text=self._script(command), program=("bash",), tool="gcloud")

    def _script(self, command: Sequence[str]) -> str:
        describe = self._gcloud("describe", "--format=value(state.state)")
        on_all = self._gcloud("ssh", "--node=all", "--worker=all", f"--command={self._remote(command)}")
        follow = self._gcloud("ssh", "--node=0", "--worker=0", f"--command=tail -f {self.name}.log")
        stop = self._gcloud("ssh", "--node=all", "--worker=all", f"--command=kill -TERM $(cat {self.name}.pid)")
        release = self._gcloud("delete", "--force")
        advice = f"it runs; follow: {follow}\nstop and save: {stop}\ngive the TPUs back: {release}"
        return f"""#!/bin/bash
set -e
{describe} > /dev/null 2>&1 ||
  {self._gcloud("create", *self._asked(), *self.options)}
until state=$({describe}); [ "$state" = ACTIVE ]; do
  echo "{self.name}: ${{state:-its state is not known}}"
  case "$state" in
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      echo {shlex.quote(f"give it back and launch again: {release}")} >&2
      exit 1 ;;
  esac
  sleep {_POLL_SECONDS}
done
{on_all}
echo {shlex.quote(advice)}
"""

    def _gcloud(self, verb: str, *rest: str) -> str:
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project is not None else [])]
        return shlex.join(["gcloud", "compute", "tpus", "queued-resources", verb, self.name, *where, *rest])

    def _asked(self) -> list[str]:
        chips = math.prod(self.target.size)
        asked = {
            # Only v5p comes in several shapes of the same size.
            "v5e": [f"--accelerator-type=v5litepod-{chips}"],
            "v6e": [f"--accelerator-type=v6e-{chips}"],
            "v5p": ["--type=v5p", f"--topology={'x'.join(map(str, self.target.size))}"],
        }[self.target.family]
        asked.append(f"--runtime-version={self.runtime_version or _RUNTIMES[self.target.family]}")
        if self.target.num_slices == 1:
            return [*asked, f"--node-id={self.name}"]
        return [*asked, f"--node-count={self.target.num_slices}", f"--node-prefix={self.name}"]

    def _remote(self, command: Sequence[str]) -> str:
        """Shell command for a VM. `exec` makes the process id that of the command."""
        run = f"exec env {COORDINATOR}={AUTO} nohup {shlex.join(command)}"
        body = f"{self.setup} && {run}" if self.setup else run
        return f"{{ {body}; }} > {self.name}.log 2>&1 < /dev/null & echo $! > {self.name}.pid"
