"""`dit-video launch`: what stands after -- is what runs, a mistake in it is found before, a dry run is exact."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dit_video.cli.main import main

ROOT = Path(__file__).parent.parent.parent
TRAIN = ["train", f"--config={ROOT}/experiments/quickstart.py", "--workdir=/mnt/runs/a b", "--config.seed=7"]
SLURM = ["launch", "slurm", "--nodes=2", "--gpus_per_node=8", "--time=60"]
GKE = ["launch", "gke", "--target=v6e:4x4", "--name=video", "--image=image:1", "--volume=claim:/mnt"]
TPU_VM = ["launch", "tpu_vm", "--target=v6e:4x4", "--name=video", "--zone=us-east5-b"]


@pytest.mark.slow
def test_two_processes_run_the_command(tmp_path):
    """And the exit code of a usage that only the command itself can find wrong is the command's."""
    command = [sys.executable, "-m", "dit_video", "launch", "local", "--num_processes=2", "--"]
    result = subprocess.run(
        [*command, "inspect", str(tmp_path / "no run")], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1, result.stderr
    assert "] error: " in result.stdout
    assert "of 2 ended with exit code 1; its last lines:" in result.stderr
    assert "no run" in result.stderr


@pytest.mark.parametrize("platform", [SLURM, GKE, TPU_VM], ids=["slurm", "gke", "tpu_vm"])
def test_a_dry_run_prints_what_would_be_submitted_and_needs_no_tool(capsys, monkeypatch, platform):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*platform, "--dry_run", "--", *TRAIN]) == 0
    text = capsys.readouterr().out
    if platform is GKE:
        pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["command"] == ["dit-video", *TRAIN]
    else:
        assert text.startswith("#!/bin/bash\n")
        assert "runs/a b" in text


@pytest.mark.parametrize(
    ("platform", "tool"), [(SLURM, "sbatch"), (GKE, "kubectl"), (TPU_VM, "gcloud")], ids=["slurm", "gke", "tpu_vm"]
)
def test_a_tool_that_is_missing_is_named(capsys, monkeypatch, platform, tool):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*platform, "--", *TRAIN]) == 1
    error = capsys.readouterr().err
    assert f"{tool} is not on PATH" in error
    assert "--dry_run" in error


def test_what_is_submitted_is_what_a_dry_run_prints(capfd, monkeypatch, tmp_path):
    (tmp_path / "sbatch").write_text("#!/bin/sh\ncat > submitted; exit 5\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert main([*SLURM, "--dry_run", "--", *TRAIN]) == 0
    assert not (tmp_path / "submitted").exists()
    assert main([*SLURM, "--", *TRAIN]) == 5
    assert (tmp_path / "submitted").read_text() == capfd.readouterr().out


def test_a_local_dry_run_prints_a_line_for_each_process(capsys):
    assert main(["launch", "local", "--num_processes=2", "--dry_run", "--", *TRAIN]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "DIT_VIDEO_PROCESS_ID=0 " in first
    assert "DIT_VIDEO_PROCESS_ID=1 " in second
    assert "'--workdir=/mnt/runs/a b'" in second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian: after -- stands a dit-video command: doctor, demo, "),
        (["launch"], "launch: after -- stands a dit-video command"),
        ([*TRAIN, "--pofile"], "unknown argument --pofile; see dit-video train --help"),
        (["train", "--config=nowhere.py", "--workdir=/mnt/a"], "nowhere.py: no such file"),
        ([*TRAIN, "--config.optimizer.learning_rte=1"], "did you mean 'learning_rate'"),
        ([*TRAIN, "--config.mesh.fsdp=3"], "needs a multiple of 3 devices, 16 are there: change config.mesh"),
        ([*TRAIN, "--config.data.batch_size=24"], "config.data.batch_size=24: must be a multiple of data x fsdp = 16"),
        ([*TRAIN[:2], "--workdir=runs/a"], "--workdir=runs/a: lies on the disk of the pod"),
        ([*TRAIN[:2], "--workdir=/mnt2/a"], "put it under a volume (/mnt), or give gs://bucket/run"),
        (["diff", "a", "b", "c"], "unknown argument c; see dit-video diff --help"),
        (["diff", "a", "b", "--config.seed=7"], "unknown argument --config.seed=7"),
    ],
)
def test_a_mistake_in_the_command_is_found_before_it_is_started(capsys, words, message):
    assert main([*GKE, "--dry_run", "--", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_what_the_command_requires_is_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*SLURM, "--dry_run", "--", "train", "--config=x.py"])
    assert stopped.value.code == 2
    assert "--workdir" in capsys.readouterr().err


def test_without_a_volume_checkpoints_would_be_lost(capsys):
    with pytest.raises(SystemExit):
        main(["launch", "gke", "--target=v6e:4x4", "--name=video", "--image=i", "--dry_run", "--", *TRAIN])
    assert "--volume" in capsys.readouterr().err
