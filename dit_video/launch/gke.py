"""Google Kubernetes Engine (GKE) jobs: the JobSet manifest for kubectl."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dit_video.config.bounds import at_least
from dit_video.distributed.process_settings import COORDINATOR, NUM_PROCESSES
from dit_video.distributed.targets import TPUS, Target
from dit_video.launch.hosts import Hosts, hosts_of
from dit_video.launch.local import STOPPED
from dit_video.launch.submission import Submission

# Values of the node labels cloud.google.com/gke-tpu-accelerator and gke-accelerator.
_TPU_ACCELERATORS = {
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
_GPU_ACCELERATORS = {
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
# XPK's name for it; pods are called NAME-slice-job-SLICE-HOST.
_REPLICATED_JOB = "slice-job"
_CONTAINER = "dit-video"
_COORDINATOR_PORT = 8476
# Kubernetes appends this much to the names of pods, and they end at 63 characters.
_POD_SUFFIX = "-xxxxx"
_MAX_POD_NAME = 63


@dataclasses.dataclass(frozen=True, kw_only=True)
class GKE:
    """GKE JobSet with one pod for each host of the target, labelled as XPK labels its workloads.

    A pod that stopped early and saved, or was evicted, restarts all pods, as often as it happens; any other failure
    does so `max_restarts` times. The same command goes on from the last checkpoint.

    Attributes:
        target: TPUs or GPUs; hosts and devices of each follow from it.
        image: with dit_video installed.
        volumes: (claim, path): persistent volume claims that every host mounts; data and run folder live there.
        queue: of Kueue; on clusters made by XPK, multislice-queue.
        node_selector: further labels that nodes must have, or other values for those that are selected anyway.
        grace_seconds: an evicted pod has this long to stop and save.
    """

    name: str
    image: str
    target: Target
    volumes: tuple[tuple[str, str], ...]
    namespace: str | None = None
    queue: str | None = None
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_restarts: int = 3
    grace_seconds: int = 300

    def __post_init__(self):
        hosts = hosts_of(self.target)
        longest = f"{self.name}-{_REPLICATED_JOB}-{hosts.num_slices - 1}-{hosts.hosts_per_slice - 1}{_POD_SUFFIX}"
        room = _MAX_POD_NAME - (len(longest) - len(self.name))
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", self.name) or len(self.name) > room:
            raise ValueError(
                f"name={self.name}: must be at most {room} small letters, digits and -, and begin with a letter"
            )
        if not self.volumes:
            raise ValueError(
                "volume: give at least one CLAIM:PATH; without a shared volume a restarted run has lost its checkpoints"
            )
        for claim, path in self.volumes:
            if not claim or not path.startswith("/"):
                raise ValueError(f"volume={claim}:{path}: must be CLAIM:/ABSOLUTE/PATH")
        at_least(self, 0, "max_restarts", "grace_seconds")

    def submission(self, command: Sequence[str]) -> Submission:
        """A manifest whose pods run the command. A JobSet that is there already is an error, not silently kept."""
        return Submission(
            text=yaml.safe_dump(self.manifest(command), sort_keys=False, width=120),
            program=("kubectl", "create", "-f", "-"),
            tool="kubectl",
        )

    def manifest(self, command: Sequence[str]) -> dict[str, Any]:
        """The JobSet manifest as data."""
        hosts = hosts_of(self.target)
        labels = {"xpk.google.com/workload": self.name}
        metadata = {"name": self.name, "labels": labels.copy()}
        if self.namespace is not None:
            metadata["namespace"] = self.namespace
        if self.queue is not None:
            metadata["labels"]["kueue.x-k8s.io/queue-name"] = self.queue
        if self.target.family in TPUS:
            # A node pool is a slice: every job of the set gets one to itself.
            exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
            metadata["annotations"] = exclusive
        job = {
            "parallelism": hosts.hosts_per_slice,
            "completions": hosts.hosts_per_slice,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": [STOPPED]},
                    },
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels.copy()}, "spec": self._pod(command, hosts)},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "failurePolicy": {
                    "maxRestarts": self.max_restarts,
                    "rules": [
                        {
                            "name": "saved_or_evicted",
                            "action": "RestartJobSetAndIgnoreMaxRestarts",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                        }
                    ],
                },
                "replicatedJobs": [
                    {"name": _REPLICATED_JOB, "replicas": hosts.num_slices, "template": {"spec": job}},
                ],
            },
        }

    def _pod(self, command: Sequence[str], hosts: Hosts) -> dict[str, Any]:
        tpu = self.target.family in TPUS
        resource = "google.com/tpu" if tpu else "nvidia.com/gpu"
        mounts = [{"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(self.volumes)]
        volumes: list[dict[str, Any]] = [
            {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}}
            for i, (claim, _) in enumerate(self.volumes)
        ]
        # 64 MiB of shared memory, a container's default, are too few for NCCL and for libtpu.
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        container: dict[str, Any] = {
            "name": _CONTAINER,
            "image": self.image,
            # Kubernetes puts values of variables into words, $(NAME), unless the dollar is doubled.
            "command": [word.replace("$", "$$") for word in command],
            "env": [{"name": name, "value": value} for name, value in self._environment(hosts).items()],
            "resources": {"limits": {resource: hosts.devices_per_host}},
            "volumeMounts": mounts,
        }
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.grace_seconds,
            "nodeSelector": self._default_nodes() | dict(self.node_selector),
            "tolerations": [{"key": resource, "operator": "Exists"}],
        }
        if tpu:
            # libtpu reaches the devices, and slices reach each other, as processes of the host.
            container["securityContext"] = {"privileged": True}
            pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        return pod | {"containers": [container], "volumes": volumes}

    def _default_nodes(self) -> dict[str, str]:
        if self.target.family in TPUS:
            return {
                "cloud.google.com/gke-tpu-accelerator": _TPU_ACCELERATORS[self.target.family],
                "cloud.google.com/gke-tpu-topology": "x".join(map(str, self.target.size)),
            }
        return {"cloud.google.com/gke-accelerator": _GPU_ACCELERATORS[self.target.family]}

    def _environment(self, hosts: Hosts) -> dict[str, str]:
        if self.target.family in TPUS:
            # GKE's webhook tells pods that ask for TPUs their index, their neighbours and the coordinator of slices.
            # JAX reads those variables.
            return {"PYTHONUNBUFFERED": "1"}
        # The index of each process is in a variable that Kubernetes sets itself for every pod of an Indexed Job.
        first = f"{self.name}-{_REPLICATED_JOB}-0-0.{self.name}"
        return {
            "PYTHONUNBUFFERED": "1",
            COORDINATOR: f"{first}:{_COORDINATOR_PORT}",
            NUM_PROCESSES: str(hosts.hosts_per_slice),
            # Where GKE mounts the driver.
            "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        }
