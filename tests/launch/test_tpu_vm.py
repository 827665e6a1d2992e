"""The script for TPU VMs: run with a gcloud that stands for Google's, whose VM is a folder."""

import os
import re
import subprocess
import time

import pytest

from dit_video.distributed.targets import parse_target
from dit_video.launch.tpu_vm import TPUVM

COMMAND = ["dit-video", "train", "--config=a file.py:x", '--config.name=it\'s $HOME "and" `more`\n*']
# Writes down what it is told; `describe` gives one line of `states` after the other; `ssh` runs its command.
GCLOUD = r"""#!/bin/bash
echo "$@" >> calls
case "$4" in
  describe)
    [ -s states ] || exit 1
    head -1 states
    [ "$(wc -l < states)" = 1 ] || sed -i 1d states ;;
  create) printf 'ACTIVE\n' > states ;;
  ssh) for word in "$@"; do case "$word" in --command=*) bash -c "${word#--command=}" ;; esac; done ;;
esac
"""
DIT_VIDEO = r"""#!/bin/bash
printf '%s\0' "$FROM_SETUP" "$DIT_VIDEO_COORDINATOR" "$$" "$@" > words.part
mv words.part words
echo started
"""


def tpu_vm(target: str = "v6e:16x16", **fields) -> TPUVM:
    return TPUVM(**{"name": "video", "zone": "us-east5-b", **fields}, target=parse_target(target))


def run_script(tmp_path, platform: TPUVM) -> subprocess.CompletedProcess:
    for name, text in (("gcloud", GCLOUD), ("dit-video", DIT_VIDEO)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    submission = platform.submission(COMMAND)
    assert subprocess.run(["bash", "-n"], input=submission.text, text=True).returncode == 0
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        submission.program, input=submission.text, text=True, cwd=tmp_path, env=environment, capture_output=True
    )


def test_it_asks_waits_and_starts(tmp_path):
    result = run_script(tmp_path, tpu_vm(setup="export FROM_SETUP=1"))
    assert result.returncode == 0, result.stderr
    deadline = time.monotonic() + 10
    while not (tmp_path / "words").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    setup, coordinator, process_id, *words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert setup == "1"
    # A VM's environment says nothing: JAX is told to ask its metadata.
    assert coordinator == "auto"
    assert words == COMMAND[1:]
    # What `kill` will be given is the program, not a shell around it.
    assert (tmp_path / "video.pid").read_text().strip() == process_id
    calls = (tmp_path / "calls").read_text()
    assert re.findall(r"queued-resources (\w+) video", calls) == ["describe", "create", "describe", "ssh"]
    assert "stop and save: gcloud" in result.stdout


def test_a_resource_that_is_there_is_used_again(tmp_path):
    (tmp_path / "states").write_text("ACTIVE\n")
    assert run_script(tmp_path, tpu_vm()).returncode == 0
    assert "create" not in (tmp_path / "calls").read_text()


def test_a_resource_that_was_taken_away_is_an_error(tmp_path):
    (tmp_path / "states").write_text("SUSPENDED\n")
    result = run_script(tmp_path, tpu_vm())
    assert result.returncode == 1
    assert "give it back and launch again: gcloud compute tpus queued-resources delete video" in result.stderr
    assert "ssh" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("v6e:16x16", "--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e --node-id=video"),
        ("v5e:4x4", "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=video"),
        ("v5p:4x4x8", "--type=v5p --topology=4x4x8 --runtime-version=v2-alpha-tpuv5 --node-id=video"),
        (
            "v6e:8x8*4",
            "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e --node-count=4 --node-prefix=video --spot",
        ),
    ],
)
def test_it_asks_for_the_target(target, words):
    options = ("--spot",) if "*" in target else ()
    text = tpu_vm(target, project="mine", options=options).submission(COMMAND).text
    assert f"queued-resources create video --zone=us-east5-b --project=mine {words}\n" in text


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [
        ("tpu7x:4x4x4", {}, "launch gke"),
        ("h100:2x8", {}, "must be a TPU"),
        ("v6e:3x3", {}, "v6e has no slice 3x3"),
        ("v6e:4x4", {"name": "my video"}, "name=my video"),
        ("v6e:4x4", {"options": ("spot",)}, "option=spot"),
    ],
)
def test_mistakes_name_the_field(target, change, message):
    with pytest.raises(ValueError, match=message):
        tpu_vm(target, **change)
