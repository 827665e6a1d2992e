"""The JobSet: what the cluster relies on. (The whole manifest was checked once against JobSet's published schema.)"""

import pytest
import yaml

from dit_video.distributed.targets import parse_target
from dit_video.launch.gke import GKE

COMMAND = ["dit-video", "train", "--config=a file.py:x", "--config.name=it's $HOME $(HOME) $$\n: *"]


def gke(target: str, **fields) -> GKE:
    return GKE(
        **{"name": "video", "image": "image:1", "volumes": (("claim", "/mnt"),), **fields}, target=parse_target(target)
    )


def job_and_pod(manifest: dict) -> tuple[dict, dict]:
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"]


def test_four_slices_of_tpus():
    manifest = gke("v6e:16x16*4").manifest(COMMAND)
    job, pod = job_and_pod(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 4
    assert job["parallelism"] == job["completions"] == 64
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["hostNetwork"] is True
    assert "gke-nodepool" in manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    # JAX finds the coordinator of TPUs itself.
    assert not [e for e in pod["containers"][0]["env"] if e["name"].startswith("DIT_VIDEO")]


def test_gpu_pods_get_the_address_of_the_first_pod():
    manifest = gke("h100:16x8").manifest(COMMAND)
    job, pod = job_and_pod(manifest)
    assert job["parallelism"] == job["completions"] == 16
    environment = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    jobs = manifest["spec"]["replicatedJobs"][0]["name"]
    # JobSet calls pods SET-JOBS-JOB-POD and its service SET.
    assert environment["DIT_VIDEO_COORDINATOR"].startswith(f"video-{jobs}-0-0.video:")
    assert environment["DIT_VIDEO_NUM_PROCESSES"] == "16"
    assert "DIT_VIDEO_PROCESS_ID" not in environment
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert "cloud.google.com/gke-accelerator" in pod["nodeSelector"]


def test_what_was_saved_or_evicted_restarts_without_being_counted():
    manifest = gke("v6e:4x4", max_restarts=5, grace_seconds=600).manifest(COMMAND)
    job, pod = job_and_pod(manifest)
    failure = manifest["spec"]["failurePolicy"]
    assert failure["maxRestarts"] == 5
    assert failure["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    saved, evicted = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [3],
    }
    assert evicted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert pod["terminationGracePeriodSeconds"] == 600


def expanded(word: str) -> str:
    """As Kubernetes does it: a doubled dollar is one, and a single one before a parenthesis names a variable."""
    assert "$(" not in word.replace("$$", "")
    return word.replace("$$", "$")


def test_every_word_of_the_command_survives():
    manifest = gke("v6e:4x4").submission(COMMAND)
    _, pod = job_and_pod(yaml.safe_load(manifest.text))
    assert [expanded(word) for word in pod["containers"][0]["command"]] == COMMAND
    assert manifest.program == ("kubectl", "create", "-f", "-")


def test_queue_namespace_volumes_and_nodes_are_where_they_belong():
    manifest = gke(
        "h100:2x8",
        namespace="team",
        queue="multislice-queue",
        volumes=(("data", "/data"), ("runs", "/runs")),
        node_selector={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "cloud.google.com/gke-spot": "true"},
    ).manifest(COMMAND)
    _, pod = job_and_pod(manifest)
    assert manifest["metadata"]["namespace"] == "team"
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "multislice-queue"
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    mounts = {claims[m["name"]]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims}
    assert mounts == {"data": "/data", "runs": "/runs"}
    assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-h100-80gb"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_names_that_fit_give_pods_names_that_fit():
    for length in range(1, 80):
        name = "v" * length
        pod = f"{name}-slice-job-3-63-abcde"
        if len(pod) <= 63:
            gke("v6e:16x16*4", name=name)
        else:
            with pytest.raises(ValueError, match="must be at most 42 small letters"):
                gke("v6e:16x16*4", name=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Video"}, "name=Video: must be"),
        ({"name": "1-video"}, "begin with a letter"),
        ({"volumes": ()}, "a restarted run has lost its checkpoints"),
        ({"volumes": (("claim", "mnt"),)}, "volume=claim:mnt: must be CLAIM:/ABSOLUTE/PATH"),
        ({"max_restarts": -1}, "max_restarts=-1"),
    ],
)
def test_mistakes_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        gke("v6e:4x4", **change)
